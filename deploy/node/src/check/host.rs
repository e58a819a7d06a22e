//! Checks what the host is and has: processor, cgroups, memory, folders, users.

use std::{fs, path::Path, thread};

use caisson_node::{
    config::NodeConfig,
    traffic::{try_anti_spoofing, try_egress},
};
use caisson_oci::Egress;
use nix::unistd::{access, AccessFlags};

use super::{line::Line, program::on_path};

pub fn cpu() -> Line {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim())
    };
    let model = value("model name").unwrap_or("unknown model");
    let count = thread::available_parallelism().map_or(1, usize::from);
    let flags = value("flags").unwrap_or_default();
    let flag = flags.split(' ').find(|flag| matches!(*flag, "vmx" | "svm"));
    let found = format!("{model}, {count} cpus");
    match flag {
        Some(flag) => Line::ok("cpu", format!("{found}, {flag}")),
        None => Line::warn(
            "cpu",
            format!("{found}, no hardware virtualisation"),
            "turn it on in the firmware, or nested virtualisation in the cloud's settings",
        ),
    }
}

pub fn cgroups() -> Line {
    let root = Path::new("/sys/fs/cgroup");
    let found = if root.join("cgroup.controllers").exists() {
        "v2"
    } else if root.join("unified").exists() {
        "hybrid: v1 with v2 at /sys/fs/cgroup/unified"
    } else if fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_some()) {
        "v1"
    } else {
        return Line::warn(
            "cgroups",
            "none mounted",
            "limits hold inside the guests only",
        );
    };
    Line::ok("cgroups", found)
}

pub fn user_namespaces() -> Line {
    let name = "user namespace";
    match caisson_vmm::user_namespace::identity() {
        Ok(_) => Line::ok(name, "virtiofsd gets one, and so no rights over the host's files"),
        Err(error) => Line::fail(
            name,
            format!("none can be made: {error}"),
            "raise `sysctl user.max_user_namespaces`; no VM starts without, since virtiofsd would have rights over the host's files",
        ),
    }
}

pub fn network(config: &NodeConfig) -> Line {
    let name = "network";
    if !config.network.anti_spoofing {
        return Line::warn(
            name,
            "guests may send with any source address: network.anti_spoofing is false",
            "leave it out of [network], so that they send with their own addresses alone",
        );
    }
    match try_anti_spoofing() {
        Ok(()) => Line::ok(name, "guests send with their own addresses alone"),
        Err(error) => Line::fail(
            name,
            format!("what guests send can't be filtered: {error}"),
            "load the kernel's modules cls_bpf and act_mirred, or set network.anti_spoofing = false",
        ),
    }
}

pub fn egress(config: &NodeConfig) -> Line {
    let name = "egress";
    match try_egress() {
        Ok(()) => Line::ok(
            name,
            "pods can be held to what they may open connections to",
        ),
        Err(error) if config.network.egress == Egress::Open => Line::warn(
            name,
            format!("pods that ask for less than `open` are refused: {error}"),
            "use a kernel with eBPF, and load its module cls_bpf",
        ),
        Err(error) => Line::fail(
            name,
            format!("no pod can be held to network.egress: {error}"),
            "use a kernel with eBPF and load its module cls_bpf, or set network.egress = \"open\"",
        ),
    }
}

pub fn shared_memory() -> Line {
    let name = "/dev/shm";
    match nix::sys::statvfs::statvfs(name) {
        Ok(fs) => {
            let mib = |blocks: u64| (blocks * fs.fragment_size()) >> 20;
            let (size, free) = (mib(fs.blocks()), mib(fs.blocks_available()));
            Line::ok(
                name,
                format!("{size} MiB, {free} MiB free; guests' memory does not lie there"),
            )
        }
        Err(error) => Line::warn(name, error.to_string(), "mount a tmpfs there"),
    }
}

pub fn state(config: &NodeConfig) -> Line {
    let name = "state";
    for dir in [&config.state_dir, &config.store_dir] {
        // The folder is made when it is needed.
        let there = dir
            .ancestors()
            .find(|dir| dir.exists())
            .unwrap_or(Path::new("/"));
        if let Err(error) = access(there, AccessFlags::W_OK) {
            return Line::fail(
                name,
                format!("{}: {error}", there.display()),
                "make it writable, or set state_dir and store_dir",
            );
        }
    }
    let (state, store) = (config.state_dir.display(), config.store_dir.display());
    Line::ok(name, format!("{state} and {store} can be written"))
}

pub fn users(config: &NodeConfig) -> Line {
    let name = "users";
    let base = u64::from(config.hypervisor.uid_base);
    let end = base + u64::from(config.hypervisor.uid_count);
    let found = format!("{base} to {} for VMs", end - 1);
    let todo = "set hypervisor.uid_base to a range that nobody else uses";
    // passwd(5): name:password:uid:…; subuid(5): name:first:count
    for (file, first, count) in [
        ("/etc/passwd", 2, None),
        ("/etc/group", 2, None),
        ("/etc/subuid", 1, Some(2)),
        ("/etc/subgid", 1, Some(2)),
    ] {
        let text = fs::read_to_string(file).unwrap_or_default();
        for row in text.lines() {
            let fields: Vec<_> = row.split(':').collect();
            let number = |field: usize| fields.get(field)?.parse::<u64>().ok();
            let Some(from) = number(first) else { continue };
            let to = from + count.map_or(Some(1), number).unwrap_or(1);
            if from < end && base < to {
                return Line::warn(
                    name,
                    format!("{found}; {file} gives some to {}", fields[0]),
                    todo,
                );
            }
        }
    }
    Line::ok(name, found)
}

pub fn homes() -> Line {
    let name = "homes";
    let todo = "homes can't be made: apt-get install e2fsprogs, modprobe loop";
    let tools = ["mke2fs", "e2fsck", "resize2fs"];
    if let Some(missing) = tools.iter().find(|tool| on_path(tool).is_none()) {
        return Line::warn(name, format!("{missing} is not on PATH"), todo);
    }
    let control = "/dev/loop-control";
    match access(control, AccessFlags::R_OK | AccessFlags::W_OK) {
        Ok(()) => Line::ok(name, format!("e2fsprogs and {control}")),
        Err(error) => Line::warn(name, format!("{control}: {error}"), todo),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Standing, *};

    #[test]
    fn user_range_that_others_have_is_seen() {
        let mut config = NodeConfig::default();
        assert_eq!(users(&config).standing, Standing::Ok);
        (config.hypervisor.uid_base, config.hypervisor.uid_count) = (60_000, 10_000);
        // nobody, 65534
        assert_eq!(users(&config).standing, Standing::Warn);
    }
}
