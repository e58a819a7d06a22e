//! Manages the versions on a node: `<prefix>/versions/<version>-<digest>/{bin,libexec,guest}`,
//! `<prefix>/current`, a link to the version that pods start with, and `<prefix>/presets`, with
//! links to that version's shim for the presets of the configuration.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{ensure, Context, Result};
use caisson_node::config::{preset_of, program_of};
use sha2::{Digest, Sha256};

use super::files;
use crate::shim::PROGRAM;

/// The files without which a release is not complete.
const REQUIRED: [&str; 7] = [
    "bin/containerd-shim-caisson-v2",
    "bin/caisson",
    "bin/caisson-remote",
    "libexec/virtiofsd",
    "libexec/vhost-device-vsock",
    "guest/vmlinux",
    "guest/initramfs.cpio",
];
/// The beginning of the names of folders that are being made or removed.
const PART: &str = ".";

/// A release in a folder, such as `target/dist`.
#[derive(Debug)]
pub struct Payload {
    from: PathBuf,
    /// Paths relative to that folder.
    files: Vec<PathBuf>,
    /// `<version>-<first 12 digits of the sha256 of all files>`.
    pub name: String,
}

impl Payload {
    /// Reads a folder and all its files.
    pub fn read(from: &Path) -> Result<Self> {
        for name in REQUIRED {
            let path = from.join(name);
            ensure!(
                path.is_file(),
                "no release of Caisson in {}: {name} is missing; say with --from where one is",
                from.display()
            );
        }
        let (files, digest) = digest(from)?;
        Ok(Self {
            from: from.to_owned(),
            files,
            name: format!("{}-{}", env!("CARGO_PKG_VERSION"), &digest[..12]),
        })
    }

    /// Returns where it is installed.
    pub fn dir(&self, prefix: &Path) -> PathBuf {
        versions_dir(prefix).join(&self.name)
    }

    /// Copies the release to its place if it is not there, and returns whether it did. An installed
    /// one that was changed is made anew.
    pub fn install(&self, prefix: &Path) -> Result<bool> {
        let dir = self.dir(prefix);
        if dir.exists() {
            let whole = digest(&dir).is_ok_and(|(_, digest)| self.name.ends_with(&digest[..12]));
            if whole {
                return Ok(false);
            }
            discard(&dir)?;
        }
        let part = dir.with_file_name(format!("{PART}{}", self.name));
        files::remove_tree(&part)?;
        for file in &self.files {
            let (from, to) = (self.from.join(file), part.join(file));
            let copy = || {
                fs::create_dir_all(to.parent().unwrap_or(&part))?;
                fs::copy(&from, &to)?;
                // The mode depends neither on the umask nor on what the source's owner could do.
                let mode = fs::metadata(&from)?.permissions().mode() & 0o111;
                let mode = if mode == 0 { 0o644 } else { 0o755 };
                fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
                fs::File::open(&to)?.sync_all()
            };
            copy().with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
        }
        fs::rename(&part, &dir).with_context(|| format!("move to {}", dir.display()))?;
        files::sync_parent(&dir)?;
        Ok(true)
    }
}

/// Returns the folder of all versions.
pub fn versions_dir(prefix: &Path) -> PathBuf {
    prefix.join("versions")
}

/// Returns the names of the installed versions.
pub fn names(prefix: &Path) -> Vec<String> {
    let entries = fs::read_dir(versions_dir(prefix))
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with(PART)).collect();
    names.sort();
    names
}

/// Returns the link to the version that pods start with.
pub fn current(prefix: &Path) -> PathBuf {
    prefix.join("current")
}

/// Returns the name of the version that pods start with.
pub fn current_name(prefix: &Path) -> Option<String> {
    let target = fs::read_link(current(prefix)).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// Returns the path of the shim through the link.
pub fn shim(prefix: &Path) -> PathBuf {
    current(prefix).join("bin").join(PROGRAM)
}

/// Returns the folder with a link to the shim for each preset.
pub fn links_dir(prefix: &Path) -> PathBuf {
    prefix.join("presets")
}

/// Returns the path of a preset's link to the shim, by which the shim knows the preset.
pub fn link_of(prefix: &Path, preset: &str) -> PathBuf {
    links_dir(prefix).join(program_of(preset))
}

/// Makes the links of these presets. Idempotent.
pub fn link_presets(prefix: &Path, presets: &[String]) -> Result<()> {
    let dir = links_dir(prefix);
    if !presets.is_empty() {
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let shim = Path::new("../current/bin").join(PROGRAM);
    for preset in presets {
        let link = link_of(prefix, preset);
        if fs::read_link(&link).ok().as_ref() != Some(&shim) {
            files::link(&link, &shim)?;
        }
    }
    Ok(())
}

/// Removes the links of all presets except these, and the folder when it is empty. Returns the
/// presets that it removed.
pub fn unlink_presets(prefix: &Path, keep: &[String]) -> Result<Vec<String>> {
    let dir = links_dir(prefix);
    let mut removed = Vec::new();
    for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
        let preset = preset_of(&entry.file_name());
        if preset.as_ref().is_some_and(|preset| keep.contains(preset)) {
            continue;
        }
        let path = entry.path();
        files::remove(&path).with_context(|| format!("remove {}", path.display()))?;
        removed.extend(preset);
    }
    files::remove_empty(&dir)?;
    removed.sort();
    Ok(removed)
}

/// Returns the version that a path is in.
pub fn version_of(prefix: &Path, path: &Path) -> Option<String> {
    let inner = path.strip_prefix(versions_dir(prefix)).ok()?;
    Some(
        inner
            .components()
            .next()?
            .as_os_str()
            .to_string_lossy()
            .into_owned(),
    )
}

/// Returns the versions that processes run from, each with its processes. This process does not
/// count.
pub fn used(prefix: &Path) -> BTreeMap<String, Vec<u32>> {
    let prefix = prefix.canonicalize().unwrap_or_else(|_| prefix.to_owned());
    let mut used: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid) = pid.filter(|pid| *pid != std::process::id()) else {
            continue;
        };
        let program = fs::read_link(entry.path().join("exe"));
        if let Some(version) = program.ok().and_then(|path| version_of(&prefix, &path)) {
            used.entry(version).or_default().push(pid);
        }
    }
    used
}

/// Removes the versions that no process runs from, except `keep`, and what killed runs left.
/// Returns the versions that it removed.
pub fn remove_unused(prefix: &Path, keep: Option<&str>) -> Result<Vec<String>> {
    let used = used(prefix);
    let mut removed = Vec::new();
    for entry in fs::read_dir(versions_dir(prefix))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PART) {
            files::remove_tree(&entry.path())?;
        } else if keep != Some(&name) && !used.contains_key(&name) {
            discard(&entry.path())?;
            removed.push(name);
        }
    }
    Ok(removed)
}

/// Removes a version so that it is never seen half removed.
fn discard(dir: &Path) -> Result<()> {
    let name = dir
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let part = dir.with_file_name(format!("{PART}old-{name}"));
    files::remove_tree(&part)?;
    fs::rename(dir, &part).with_context(|| format!("move {} away", dir.display()))?;
    files::remove_tree(&part)
}

/// Returns the files of a release by name, and the sha256 over their names, whether they are
/// programs, and their contents.
fn digest(dir: &Path) -> Result<(Vec<PathBuf>, String)> {
    let mut found = Vec::new();
    for folder in ["bin", "libexec", "guest"] {
        let mut next = vec![PathBuf::from(folder)];
        while let Some(relative) = next.pop() {
            let path = dir.join(&relative);
            let entries =
                fs::read_dir(&path).with_context(|| format!("read {}", path.display()))?;
            for entry in entries {
                let entry = entry.with_context(|| format!("read {}", path.display()))?;
                let relative = relative.join(entry.file_name());
                match fs::metadata(entry.path()) {
                    Ok(metadata) if metadata.is_dir() => next.push(relative),
                    Ok(metadata) if metadata.is_file() => found.push(relative),
                    _ => {}
                }
            }
        }
    }
    found.sort();
    let mut all = Sha256::new();
    for relative in &found {
        let path = dir.join(relative);
        let read = || -> std::io::Result<_> {
            let mut file = fs::File::open(&path)?;
            let program = file.metadata()?.permissions().mode() & 0o111 != 0;
            let mut digest = Sha256::new();
            std::io::copy(&mut file, &mut digest)?;
            Ok((program, digest.finalize()))
        };
        let (program, digest) = read().with_context(|| format!("read {}", path.display()))?;
        all.update(format!("{} {program} {digest:x}\n", relative.display()));
    }
    Ok((found, hex::encode(all.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(dir: &Path, what: &str) {
        for name in REQUIRED {
            fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
            fs::write(dir.join(name), what).unwrap();
        }
    }

    #[test]
    fn version_is_installed_once_and_removed_when_it_is_not_current() {
        let dir = tempfile::tempdir().unwrap();
        let (from, prefix) = (dir.path().join("from"), dir.path().join("opt"));
        release(&from, "one");
        let one = Payload::read(&from).unwrap();
        fs::create_dir_all(versions_dir(&prefix)).unwrap();
        assert!(one.install(&prefix).unwrap());
        assert!(!one.install(&prefix).unwrap());
        release(&from, "two");
        let two = Payload::read(&from).unwrap();
        assert_ne!(one.name, two.name);
        assert!(two.install(&prefix).unwrap());
        assert_eq!(remove_unused(&prefix, Some(&two.name)).unwrap(), [one.name]);
    }

    #[test]
    fn version_that_was_changed_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (from, prefix) = (dir.path().join("from"), dir.path().join("opt"));
        release(&from, "whole");
        fs::create_dir_all(versions_dir(&prefix)).unwrap();
        let payload = Payload::read(&from).unwrap();
        payload.install(&prefix).unwrap();
        let file = payload.dir(&prefix).join("guest/vmlinux");
        fs::write(&file, "half").unwrap();
        assert!(payload.install(&prefix).unwrap());
        assert_eq!(fs::read_to_string(file).unwrap(), "whole");
    }

    #[test]
    fn links_of_presets_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path();
        fs::create_dir_all(prefix.join("current/bin")).unwrap();
        fs::write(shim(prefix), "the shim").unwrap();
        let both = ["nested", "strict"].map(str::to_owned);
        link_presets(prefix, &both).unwrap();
        link_presets(prefix, &both).unwrap();
        let program = fs::read_to_string(link_of(prefix, "strict"));
        assert_eq!(program.unwrap(), "the shim");
        assert_eq!(unlink_presets(prefix, &both[1..]).unwrap(), ["nested"]);
        assert!(links_dir(prefix).exists());
        assert_eq!(unlink_presets(prefix, &[]).unwrap(), ["strict"]);
        assert!(!links_dir(prefix).exists());
        link_presets(prefix, &[]).unwrap();
        assert!(!links_dir(prefix).exists());
    }

    #[test]
    fn release_that_is_not_whole_is_refused_by_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        release(dir.path(), "");
        fs::remove_file(dir.path().join("guest/vmlinux")).unwrap();
        let error = Payload::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("guest/vmlinux is missing"), "{error}");
    }
}
