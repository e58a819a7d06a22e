//! The size of the host, as far as it bounds that of a VM.

/// Returns the number of the host's CPUs that this process may use.
pub fn host_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

/// Returns the host's memory in MiB (proc(5), `MemTotal`).
pub fn host_memory_mib() -> u64 {
    memory_mib("MemTotal:")
}

/// Returns the memory that the host can still give out, in MiB (proc(5), `MemAvailable`).
pub fn available_memory_mib() -> u64 {
    memory_mib("MemAvailable:")
}

fn memory_mib(key: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| {
        let kib = line.strip_prefix(key)?.trim().strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()
    });
    kib.map_or(u64::MAX, |kib| kib / 1024)
}
