//! Reads `/proc` for processes of the host.

use std::{collections::HashMap, fs, os::unix::fs::FileExt, path::PathBuf, time::Duration};

use anyhow::{Context, Result};

/// A process that runs on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// The arguments, separated by spaces. For a process without any, its name in brackets.
    pub command: String,
}

/// Returns all processes of the host that are not zombies.
pub fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| is_running(pid))
        .filter_map(|pid| {
            Some(Process {
                pid,
                command: command_line(pid)?,
            })
        })
        .collect()
}

/// Returns whether a process exists and is not a zombie.
pub fn is_running(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// Returns the fields of `/proc/<pid>/status`, proc(5).
pub fn status(pid: u32) -> Result<HashMap<String, String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid}"))?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect())
}

/// Returns the resident memory in bytes.
pub fn rss(pid: u32) -> Result<u64> {
    let status = status(pid)?;
    kib(status.get("VmRSS").context("VmRSS")?)
}

/// Returns the most resident memory that the process has had, in bytes.
pub fn peak_rss(pid: u32) -> Result<u64> {
    let status = status(pid)?;
    kib(status.get("VmHWM").context("VmHWM")?)
}

/// Returns the proportional set size in bytes: shared pages are divided among the processes that
/// share them.
pub fn pss(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("process {pid}"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .context("Pss")?;
    kib(line.trim())
}

/// A part of a process's memory (proc(5), `/proc/<pid>/smaps`).
pub struct Mapping {
    /// What the process may do there, such as `r-xp`.
    pub permissions: String,
    /// The file, `[heap]` and the like, or nothing.
    pub path: String,
    /// The proportional set size in bytes.
    pub pss: u64,
}

/// Returns the mappings of a process.
pub fn mappings(pid: u32) -> Result<Vec<Mapping>> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))
        .with_context(|| format!("process {pid}"))?;
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some(pss) = line.strip_prefix("Pss:") {
            let mapping = mappings.last_mut().context("smaps begins with a size")?;
            mapping.pss = kib(pss.trim())?;
        }
        // Address, permissions, offset, device, inode, path.
        let words: Vec<_> = line.split_whitespace().collect();
        if words.len() >= 5 && words[0].contains('-') {
            mappings.push(Mapping {
                permissions: words[1].to_owned(),
                path: words[5..].join(" "),
                pss: 0,
            });
        }
    }
    Ok(mappings)
}

/// Returns an amount of the host's memory in bytes, by its name (proc(5), `/proc/meminfo`).
pub fn memory(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .with_context(|| name.to_owned())?;
    kib(line.trim())
}

/// Returns the CPU time of a process and its threads so far (proc(5), `stat`, fields 14 and 15; in
/// 10 ms).
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid}"))?;
    let (_, fields) = text.rsplit_once(") ").context("stat")?;
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<_, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}

/// Returns the CPU time that the machine has spent since it booted, but for what runs at a low
/// priority (proc(5), `stat`, the first line; in 10 ms).
pub fn cpu_time_of_all() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let fields: Vec<u64> = text
        .lines()
        .next()
        .context("stat")?
        .split_whitespace()
        .skip(1)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    // user, nice, system, idle, iowait, irq, softirq
    const WORK: [usize; 4] = [0, 2, 5, 6];
    let ticks: u64 = WORK.iter().filter_map(|at| fields.get(*at)).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// Returns the numbers of the capabilities in a mask of `/proc/<pid>/status` (capability.h).
pub fn capabilities(pid: u32, set: &str) -> Result<Vec<u32>> {
    let status = status(pid)?;
    let mask = status.get(set).with_context(|| set.to_owned())?;
    let mask = u64::from_str_radix(mask, 16).with_context(|| mask.clone())?;
    Ok((0..64).filter(|bit| mask >> bit & 1 == 1).collect())
}

/// Returns the namespace that a process is in, as `net:[4026531840]`.
pub fn namespace(pid: u32, kind: &str) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
    Some(link.display().to_string())
}

/// Returns what a process's descriptors refer to.
pub fn open_files(pid: u32) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .collect()
}

/// Returns all descendants of a process.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut parents: HashMap<u32, Vec<u32>> = HashMap::new();
    for process in all() {
        let parent = status(process.pid)
            .ok()
            .and_then(|s| s.get("PPid")?.parse().ok());
        parents
            .entry(parent.unwrap_or(0))
            .or_default()
            .push(process.pid);
    }
    let mut found = Vec::new();
    let mut next = vec![pid];
    while let Some(pid) = next.pop() {
        for &child in parents.get(&pid).map(Vec::as_slice).unwrap_or_default() {
            found.push(child);
            next.push(child);
        }
    }
    found
}

/// Sends a signal. A missing process is no error.
pub fn kill(pid: u32, signal: i32) {
    // SAFETY: kill has no preconditions in memory; the pid is never 0 or negative.
    unsafe { libc::kill(pid.max(2) as i32, signal) };
}

/// Parses a number of KiB as files in /proc have it (`1234 kB`). Returns bytes.
fn kib(text: &str) -> Result<u64> {
    let number = text.split_whitespace().next().context("a number of kB")?;
    Ok(number.parse::<u64>().with_context(|| text.to_owned())? * 1024)
}

fn command_line(pid: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    if bytes.is_empty() {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        return Some(format!("[{}]", name.trim()));
    }
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    Some(text.trim_end().to_owned())
}

/// Whether the memory of a process has these bytes. Pages that are not there are not brought in.
pub fn memory_has(pid: u32, wanted: &[u8]) -> Result<bool> {
    const PAGE: u64 = 4096;
    /// The page is in memory or swapped out (kernel, admin-guide/mm/pagemap.rst).
    const THERE: u64 = 3 << 62;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let pagemap = fs::File::open(format!("/proc/{pid}/pagemap"))?;
    let memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').context("a line without a range")?;
        let (start, end) = range.split_once('-').context("a range without an end")?;
        let (start, end) = (
            u64::from_str_radix(start, 16)?,
            u64::from_str_radix(end, 16)?,
        );
        if !rest.starts_with('r') || rest.ends_with("[vvar]") || rest.ends_with("[vsyscall]") {
            continue;
        }
        let mut entries = vec![0; ((end - start) / PAGE * 8) as usize];
        pagemap.read_exact_at(&mut entries, start / PAGE * 8)?;
        let mut run = Vec::new();
        for (at, entry) in (start..end)
            .step_by(PAGE as usize)
            .zip(entries.chunks_exact(8))
        {
            let entry = u64::from_le_bytes(entry.try_into()?);
            let mut page = [0; PAGE as usize];
            if entry & THERE != 0 && memory.read_exact_at(&mut page, at).is_ok() {
                // What is kept may be the beginning of the bytes.
                run.drain(..run.len().saturating_sub(wanted.len()));
                run.extend(page);
                if memchr::memmem::find(&run, wanted).is_some() {
                    return Ok(true);
                }
            } else {
                run.clear();
            }
        }
    }
    Ok(false)
}
