//! Brings CPUs and memory online that the host plugged in, and takes CPUs offline again.

use std::{fs, path::Path};

use crate::{
    kernel::{
        modules,
        sysfs::{names_in, wait_for},
    },
    Error, Result,
};

/// Brings the number of CPUs that are online to `total`.
pub fn online_cpus(total: u32) -> Result<()> {
    let path = "/sys/devices/system/cpu/online";
    wait_for("cpu", &format!("cpu number {total}"), || {
        let online = fs::read_to_string(path).map_err(Error::file("read", path))?;
        let online = parse_cpu_list(&online);
        if online.len() == total as usize {
            return Ok(Some(()));
        }
        let mut cpus: Vec<u32> = names_in("/sys/devices/system/cpu")
            .iter()
            .filter_map(|name| name.strip_prefix("cpu")?.parse().ok())
            .collect();
        cpus.sort_unstable();
        let grow = online.len() < total as usize;
        let wrong: Vec<u32> = if grow {
            let off = cpus.into_iter().filter(|cpu| !online.contains(cpu));
            off.take(total as usize - online.len()).collect()
        } else {
            let on = online.iter().rev().copied();
            on.take(online.len() - total as usize).collect()
        };
        for cpu in wrong {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
            // A CPU that is just being plugged in may not have its file yet; the next round tries
            // again.
            if let Err(error) = fs::write(&path, if grow { "1" } else { "0" }) {
                log::debug!(cpu, error:%; "cpu not ready");
            }
        }
        Ok(None)
    })
}

/// Waits until the machine has `total` bytes online, counted in memory blocks. The last block may
/// be there only in part.
pub fn online_memory(total: u64) -> Result<()> {
    let path = "/sys/devices/system/memory/block_size_bytes";
    let block = fs::read_to_string(path).map_err(Error::file("read", path))?;
    let block = u64::from_str_radix(block.trim(), 16)
        .unwrap_or(128 << 20)
        .max(1);
    modules::load(modules::MEMORY)?;
    wait_for("memory", &format!("memory of {total} bytes"), || {
        let mut online = 0_u64;
        for name in names_in("/sys/devices/system/memory") {
            let path = Path::new("/sys/devices/system/memory")
                .join(&name)
                .join("state");
            match fs::read_to_string(&path).as_deref().map(str::trim) {
                Ok("online") => online += 1,
                // For a kernel that does not do it by itself.
                Ok("offline") => drop(fs::write(&path, "online")),
                _ => {}
            }
        }
        Ok((online >= total.div_ceil(block)).then_some(()))
    })
}

/// Parses the kernel's list format, such as `0-2,5`.
fn parse_cpu_list(text: &str) -> Vec<u32> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            cpus.extend(first..=last);
        }
    }
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_list_with_ranges_is_read() {
        assert_eq!(parse_cpu_list("0-2,5\n"), [0, 1, 2, 5]);
        assert!(parse_cpu_list("\n").is_empty());
    }
}
