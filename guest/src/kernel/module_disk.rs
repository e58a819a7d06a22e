//! Loads modules that the initramfs does not have from the disk with the serial `modules`.
//!
//! The disk is a squashfs. Its root is what kmod knows as `/lib/modules/<release>`, with
//! `modules.dep` and `modules.alias`. The host plugs it in when it is asked for.

use std::{
    fs::{self, File},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    time::Duration,
};

use caisson_protocol::path::MODULES_SERIAL;
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{mount, MsFlags},
};

use super::{
    module_files,
    sysfs::{find_disk, wait_within},
};
use crate::{Error, Result};

/// The socket on which the agent hears that the disk is wanted.
pub const WANTED: &str = "/run/caisson/modules.wanted";
/// How long a promised disk may take to appear.
const PLUG_LIMIT: Duration = Duration::from_secs(10);
const MOUNT_POINT: &str = "/run/caisson/modules";

/// Loads a module, given by name or alias, with its dependencies. Returns `false` if there is no
/// disk or the disk does not have the module.
pub fn load(name: &str) -> Result<bool> {
    let Some(root) = mounted()? else {
        return Ok(false);
    };
    let index = Index::read(&root)?;
    let mut found = false;
    for file in index.files_of(name) {
        let path = root.join(file);
        module_files::insert(&path).map_err(Error::file("load", &path))?;
        found = true;
    }
    Ok(found)
}

/// Returns the device of the disk, if the machine has it. If the kernel's command line promises the
/// disk, this asks for it and waits.
fn disk() -> Result<Option<PathBuf>> {
    let here = find_disk(MODULES_SERIAL);
    if here.is_some() {
        return Ok(here);
    }
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let promised = line
        .split_whitespace()
        .any(|word| word == "caisson.modules");
    if !promised {
        return Ok(None);
    }
    UnixDatagram::unbound()
        .and_then(|socket| socket.send_to(&[], WANTED))
        .map_err(Error::file("ask for the modules at", WANTED))?;
    wait_within(PLUG_LIMIT, "block", || Ok(find_disk(MODULES_SERIAL)))
}

/// Returns where the disk is mounted, if the machine has it. Mounts it if need be.
fn mounted() -> Result<Option<PathBuf>> {
    let root = PathBuf::from(MOUNT_POINT);
    if root.join("modules.dep").exists() {
        return Ok(Some(root));
    }
    for module in module_files::DISK {
        module_files::insert_if_there(module)?;
    }
    let Some(device) = disk()? else {
        return Ok(None);
    };
    fs::create_dir_all(&root).map_err(Error::file("create directory", &root))?;
    let lock = File::create("/run/caisson/modules.lock")
        .map_err(Error::file("create", "/run/caisson/modules.lock"))?;
    // Held until the end, since two callers would mount the disk twice.
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| Error::file("lock", "/run/caisson/modules.lock")(error))?;
    if !root.join("modules.dep").exists() {
        module_files::insert_if_there("squashfs")?;
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some(&device), &root, Some("squashfs"), flags, None::<&str>).map_err(|source| {
            Error::Mount {
                what: MODULES_SERIAL.to_string(),
                target: root.clone(),
                source: source.into(),
            }
        })?;
    }
    Ok(Some(root))
}

/// The contents of kmod's `modules.dep` and `modules.alias`.
struct Index {
    dep: String,
    alias: String,
}

impl Index {
    fn read(root: &Path) -> Result<Index> {
        let read = |name: &str| {
            let path = root.join(name);
            fs::read_to_string(&path).map_err(Error::file("read", path))
        };
        Ok(Index {
            dep: read("modules.dep")?,
            alias: read("modules.alias").unwrap_or_default(),
        })
    }

    /// Returns the files to load for a name or alias, dependencies first.
    fn files_of(&self, name: &str) -> Vec<&str> {
        let mut files = Vec::new();
        let plain = name.replace('-', "_");
        let direct = self.line_of(&plain);
        let lines: Vec<&str> = match direct {
            Some(line) => vec![line],
            None => self
                .alias
                .lines()
                .filter_map(|line| line.strip_prefix("alias ")?.rsplit_once(' '))
                .filter(|(pattern, _)| glob(&pattern.replace('-', "_"), &plain))
                .filter_map(|(_, module)| self.line_of(module))
                .collect(),
        };
        for line in lines {
            let Some((file, dependencies)) = line.split_once(':') else {
                continue;
            };
            // kmod lists dependencies in reverse: the one to load first is at the end.
            for file in dependencies.split_whitespace().rev().chain([file]) {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        files
    }

    fn line_of(&self, module: &str) -> Option<&str> {
        self.dep.lines().find(|line| {
            let file = line.split(':').next().unwrap_or_default();
            let base = file.rsplit('/').next().unwrap_or_default();
            let base = base.split(".ko").next().unwrap_or_default();
            base.replace('-', "_") == module
        })
    }
}

/// Returns whether `text` matches a pattern with `*` and `?`. Besides these, aliases use only
/// `[...]`, which is taken as `?`.
fn glob(pattern: &str, text: &str) -> bool {
    match (pattern.as_bytes(), text.as_bytes()) {
        ([], []) => true,
        ([b'*', ..], []) => glob(&pattern[1..], text),
        ([b'*', ..], [_, ..]) => glob(&pattern[1..], text) || glob(pattern, &text[1..]),
        ([b'[', ..], [_, ..]) => match pattern.split_once(']') {
            Some((_, rest)) => glob(rest, &text[1..]),
            None => false,
        },
        ([b'?', ..], [_, ..]) => glob(&pattern[1..], &text[1..]),
        ([p, ..], [t, ..]) if p == t && p.is_ascii() => glob(&pattern[1..], &text[1..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        Index {
            dep: "kernel/net/ipv4/ip_tables.ko: kernel/net/netfilter/x_tables.ko\n\
                  kernel/net/netfilter/x_tables.ko:\n\
                  kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko\n"
                .to_string(),
            alias: "alias rtnl-link-bridge bridge\nalias net-pf-16-proto-* ip_tables\n".to_string(),
        }
    }

    #[test]
    fn module_with_dependencies_is_loaded_after_them() {
        assert_eq!(
            index().files_of("bridge"),
            [
                "kernel/net/llc/llc.ko",
                "kernel/net/802/stp.ko",
                "kernel/net/bridge/bridge.ko"
            ]
        );
    }

    #[test]
    fn module_by_alias_is_found() {
        assert_eq!(index().files_of("rtnl-link-bridge").len(), 3);
        assert_eq!(index().files_of("net-pf-16-proto-12").len(), 2);
    }

    #[test]
    fn module_unknown_gives_nothing() {
        assert!(index().files_of("nosuch").is_empty());
    }
}
