//! The memory that pods take of the node, as the processes of each have it resident.

use std::fs;

use caisson_node::{pool, state::Found};

use super::family::Family;

/// The resident memory of a process in bytes, by kind (proc(5), `/proc/PID/status`).
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
struct Resident {
    /// Its own.
    anonymous: u64,
    /// What it has of files, such as its program; processes of the same program share it.
    files: u64,
    /// Shared memory, which is the guest's memory for QEMU and for the daemons, who map it too.
    shared: u64,
}

/// Returns the memory of the pods. Processes that end meanwhile have none.
pub fn family(found: &[Found]) -> Family {
    let (mut guest, mut vmm, mut daemons, mut shims) = (0, 0, 0, 0);
    for pod in found.iter().filter(|pod| !pool::is_member(&pod.id)) {
        for (role, pid) in &pod.processes {
            let resident = of(*pid);
            let own = resident.anonymous + resident.files;
            if role == "qemu" {
                guest += resident.shared;
                vmm += own;
            } else {
                daemons += own;
            }
        }
        if let Some(resident) = pod.shim.map(of) {
            shims += resident.anonymous + resident.files + resident.shared;
        }
    }
    let help = "Resident memory of pods: of their guests, of the VMMs beside that, of the VMs' \
                daemons and of the shims. A file that several processes map counts for each.";
    Family::gauge("caisson_memory_bytes", help)
        .with(&[("component", "guest")], guest as f64)
        .with(&[("component", "vmm")], vmm as f64)
        .with(&[("component", "daemons")], daemons as f64)
        .with(&[("component", "shim")], shims as f64)
}

fn of(pid: u32) -> Resident {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    parse(&text)
}

fn parse(status: &str) -> Resident {
    let bytes = |key: &str| {
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let kib = value.and_then(|value| value.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
    };
    Resident {
        anonymous: bytes("RssAnon"),
        files: bytes("RssFile"),
        shared: bytes("RssShmem"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_by_kind_and_in_bytes() {
        let status =
            "Name:\tqemu\nRssAnon:\t    12 kB\nRssFile:\t     3 kB\nRssShmem:\t   256 kB\n";
        let expected = Resident {
            anonymous: 12 << 10,
            files: 3 << 10,
            shared: 256 << 10,
        };
        assert_eq!(parse(status), expected);
        assert_eq!(parse("Name:\tkthreadd\n"), Resident::default());
    }

    #[test]
    fn process_that_is_gone_has_no_memory() {
        assert_eq!(of(u32::MAX), Resident::default());
    }
}
