//! Reads the node's configuration: `/etc/caisson/config.toml`, then `/etc/caisson/config.d/*.toml` by name.
//!
//! The environment variable `CAISSON_CONFIG` names another file (with its `config.d` beside it); containerd hands its
//! environment on to the shims that it starts. What the keys mean is in [`caisson_oci::config`].

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

pub use caisson_oci::config::{Accelerator, NodeConfig};

use crate::error::{Error, Result};

/// Names the configuration file, where it is not the default.
pub const CONFIG_ENV: &str = "CAISSON_CONFIG";
const DEFAULT_PATH: &str = "/etc/caisson/config.toml";

/// The main file's path.
pub fn path() -> PathBuf {
    env::var_os(CONFIG_ENV).map_or_else(|| DEFAULT_PATH.into(), PathBuf::from)
}

/// The files that the configuration is read from, those that are there.
pub fn files() -> Result<Vec<PathBuf>> {
    let mut paths = paths(&path())?;
    paths.retain(|path| path.exists());
    Ok(paths)
}

/// Reads and checks the configuration. Files that do not exist are no error: everything has a default.
pub fn load() -> Result<NodeConfig> {
    load_from(&path())
}

fn load_from(main: &Path) -> Result<NodeConfig> {
    let mut files = Vec::new();
    for path in paths(main)? {
        match fs::read_to_string(&path) {
            Ok(text) => files.push((path.display().to_string(), text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("read configuration", path)(error)),
        }
    }
    Ok(NodeConfig::parse(&files)?)
}

/// In the order in which they are read.
fn paths(main: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = vec![main.to_owned()];
    paths.extend(drop_ins(&main.with_file_name("config.d"))?);
    Ok(paths)
}

fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("read configuration folder", dir)(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry
            .map_err(Error::file("read configuration folder", dir))?
            .path();
        if path.extension().is_some_and(|e| e == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The three files that a guest boots from, where the configuration does not say otherwise in `<store_dir>/guest`.
pub fn guest_image(config: &NodeConfig) -> caisson_vmm::Guest {
    let dir = config.store_dir.join("guest");
    let or_default =
        |path: &Option<PathBuf>, name: &str| path.clone().unwrap_or_else(|| dir.join(name));
    let modules = or_default(&config.guest.modules, "modules.squashfs");
    caisson_vmm::Guest {
        kernel: or_default(&config.guest.kernel, "vmlinux"),
        initramfs: or_default(&config.guest.initramfs, "initramfs.cpio"),
        modules: (config.guest.modules.is_some() || modules.exists()).then_some(modules),
        // A level that was checked when the configuration was read.
        log_level: config.log.level.parse().unwrap_or(log::LevelFilter::Info),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_ins_are_read_by_name_after_the_main_file() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        fs::create_dir(dir.path().join("config.d")).unwrap();
        fs::write(&main, "[vm]\ndefault_cpus = 1").unwrap();
        fs::write(
            dir.path().join("config.d/20.toml"),
            "[vm]\ndefault_cpus = 20",
        )
        .unwrap();
        fs::write(
            dir.path().join("config.d/10.toml"),
            "[vm]\ndefault_cpus = 10",
        )
        .unwrap();
        fs::write(dir.path().join("config.d/30.bak"), "nonsense").unwrap();
        assert_eq!(load_from(&main).unwrap().vm.default_cpus, 20);
        let names = ["config.toml", "config.d/10.toml", "config.d/20.toml"];
        assert_eq!(
            paths(&main).unwrap(),
            names.map(|name| dir.path().join(name))
        );
    }

    #[test]
    fn config_that_is_not_there_is_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let config = load_from(&dir.path().join("config.toml")).unwrap();
        assert_eq!(config, NodeConfig::default());
    }
}
