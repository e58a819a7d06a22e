//! Boots the guest: from the kernel's jump into `/init` to an agent that listens, in about a
//! second.
//!
//! ```text
//!   own root -> /proc /sys /dev ... -> caisson.probe? power off
//!     -> modules of the control channel -> listen -> ask for the secret -> serve for ever
//! ```

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::Write,
    os::fd::AsRawFd,
    path::Path,
    str::FromStr,
};

use log::LevelFilter;
use nix::{
    mount::{mount, MsFlags},
    sys::{
        reboot::{reboot, RebootMode},
        resource::{setrlimit, Resource, RLIM_INFINITY},
    },
};

use crate::{
    cgroup::{self, Cgroup},
    console,
    kernel::{memory, modules, sysctls},
    machine::Machine,
    secret, service, Error, Result,
};

const CONSOLE: &str = "/dev/console";

/// The kernel's parameters. The first two are those that a kubelet sets on its node, and that
/// programs there rely on: a program may reserve more memory than there is, and an oops panics the
/// kernel. The next two let an idle guest sleep: nothing compacts memory that nobody has asked for,
/// which the kernel considers twice a second, and counters are summed up less often. With the last,
/// a cpu keeps at most a few MiB of free pages for itself, not up to a hundred. Those lie all over
/// what was the memory of a process, and the host gets free memory back in blocks of 2 MiB only.
const SYSCTLS: [(&str, &str); 5] = [
    ("vm/overcommit_memory", "1"),
    ("kernel/panic_on_oops", "1"),
    ("vm/compaction_proactiveness", "0"),
    ("vm/stat_interval", "10"),
    ("vm/percpu_pagelist_high_fraction", "1000"),
];

/// Free blocks of 2^n pages and more go back to the host. By default those are blocks of 2 MiB, in
/// which there is mostly some page of a file that the guest keeps: a database of 2 GiB that has
/// ended would hold 400 MiB of the host's memory.
const PAGE_REPORTING_ORDER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";

/// Boots the guest and serves the host. Never returns: if it can't go on, it powers the machine
/// off.
pub fn run() -> ! {
    let failed = match boot() {
        Ok(()) => "the service ended".to_string(),
        Err(error) => error.chain(),
    };
    log::error!("can't go on, powering off: {failed}");
    power_off()
}

/// Limits of each process, and how far it may raise them: the values that systemd gives to
/// containerd, and so to containers. For open files, the first is systemd's default
/// (systemd-system.conf(5), DefaultLimitNOFILE), and the second is what `infinity` in Debian's unit
/// comes to (LimitNOFILE, and the kernel's fs.nr_open): podman in a container raises it to that.
/// The others are those of containerd's unit too (LimitNPROC and LimitCORE). The kernel allows a
/// user fewer processes than a small machine has memory for.
const LIMITS: [(Resource, u64, u64); 3] = [
    (Resource::RLIMIT_NOFILE, 1024, 1_048_576),
    (Resource::RLIMIT_NPROC, RLIM_INFINITY, RLIM_INFINITY),
    (Resource::RLIMIT_CORE, RLIM_INFINITY, RLIM_INFINITY),
];

/// Writes all unwritten data to disk and turns the machine off.
pub fn power_off() -> ! {
    nix::unistd::sync();
    // Fails only without the right to do so, which PID 1 has.
    let _ = reboot(RebootMode::RB_POWER_OFF);
    std::process::abort()
}

fn boot() -> Result<()> {
    own_root()?;
    mount_base()?;
    stdio()?;
    let words =
        fs::read_to_string("/proc/cmdline").map_err(Error::file("read", "/proc/cmdline"))?;
    let words = Words::parse(&words);
    let sink = OpenOptions::new()
        .write(true)
        .open(CONSOLE)
        .map_err(Error::file("open", CONSOLE))?;
    console::init(sink, words.log);
    console::abort_on_panic();
    if words.probe {
        let mut console = File::create(CONSOLE).map_err(Error::file("open", CONSOLE))?;
        console
            .write_all(b"caisson: probe ok\n")
            .map_err(Error::file("write", CONSOLE))?;
        power_off();
    }
    modules::load(modules::CONTROL_CHANNEL)?;
    mount_rest()?;
    enable_controllers()?;
    loopback_up()?;
    // The file does not exist without memory hot-plug.
    let _ = fs::write("/sys/devices/system/memory/auto_online_blocks", "online");
    // Not there in a kernel that reports no free memory.
    let _ = fs::write(PAGE_REPORTING_ORDER, "5");
    for (name, value) in SYSCTLS {
        let path = Path::new("/proc/sys").join(name);
        fs::write(&path, value).map_err(Error::file("write", path))?;
    }
    sysctls::raise()?;
    for (resource, soft, hard) in LIMITS {
        setrlimit(resource, soft, hard).map_err(|error| Error::System {
            call: "set the limits of processes",
            source: error.into(),
        })?;
    }
    service::serve(Machine::Guest, || {
        if words.template {
            memory::clear_what_is_free()?;
        }
        secret::ask(CONSOLE)
    })
}

/// Puts a bind mount of the root over the root and moves into it. Containers need pivot_root(2),
/// which can't leave the initramfs itself.
fn own_root() -> Result<()> {
    let failed = |source: nix::Error| Error::Mount {
        what: "/".to_string(),
        target: "/".into(),
        source: source.into(),
    };
    make_dir("/.root")?;
    mount(
        Some("/"),
        "/.root",
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(failed)?;
    nix::unistd::chdir("/.root").map_err(failed)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(failed)?;
    nix::unistd::chroot(".").map_err(failed)?;
    nix::unistd::chdir("/").map_err(failed)?;
    // Only the empty directory is left.
    let _ = fs::remove_dir("/.root");
    Ok(())
}

fn mount_base() -> Result<()> {
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_new("proc", "/proc", strict, "")?;
    mount_new("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755")?;
    mount_new("sysfs", "/sys", strict, "")
}

fn mount_rest() -> Result<()> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let strict = quiet | MsFlags::MS_NOEXEC;
    mount_new(
        "devpts",
        "/dev/pts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        "gid=5,mode=0620,ptmxmode=0666",
    )?;
    mount_new("tmpfs", "/dev/shm", quiet, "mode=1777")?;
    // For containers in a user namespace, which may not mount it themselves.
    mount_new("mqueue", "/dev/mqueue", quiet, "")?;
    mount_new("tmpfs", "/run", quiet, "mode=0755")?;
    mount_new("tmpfs", "/tmp", quiet, "mode=1777")?;
    mount_new("cgroup2", cgroup::MOUNT_POINT, strict, "")?;
    make_dir(caisson_protocol::path::SHARES)?;
    make_dir(caisson_protocol::path::DISKS)
}

fn mount_new(fs_type: &str, target: &str, flags: MsFlags, options: &str) -> Result<()> {
    make_dir(target)?;
    mount(Some(fs_type), target, Some(fs_type), flags, Some(options)).map_err(|source| {
        Error::Mount {
            what: fs_type.to_string(),
            target: target.into(),
            source: source.into(),
        }
    })
}

fn make_dir(path: &str) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::file("create directory", path))
}

/// Opens descriptors 0 to 2 if the kernel found no console in the initramfs.
fn stdio() -> Result<()> {
    loop {
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(Error::file("open", "/dev/null"))?;
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        std::mem::forget(null);
    }
}

/// Enables all of the kernel's controllers for the cgroups of the containers.
///
/// One cgroup that has them stays empty for ever; no container can be called as it is. With the
/// first, the kernel changes its own code to account for what it does. A machine that starts from a
/// template need not do that.
fn enable_controllers() -> Result<()> {
    let path = Path::new(cgroup::MOUNT_POINT).join("cgroup.controllers");
    let controllers = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let all = Cgroup::of_all();
    let all = all.path();
    fs::create_dir(all).map_err(Error::file("create directory", all))?;
    for cgroup in [Path::new(cgroup::MOUNT_POINT), all] {
        let path = cgroup.join("cgroup.subtree_control");
        for controller in controllers.split_whitespace() {
            if let Err(error) = fs::write(&path, format!("+{controller}")) {
                log::warn!(controller, error:%; "controller can't be enabled");
            }
        }
    }
    let first = all.join("@first");
    fs::create_dir(&first).map_err(Error::file("create directory", &first))
}

/// Brings the loopback interface up, for containers that share the guest's network namespace.
fn loopback_up() -> Result<()> {
    let failed = Error::system("set the interface lo up");
    let up = || -> std::io::Result<()> {
        // SAFETY: plain numbers; the result is checked.
        let socket =
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: socket(2) just returned this descriptor, and nothing else owns it.
        let socket =
            unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(socket) };
        // SAFETY: `ifreq` is plain data for which zeros are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let name = CString::from_str("lo").unwrap_or_default();
        for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        // SAFETY: `request` is an ifreq as SIOCSIFFLAGS wants it and lives through the call.
        if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    };
    up().map_err(failed)
}

/// Caisson's own words on the kernel's command line.
#[derive(Debug, PartialEq)]
struct Words {
    probe: bool,
    /// Whether the machine is to be saved, and others start from it.
    template: bool,
    log: LevelFilter,
}

impl Words {
    fn parse(line: &str) -> Words {
        let mut words = Words {
            probe: false,
            template: false,
            log: LevelFilter::Info,
        };
        for word in line.split_whitespace() {
            match word.split_once('=') {
                None if word == "caisson.probe" => words.probe = true,
                None if word == "caisson.template" => words.template = true,
                Some(("caisson.log", level)) => {
                    words.log = LevelFilter::from_str(level).unwrap_or(words.log);
                }
                _ => {}
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_command_line_are_found_among_the_kernels() {
        assert_eq!(
            Words::parse("console=ttyS0 panic=-1 caisson.probe caisson.log=debug\n"),
            Words {
                probe: true,
                template: false,
                log: LevelFilter::Debug
            }
        );
    }

    #[test]
    fn machine_of_a_template_is_told_so() {
        assert!(Words::parse("quiet caisson.template").template);
        assert!(!Words::parse("quiet").template);
    }

    #[test]
    fn words_with_an_unknown_level_keep_the_default() {
        assert_eq!(Words::parse("caisson.log=loud").log, LevelFilter::Info);
    }
}
