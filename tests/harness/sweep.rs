//! Claims the folders of nodes so that two runs never conflict, and removes them with all that runs
//! or is mounted below them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::{command, cri::network, leftovers, proc};

/// The prefix of every node's folder, `/tmp/cst<pid>n<number>`. It is short since sockets, whose
/// paths are limited to 108 bytes, lie in the folder.
const PREFIX: &str = "cst";
const PARENT: &str = "/tmp";

/// Removes what dead runs left, then creates and locks a folder for this process. Returns its tag,
/// path and lock.
pub fn claim_folder() -> Result<(String, PathBuf, Flock<File>)> {
    let parent = Path::new(PARENT);
    // Held while a folder exists but is not yet locked, so that no other run takes it for a dead
    // run's.
    let _gate = gate()?;
    for (tag, dir) in folders(parent)? {
        if is_dead(&dir) {
            remove(&tag, &dir).with_context(|| format!("remove {}", dir.display()))?;
        }
    }
    for number in 0.. {
        let tag = format!("{PREFIX}{}n{number}", std::process::id());
        let dir = parent.join(&tag);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
            made => made.with_context(|| dir.display().to_string())?,
        }
        let lock = lock(File::create(dir.join("lock"))?, FlockArg::LockExclusive)?;
        return Ok((tag, dir, lock));
    }
    unreachable!("the loop has no end")
}

/// Takes a number below `count` that is not in `used`, and that no other folder has for the same
/// `name`. It is free again when the folder is removed.
pub fn claim_number(dir: &Path, name: &str, count: u32, used: &[u32]) -> Result<u32> {
    let _gate = gate()?;
    let number = |dir: &Path| fs::read_to_string(dir.join(name)).ok()?.parse().ok();
    let taken: Vec<u32> = folders(Path::new(PARENT))?
        .iter()
        .filter_map(|(_, dir)| number(dir))
        .collect();
    let free = (0..count).find(|number| !taken.contains(number) && !used.contains(number));
    let free = free.with_context(|| format!("all of {count} numbers for {name} are taken"))?;
    fs::write(dir.join(name), free.to_string())?;
    Ok(free)
}

/// Ends the processes of a node, unmounts what is mounted below its folder and removes its network,
/// cgroups and folder.
pub fn remove(tag: &str, dir: &Path) -> Result<()> {
    // A killed shim's children may become visible only after their parent is gone, so this repeats
    // until nothing is found.
    for _ in 0..5 {
        let processes = leftovers::processes(tag);
        if processes.is_empty() {
            break;
        }
        for process in &processes {
            proc::kill(process.pid, libc::SIGKILL);
        }
        let _ = command::poll("ended processes", Duration::from_secs(5), || {
            processes
                .iter()
                .all(|p| !proc::is_running(p.pid))
                .then_some(())
        });
    }
    for mount in leftovers::mounts(tag).into_iter().rev() {
        let _ = nix::mount::umount2(Path::new(&mount), nix::mount::MntFlags::MNT_DETACH);
    }
    for name in leftovers::namespaces(tag) {
        let _ = command::run(
            std::process::Command::new("ip").args(["netns", "del", &name]),
            None,
            Duration::from_secs(5),
        );
    }
    network::remove(tag)?;
    for cgroup in leftovers::cgroups(tag).into_iter().rev() {
        let _ = command::poll("empty cgroup", Duration::from_secs(2), || {
            fs::remove_dir(&cgroup).or_else(gone).ok()
        });
    }
    for socket in leftovers::shim_sockets(tag, dir) {
        let _ = fs::remove_file(socket);
    }
    fs::remove_dir_all(dir)
        .or_else(gone)
        .with_context(|| dir.display().to_string())
}

fn gone(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(error)
    }
}

fn folders(parent: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('n'));
        let numbers = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if ours.is_some_and(|(pid, number)| numbers(pid) && numbers(number)) {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

fn gate() -> Result<Flock<File>> {
    let path = Path::new(PARENT).join("caisson-tests.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)?;
    lock(file, FlockArg::LockExclusive).with_context(|| format!("lock {}", path.display()))
}

fn is_dead(dir: &Path) -> bool {
    match File::open(dir.join("lock")) {
        Ok(file) => lock(file, FlockArg::LockExclusiveNonblock).is_ok(),
        Err(_) => true,
    }
}

fn lock(file: File, how: FlockArg) -> Result<Flock<File>> {
    Flock::lock(file, how).map_err(|(_, errno)| errno.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_of_a_living_run_is_not_dead() {
        let (_, dir, lock) = claim_folder().unwrap();
        assert!(!is_dead(&dir));
        drop(lock);
        assert!(is_dead(&dir));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn number_that_is_used_outside_the_folders_is_not_claimed() {
        let (_, dir, _lock) = claim_folder().unwrap();
        let number = claim_number(&dir, "test", 255, &[0, 1, 3]).unwrap();
        assert!(![0, 1, 3].contains(&number));
        fs::remove_dir_all(dir).unwrap();
    }
}
