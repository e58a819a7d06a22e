//! Reads the node's configuration: `/etc/caisson/config.toml`, then `/etc/caisson/config.d/*.toml`
//! in the order of their names.
//!
//! The environment variable `CAISSON_CONFIG` names another main file, with its `config.d` beside
//! it; containerd passes its environment on to the shims that it starts. The files override the
//! paths of the release that the running program belongs to. [`caisson_oci::config`] describes the
//! keys.
//!
//! A preset of the configuration ([`caisson_oci::presets`]) is for the pods of one runtime handler.
//! The handler names a link to the shim's program, and the link's name has the preset's:
//! [`program_of`].

use std::{
    collections::BTreeMap,
    env,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

pub use caisson_oci::config::{Accelerator, NodeConfig};

use crate::host::error::{FileError, OnFile};

/// What can go wrong with the node's configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Its text was refused.
    #[error(transparent)]
    Refused(#[from] caisson_oci::Error),
    /// A file or folder can't be read.
    #[error(transparent)]
    File(#[from] FileError),
}

type Result<T> = std::result::Result<T, ConfigError>;

/// containerd's name for this runtime.
pub const RUNTIME: &str = "io.containerd.caisson.v2";
/// The shim's program, under the name that containerd looks for.
pub const PROGRAM: &str = "containerd-shim-caisson-v2";
/// What the name of a shim's program has before and after a preset's name.
const AROUND_PRESET: (&str, &str) = ("containerd-shim-caisson-", "-v2");
/// The environment variable with the preset of a shim that was not started by the preset's link.
pub const PRESET_ENV: &str = "CAISSON_PRESET";
/// The environment variable that names another configuration file than the default.
pub const CONFIG_ENV: &str = "CAISSON_CONFIG";
const DEFAULT_PATH: &str = "/etc/caisson/config.toml";

/// Returns the path of the main file.
pub fn path() -> PathBuf {
    env::var_os(CONFIG_ENV).map_or_else(|| DEFAULT_PATH.into(), PathBuf::from)
}

/// Returns the name of the shim's program for the pods of a preset. containerd finds it for the
/// runtime `io.containerd.caisson-PRESET.v2`.
pub fn program_of(preset: &str) -> String {
    let (before, after) = AROUND_PRESET;
    format!("{before}{preset}{after}")
}

/// Returns the preset that a program's name has, or `None` for the shim's own name.
pub fn preset_of(program: &OsStr) -> Option<String> {
    let (before, after) = AROUND_PRESET;
    let name = Path::new(program).file_name()?.to_str()?;
    let preset = name.strip_prefix(before)?.strip_suffix(after)?;
    Some(preset.to_owned())
}

/// Returns the preset of this process: that of the name by which it was started, or the one that
/// its environment names.
pub fn own_preset() -> Option<String> {
    let started_as = env::args_os().next();
    let preset = started_as.and_then(|name| preset_of(&name));
    preset.or_else(|| env::var(PRESET_ENV).ok())
}

/// Does the same as [`load`] for the pods of a preset, if one is named.
pub fn load_for(preset: Option<&str>) -> Result<NodeConfig> {
    of_preset(&load()?, preset)
}

/// Returns the node's configuration for the pods of a preset, if one is named.
pub fn of_preset(node: &NodeConfig, preset: Option<&str>) -> Result<NodeConfig> {
    match preset {
        Some(preset) => Ok(node.with_preset(preset)?),
        None => Ok(node.clone()),
    }
}

/// Returns the existing files that the configuration is read from.
pub fn files() -> Result<Vec<PathBuf>> {
    let mut paths = paths(&path())?;
    paths.retain(|path| path.exists());
    Ok(paths)
}

/// Reads and checks the configuration. Missing files are no error, since everything has a default.
pub fn load() -> Result<NodeConfig> {
    load_with(&path(), None)
}

/// Does the same as [`load`] with another main file. With `drop_in`, reads as if the drop-in at
/// that path had this text.
pub fn load_with(main: &Path, drop_in: Option<(&Path, &str)>) -> Result<NodeConfig> {
    let mut files: Vec<_> = beside().into_iter().collect();
    let mut paths = paths(main)?;
    if let Some((path, _)) = drop_in.filter(|(path, _)| !paths.iter().any(|p| p == path)) {
        paths.push(path.to_owned());
        // The main file stays first.
        paths[1..].sort();
    }
    for path in paths {
        if let Some((_, text)) = drop_in.filter(|(replaced, _)| *replaced == path) {
            files.push((path.display().to_string(), text.to_owned()));
            continue;
        }
        match fs::read_to_string(&path) {
            Ok(text) => files.push((path.display().to_string(), text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(ConfigError::file("read configuration", path)(error)),
        }
    }
    Ok(NodeConfig::parse(&files)?)
}

/// Returns settings for QEMU, the daemons and the guest image that lie beside the running program,
/// as in a release: in `../libexec` and `../guest`. The configuration files override them. A
/// process thus keeps using the version that it was started with, whatever is installed meanwhile.
fn beside() -> Option<(String, String)> {
    let program = env::current_exe().ok()?;
    let release = program.parent()?.parent()?;
    release_at(release).map(|text| ("(beside the program)".to_owned(), text))
}

/// Returns the settings for a release in `dir`. Only a complete release counts: `/usr/libexec` may
/// contain a distribution's virtiofsd.
fn release_at(dir: &Path) -> Option<String> {
    // A literal string in TOML can't contain a single quote.
    let file = |key: &str, name: &str| {
        let path = dir.join(name).to_str()?.to_owned();
        let plain = !path.contains(|c: char| c == '\'' || c.is_control());
        (plain && Path::new(&path).is_file()).then(|| format!("{key} = '{path}'\n"))
    };
    let hypervisor = file("virtiofsd", "libexec/virtiofsd")?
        + &file("vsock_daemon", "libexec/vhost-device-vsock")?
        // A build for Debian's QEMU has none.
        + &file("qemu", "libexec/qemu-system-x86_64").unwrap_or_default();
    let guest = file("kernel", "guest/vmlinux")? + &file("initramfs", "guest/initramfs.cpio")?;
    let modules = file("modules", "guest/modules.squashfs").unwrap_or_default();
    Some(format!(
        "[hypervisor]\n{hypervisor}[guest]\n{guest}{modules}"
    ))
}

/// Returns the paths of the files, in the order in which they are read.
fn paths(main: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = vec![main.to_owned()];
    paths.extend(drop_ins(&main.with_file_name("config.d"))?);
    Ok(paths)
}

fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ConfigError::file("read configuration folder", dir)(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry
            .map_err(ConfigError::file("read configuration folder", dir))?
            .path();
        if path.extension().is_some_and(|e| e == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Returns the three files that a guest boots from: those of the configuration or of the running
/// program's release, otherwise those in `<store_dir>/guest`.
pub fn guest_image(config: &NodeConfig) -> caisson_vmm::Guest {
    let dir = config.store_dir.join("guest");
    let or_default =
        |path: &Option<PathBuf>, name: &str| path.clone().unwrap_or_else(|| dir.join(name));
    let modules = or_default(&config.guest.modules, "modules.squashfs");
    caisson_vmm::Guest {
        kernel: or_default(&config.guest.kernel, "vmlinux"),
        initramfs: or_default(&config.guest.initramfs, "initramfs.cpio"),
        modules: (config.guest.modules.is_some() || modules.exists()).then_some(modules),
        // The level was checked when the configuration was read.
        log_level: config.log.level.parse().unwrap_or(log::LevelFilter::Info),
        // What a guest is to have of the node is read where a pod's VM is made.
        sysctls: BTreeMap::new(),
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
        assert_eq!(load_with(&main, None).unwrap().vm.default_cpus, 20);
        let names = ["config.toml", "config.d/10.toml", "config.d/20.toml"];
        assert_eq!(
            paths(&main).unwrap(),
            names.map(|name| dir.path().join(name))
        );
    }

    #[test]
    fn preset_is_told_by_the_programs_name() {
        let of = |program: &str| preset_of(OsStr::new(program));
        assert_eq!(
            of("/opt/x/containerd-shim-caisson-strict-v2").as_deref(),
            Some("strict")
        );
        assert_eq!(of(&program_of("a-b")).as_deref(), Some("a-b"));
        for program in [PROGRAM, "/usr/bin/caisson", "containerd-shim-runc-v2"] {
            assert_eq!(of(program), None, "{program}");
        }
    }

    #[test]
    fn config_that_is_not_there_is_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let config = load_with(&dir.path().join("config.toml"), None).unwrap();
        assert_eq!(config, NodeConfig::default());
    }

    #[test]
    fn drop_in_that_is_not_written_yet_is_read_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        fs::create_dir(dir.path().join("config.d")).unwrap();
        let drop_in = |name: &str| dir.path().join("config.d").join(name);
        fs::write(&main, "[vm]\ndefault_cpus = 1").unwrap();
        fs::write(drop_in("60.toml"), "[vm]\ndefault_memory_mib = 600").unwrap();
        let text = "[vm]\ndefault_cpus = 5\ndefault_memory_mib = 500";
        let config = load_with(&main, Some((&drop_in("50.toml"), text))).unwrap();
        assert_eq!(config.vm.default_cpus, 5);
        assert_eq!(config.vm.default_memory_mib, 600);
    }

    #[test]
    fn release_beside_the_program_counts_where_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("libexec")).unwrap();
        fs::create_dir_all(dir.path().join("guest")).unwrap();
        for file in [
            "libexec/virtiofsd",
            "libexec/vhost-device-vsock",
            "guest/vmlinux",
        ] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        assert_eq!(release_at(dir.path()), None);
        fs::write(dir.path().join("guest/initramfs.cpio"), "").unwrap();
        let text = release_at(dir.path()).unwrap();
        let named = "[guest]\nkernel = \"/own/vmlinux\"".to_owned();
        let files = [
            ("beside".to_owned(), text),
            ("config.toml".to_owned(), named),
        ];
        let config = NodeConfig::parse(&files).unwrap();
        assert_eq!(config.guest.kernel, Some("/own/vmlinux".into()));
        assert_eq!(
            config.guest.initramfs,
            Some(dir.path().join("guest/initramfs.cpio"))
        );
        assert_eq!(
            config.hypervisor.virtiofsd,
            dir.path().join("libexec/virtiofsd")
        );
    }
}
