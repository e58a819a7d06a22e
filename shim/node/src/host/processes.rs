//! Processes of the host, and how a file records them: `pid start-time role` a line.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{kill, Signal},
    unistd::Pid,
};

/// Returns `pid start-time role`. The start time distinguishes a process from a later one with the
/// same pid.
pub fn process_line(pid: u32, role: &str) -> String {
    format!("{pid} {} {role}", start_time(pid).unwrap_or_default())
}

/// Returns the start time of a process: field 22 of `/proc/<pid>/stat` (proc(5)), in clock ticks
/// since boot.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 2, the name, can contain anything; what follows its closing bracket can't.
    let fields = stat.rsplit_once(')')?.1;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// Returns the processes of a record that are still alive. A zombie counts as gone.
pub fn recorded(file: &Path) -> Vec<(String, u32)> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let live = |line: &str| {
        let mut fields = line.split(' ');
        let pid: u32 = fields.next()?.parse().ok()?;
        let started: u64 = fields.next()?.parse().ok()?;
        let role = fields.next().unwrap_or_default().to_owned();
        (start_time(pid) == Some(started) && is_alive(pid)).then_some((role, pid))
    };
    text.lines().filter_map(live).collect()
}

/// Whether a process is still running. A zombie counts as gone.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, s)| s.trim().chars().next());
    state.is_some_and(|s| s != 'Z' && s != 'X')
}

/// Kills processes and waits until they have ended, for 5 s at most.
pub fn kill_and_wait(pids: &[u32]) {
    for pid in pids {
        if let Err(error) = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL) {
            log::debug!("kill {pid}: {error}");
        }
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while pids.iter().any(|pid| is_alive(*pid)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_has_a_start_time_and_a_foreign_one_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        let own = std::process::id();
        fs::write(&file, process_line(own, "qemu")).unwrap();
        assert_eq!(recorded(&file), [("qemu".to_owned(), own)]);
        fs::write(&file, format!("{own} 1 qemu")).unwrap();
        assert_eq!(recorded(&file), []);
    }

    #[test]
    fn process_that_has_ended_and_was_not_waited_for_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        fs::write(&file, process_line(child.id(), "qemu")).unwrap();
        assert_eq!(recorded(&file).len(), 1);
        kill_and_wait(&[child.id()]);
        assert_eq!(recorded(&file), []);
        child.wait().unwrap();
    }
}
