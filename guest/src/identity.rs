//! Gives a machine, whether freshly booted or cloned, its own identity: random numbers, host name,
//! machine-id and kernel parameters.

use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use caisson_protocol::agent::ConfigureRequest;

use crate::{cgroup::Cgroup, Error, Result};

/// `RNDADDENTROPY` and `RNDRESEEDCRNG` from the kernel's include/uapi/linux/random.h.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Seeds are cut to this many bytes; the kernel's pool holds 32.
const MAX_SEED: usize = 512;

/// Applies the fields of the request that are set. An empty field changes nothing.
pub fn apply(request: &ConfigureRequest) -> Result<()> {
    if !request.entropy.is_empty() {
        seed(&request.entropy)?;
    }
    if !request.hostname.is_empty() {
        nix::unistd::sethostname(&request.hostname).map_err(Error::system("set the host name"))?;
    }
    if !request.machine_id.is_empty() {
        write_machine_id(&request.machine_id)?;
    }
    if request.max_processes > 0 {
        let path = Cgroup::of_all().path().join("pids.max");
        let limit = request.max_processes.to_string();
        fs::write(&path, limit).map_err(Error::file("write", path))?;
    }
    Ok(())
}

/// Sets kernel parameters. The call fails at the first one that can't be set; those before it stay
/// set.
pub fn set_sysctls(sysctls: &HashMap<String, String>) -> Result<()> {
    let mut sorted: Vec<_> = sysctls.iter().collect();
    sorted.sort();
    for (name, value) in sorted {
        let path = sysctl_path(name).ok_or_else(|| Error::Argument {
            field: "sysctls",
            value: name.clone(),
            why: "is not the name of a kernel parameter",
        })?;
        fs::write(&path, value).map_err(Error::file("write", path))?;
        log::info!(name = name.as_str(), value = value.as_str(); "sysctl");
    }
    Ok(())
}

/// Returns the file of a kernel parameter. The first dot or slash in the name decides which of the
/// two separates; the other then stands for a dot within a name (sysctl(8)).
fn sysctl_path(name: &str) -> Option<PathBuf> {
    let path = match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name.to_string(),
        // `net.ipv4.conf.eth0/1.x` belongs to the interface `eth0.1`.
        _ => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
    };
    let good = |part: &str| !matches!(part, "" | "." | "..");
    path.split('/')
        .all(good)
        .then(|| Path::new("/proc/sys").join(path))
}

fn write_machine_id(id: &str) -> Result<()> {
    if id.len() != 32 || !id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(Error::Argument {
            field: "machine_id",
            value: id.to_string(),
            why: "must be 32 lower-case hex digits",
        });
    }
    fs::create_dir_all("/etc").map_err(Error::file("create directory", "/etc"))?;
    fs::write("/etc/machine-id", format!("{id}\n")).map_err(Error::file("write", "/etc/machine-id"))
}

/// Adds the host's random bytes to the kernel's pool, credits them, and makes the kernel use them
/// at once.
fn seed(entropy: &[u8]) -> Result<()> {
    #[repr(C)]
    struct Pool {
        entropy_count: libc::c_int,
        buf_size: libc::c_int,
        buf: [u8; MAX_SEED],
    }
    let entropy = &entropy[..entropy.len().min(MAX_SEED)];
    let mut pool = Pool {
        entropy_count: entropy.len() as libc::c_int * 8,
        buf_size: entropy.len() as libc::c_int,
        buf: [0; MAX_SEED],
    };
    pool.buf[..entropy.len()].copy_from_slice(entropy);
    let random = OpenOptions::new()
        .write(true)
        .open("/dev/urandom")
        .map_err(Error::file("open", "/dev/urandom"))?;
    // SAFETY: `pool` has the layout of rand_pool_info with `buf_size` bytes behind it.
    if unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &pool) } < 0 {
        return Err(Error::system("add entropy")(std::io::Error::last_os_error()));
    }
    // SAFETY: takes no argument.
    if unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG, 0) } < 0 {
        return Err(Error::system("reseed the random number generator")(
            std::io::Error::last_os_error(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_is_found_by_both_separators() {
        let path = |name| sysctl_path(name).unwrap();
        assert_eq!(
            path("net.core.somaxconn"),
            Path::new("/proc/sys/net/core/somaxconn")
        );
        assert_eq!(path("net/core/somaxconn"), path("net.core.somaxconn"));
        assert_eq!(
            path("net.ipv4.conf.eth0/1.forwarding"),
            Path::new("/proc/sys/net/ipv4/conf/eth0.1/forwarding")
        );
    }

    #[test]
    fn sysctl_that_leads_elsewhere_is_refused() {
        for name in ["", "/etc/passwd", "../x", "net//x", "net/../../x"] {
            assert_eq!(sysctl_path(name), None, "{name:?}");
        }
    }
}
