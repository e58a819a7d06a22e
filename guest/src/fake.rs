//! Serves the host's tests without a VM, on a fake machine.
//!
//! The fake machine has its own view of mounts and cgroups:
//! - `DIR/1024.sock` to `DIR/1026.sock` are the ports, `DIR/agent.log` is the console, and
//!   `DIR/secret` holds what the host would tell a guest on its console.
//! - A share is `DIR/devices/<tag>`, and a disk is `DIR/devices/<serial>`. Both are directories or
//!   links to one. They are seen as the process that started the fake sees them, and are mounted
//!   where the guest would have them.
//! - Cgroups are those of the host's cgroup v2 tree below `/caisson-fake`. They have no limits if
//!   the tree has no controllers.
//! - Clock, host name, CPUs, memory and network cards are left alone.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::ExitCode,
};

use caisson_protocol::path::{DISKS, MEMORY, PARTS, SHARES};
use nix::{
    mount::{mount, MsFlags},
    sched::{unshare, CloneFlags},
};

use crate::{cgroup, console, machine::Machine, secret::Secret, service, Error, Result};

/// Serves a test on the host. `dir` must exist. SIGTERM ends the service with its containers.
pub fn serve(dir: &Path) -> ExitCode {
    let served = prepare(dir).and_then(|dir| {
        let machine = Machine::Fake { dir: dir.clone() };
        service::serve(machine, || Secret::of_fake(&dir))
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("caisson-agent: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn prepare(dir: &Path) -> Result<PathBuf> {
    let dir = fs::canonicalize(dir).map_err(Error::file("find", dir))?;
    let log = dir.join("agent.log");
    let sink = File::options().append(true).create(true).open(&log);
    console::init(
        sink.map_err(Error::file("open", log))?,
        log::LevelFilter::Debug,
    );
    for path in [SHARES, DISKS, MEMORY, PARTS] {
        fs::create_dir_all(path).map_err(Error::file("create directory", path))?;
    }
    // The containers' processes become this process' children, as in a guest.
    nix::sys::prctl::set_child_subreaper(true).map_err(Error::system("become a subreaper"))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(Error::system("leave the host's mounts"))?;
    let place = |what: &str, target: &str, flags: MsFlags| {
        let fs_type = (!flags.contains(MsFlags::MS_SLAVE)).then_some(what);
        mount(fs_type, target, fs_type, flags, None::<&str>).map_err(|source| Error::Mount {
            what: what.to_string(),
            target: target.into(),
            source: source.into(),
        })
    };
    // Mounts of the host are seen here, but mounts made here are not seen on the host.
    place("slave", "/", MsFlags::MS_SLAVE | MsFlags::MS_REC)?;
    place("tmpfs", SHARES, MsFlags::empty())?;
    place("tmpfs", DISKS, MsFlags::empty())?;
    place("tmpfs", MEMORY, MsFlags::empty())?;
    place("tmpfs", PARTS, MsFlags::empty())?;
    place("cgroup2", cgroup::MOUNT_POINT, MsFlags::empty())?;
    let parent = Path::new(cgroup::MOUNT_POINT).join("caisson-fake");
    fs::create_dir_all(&parent).map_err(Error::file("create directory", parent))?;
    Ok(dir)
}
