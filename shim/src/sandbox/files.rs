//! Writes the files that a pod's containers share at `/etc`. containerd lays them out for a sandbox
//! of its own (`setupSandboxFiles`), but not for a sandbox of a shim. `/dev/shm`, the fourth of its
//! kind, is the guest's own (see `volume` of `oci`).
//!
//! A container may write into these files. So they are on disk, where containerd keeps a task's
//! data, and go with the bundle.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use caisson_node::host::error::OnFile;
use caisson_oci::pod;

use crate::{
    cri::pod_sandbox_config::{DNSConfig, PodSandboxConfig},
    error::{Error, Result},
};

/// The folder for the files of a sandbox with this bundle.
pub fn folder(bundle: &Path) -> PathBuf {
    // containerd makes this link to the task's folder in its root (core/runtime/v2/bundle.go).
    fs::canonicalize(bundle.join("work")).unwrap_or_else(|_| bundle.to_owned())
}

/// Writes the [`pod::FILES`].
pub fn write(folder: &Path, config: &PodSandboxConfig) -> Result<()> {
    for (destination, name) in pod::FILES {
        let text = match (name, config.dns_config.as_ref()) {
            ("hostname", _) if !config.hostname.is_empty() => {
                format!("{}\n", config.hostname).into_bytes()
            }
            ("resolv.conf", Some(dns)) => resolv_conf(dns).into_bytes(),
            _ => of_the_host(Path::new(destination))?,
        };
        let path = folder.join(name);
        fs::write(&path, text).map_err(Error::file("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .map_err(Error::file("set the mode of", &path))?;
    }
    Ok(())
}

/// The host's version of a file; empty if the host has none.
fn of_the_host(path: &Path) -> Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(Error::file("read", path)),
    }
}

/// Formats a resolv.conf(5).
fn resolv_conf(dns: &DNSConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_say_what_the_pod_asks_for_and_else_what_the_host_has() {
        let dir = tempfile::tempdir().unwrap();
        let dns = DNSConfig {
            servers: vec!["10.96.0.10".to_owned(), "fd00::10".to_owned()],
            searches: vec!["a.local".to_owned(), "b.local".to_owned()],
            options: vec!["ndots:5".to_owned()],
            ..Default::default()
        };
        let config = PodSandboxConfig {
            hostname: "web-0".to_owned(),
            dns_config: Some(dns).into(),
            ..Default::default()
        };
        write(dir.path(), &config).unwrap();
        let read = |name| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("hostname"), "web-0\n");
        assert_eq!(
            read("resolv.conf"),
            "search a.local b.local\nnameserver 10.96.0.10\nnameserver fd00::10\noptions ndots:5\n"
        );
        let hosts = of_the_host(Path::new("/etc/hosts")).unwrap();
        assert_eq!(read("hosts").into_bytes(), hosts);
    }

    #[test]
    fn folder_is_the_tasks_on_disk_where_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().canonicalize().unwrap();
        assert_eq!(folder(&bundle), bundle);
        let work = bundle.join("on-disk");
        fs::create_dir(&work).unwrap();
        std::os::unix::fs::symlink(&work, bundle.join("work")).unwrap();
        assert_eq!(folder(&bundle), work);
    }
}
