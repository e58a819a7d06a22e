//! Keeps the templates of this node's bare VMs, from which pods start instead of booting.
//!
//! A template is a folder of the store, named by a digest of everything that its VM depends on:
//!
//! ```text
//! <store_dir>/templates/<key>/machine       what caisson_vmm::Vmm::make_template wrote
//! <store_dir>/templates/<key>/about.json    when it was made, its size and its sha256
//! <store_dir>/templates/.<key>              being made; its maker holds a lock on it
//! ```
//!
//! If no template can be made, `about.json` says why, and it is not tried again for a day.
//!
//! It holds nothing of a pod: its guest has done nothing but boot. A template whose files do not
//! fit together is not used, and one that no VM starts from is [discarded](discard). Nothing hashes
//! a template when a pod starts; `caisson template list` does.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use caisson_oci::{NodeConfig, VmSize};
use caisson_vmm::{Accelerator, Credentials, Guest, Placement, Secret, VmSpec, Vmm};
use rustix::fs::SeekFrom;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    accelerator,
    config::guest_image,
    host::{
        chain::chain,
        error::{FileError, OnFile},
        file,
        folder::make_private,
        size::{host_cpus, host_memory_mib},
    },
    state::{PodDir, StateError},
};

/// What can go wrong with a template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The state folder of the template's VM can't be made.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its VM failed.
    #[error("the template's VM")]
    Vm(#[from] caisson_vmm::Error),
    /// An operation on a file or folder failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// No template has that name.
    #[error("no template {0}")]
    Missing(String),
}

type Result<T> = std::result::Result<T, TemplateError>;

const MACHINE: &str = "machine";
const ABOUT: &str = "about.json";
/// How long it is not tried again after a failure.
const RETRY: Duration = Duration::from_secs(24 * 3600);
/// How long a template is kept beside one that was made later.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// What is known about a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The version of Caisson that made it.
    pub version: String,
    /// In seconds since 1970.
    pub made: u64,
    /// The length of its file in bytes.
    pub length: u64,
    /// The sha256 of what its file holds, in hex digits.
    pub sha256: String,
    /// What its VM is like, for people.
    pub shape: String,
    /// Why it could not be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

impl About {
    fn age(&self) -> Duration {
        Duration::from_secs(now().saturating_sub(self.made))
    }
}

/// A template in the store.
#[derive(Debug)]
pub struct Template {
    /// The folder's name.
    pub key: String,
    pub about: About,
    /// Bytes on the disk.
    pub used: u64,
}

/// The size of a VM that starts from a template. One size serves every pod, which gets its own
/// afterwards. Nearly no pod has less, since it has `vm.memory_overhead_mib` in any case.
pub const SIZE: VmSize = VmSize {
    cpus: 1,
    memory_mib: 128,
};

/// Returns a bare VM of that size, of no pod and without a place on the host yet.
pub fn bare(
    config: &NodeConfig,
    accelerator: Accelerator,
) -> std::result::Result<VmSpec, FileError> {
    Ok(VmSpec {
        id: String::new(),
        dir: PathBuf::new(),
        guest: guest_image(config),
        cpus: SIZE.cpus,
        max_cpus: host_cpus(),
        memory: SIZE.memory_mib << 20,
        max_memory: config.vm.max_memory_mib.min(host_memory_mib()) << 20,
        accelerator,
        credentials: Credentials { uid: 0, gid: 0 },
        placement: Placement::default(),
        template: None,
        secret: Secret::random().map_err(FileError::file("read", "/dev/urandom"))?,
    })
}

/// Returns the file of the template for VMs like `spec`, if there is one.
pub fn find(config: &NodeConfig, spec: &VmSpec) -> Option<PathBuf> {
    whole(&store(config).join(key(config, spec)))
}

/// Returns the file of the template in a folder, if the two files there fit together.
fn whole(dir: &Path) -> Option<PathBuf> {
    let machine = dir.join(MACHINE);
    let about = about(dir)?;
    let length = fs::metadata(&machine).ok()?.len();
    (length == about.length).then_some(machine)
}

/// Makes the template for VMs like `spec`, and returns whether it did: there may be one, or another
/// process may be making it.
pub async fn make(config: &NodeConfig, vmm: &dyn Vmm, spec: &VmSpec) -> Result<bool> {
    let key = key(config, spec);
    let store = store(config);
    let dir = store.join(&key);
    make_private(&store).map_err(TemplateError::file("create", &store))?;
    let part = store.join(format!(".{key}"));
    let Some(file) = begin(&part)? else {
        return Ok(false);
    };
    let tried = about(&dir).is_some_and(|about| about.failed.is_some() && about.age() < RETRY);
    if tried || whole(&dir).is_some() {
        fs::remove_file(&part).map_err(TemplateError::file("remove", &part))?;
        return Ok(false);
    }
    let pod = PodDir::create(config, &format!("template-{}", std::process::id()))?;
    let spec = VmSpec {
        id: "template".to_owned(),
        dir: pod.vm(),
        credentials: pod.credentials,
        placement: pod.placement.clone(),
        template: None,
        ..spec.clone()
    };
    let made = vmm.make_template(spec.clone(), &part).await;
    let failed = made.as_ref().err().map(|error| chain(error));
    let about = describe(&part, &spec, failed)?;
    // What is there does not fit together.
    remove_folder(&dir)?;
    let new = store.join(format!(".{key}.new"));
    remove_folder(&new)?;
    fs::create_dir(&new).map_err(TemplateError::file("create", &new))?;
    let text = serde_json::to_vec_pretty(&about).unwrap_or_default();
    file::replace(&new.join(ABOUT), &text)?;
    let machine = new.join(MACHINE);
    match made {
        Ok(()) => file
            .set_permissions(fs::Permissions::from_mode(0o400))
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&part, &machine)),
        Err(_) => fs::remove_file(&part),
    }
    .map_err(TemplateError::file("write", &machine))?;
    fs::rename(&new, &dir).map_err(TemplateError::file("write", &dir))?;
    made?;
    retire(config, &key)?;
    Ok(true)
}

/// Takes a template away whose VM did not start. VMs that started from it go on.
pub fn discard(machine: &Path) -> Result<()> {
    match machine.parent() {
        Some(dir) => remove_folder(dir),
        None => Ok(()),
    }
}

/// Returns the templates of the node, the newest first.
pub fn list(config: &NodeConfig) -> Result<Vec<Template>> {
    let dir = store(config);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(TemplateError::file("list", dir)(error)),
    };
    let mut templates: Vec<Template> = entries
        .flatten()
        .filter_map(|entry| {
            let key = entry.file_name().into_string().ok()?;
            let machine = fs::metadata(entry.path().join(MACHINE));
            let used = machine.map_or(0, |machine| machine.blocks() * 512);
            (!key.starts_with('.')).then_some(Template {
                key,
                about: about(&entry.path())?,
                used,
            })
        })
        .collect();
    templates.sort_by_key(|template| std::cmp::Reverse(template.about.made));
    Ok(templates)
}

/// Returns whether the file of a template is as it was made.
pub fn is_whole(config: &NodeConfig, template: &Template) -> Result<bool> {
    let machine = store(config).join(&template.key).join(MACHINE);
    Ok(digest(&machine)? == template.about.sha256)
}

/// Removes a template. VMs that started from it go on.
pub fn remove(config: &NodeConfig, key: &str) -> Result<()> {
    let known = list(config)?.into_iter().any(|found| found.key == key);
    match known {
        true => remove_folder(&store(config).join(key)),
        false => Err(TemplateError::Missing(key.to_owned())),
    }
}

/// Removes all templates, and what is left of those that were being made.
pub fn remove_all(config: &NodeConfig) -> Result<()> {
    remove_folder(&store(config))
}

/// Removes the templates that were made long ago, of VMs that this node has no more.
fn retire(config: &NodeConfig, kept: &str) -> Result<()> {
    for template in list(config)? {
        if template.about.age() > KEPT && template.key != kept {
            remove_folder(&store(config).join(&template.key))?;
        }
    }
    Ok(())
}

fn store(config: &NodeConfig) -> PathBuf {
    config.store_dir.join("templates")
}

fn about(dir: &Path) -> Option<About> {
    serde_json::from_slice(&fs::read(dir.join(ABOUT)).ok()?).ok()
}

/// Opens the file that a template is made in, empty and locked. `None` if another process makes it.
fn begin(path: &Path) -> Result<Option<File>> {
    let mut options = File::options();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(TemplateError::file("open", path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(error)) => {
            return Err(TemplateError::file("lock", path)(error))
        }
    }
    // The maker before may have been done in between, and its file moved away.
    let same = fs::metadata(path).is_ok_and(|there| {
        file.metadata()
            .is_ok_and(|opened| (opened.dev(), opened.ino()) == (there.dev(), there.ino()))
    });
    if !same {
        return Ok(None);
    }
    file.set_len(0)
        .map_err(TemplateError::file("write", path))?;
    Ok(Some(file))
}

fn describe(machine: &Path, spec: &VmSpec, failed: Option<String>) -> Result<About> {
    let length = fs::metadata(machine).map_err(TemplateError::file("look at", machine))?;
    Ok(About {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        made: now(),
        length: length.len(),
        sha256: digest(machine)?,
        shape: format!(
            "{} of {} cpus, {} of {} MiB, {:?}",
            spec.cpus,
            spec.max_cpus,
            spec.memory >> 20,
            spec.max_memory >> 20,
            spec.accelerator
        ),
        failed,
    })
}

/// Hashes the pages of a file that are not zero, each with its number. Most of a template's file is
/// a hole, as long as the memory that its VM may be given.
fn digest(path: &Path) -> Result<String> {
    const PAGE: usize = 4096;
    let hashed = || -> io::Result<_> {
        let file = File::open(path)?;
        let mut hash = Sha256::new();
        let mut pages = vec![0; 256 * PAGE];
        let mut at = 0;
        loop {
            at = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
                Ok(data) => data - data % PAGE as u64,
                // Nothing but a hole is left (lseek(2)).
                Err(rustix::io::Errno::NXIO) => return Ok(hash),
                Err(error) => return Err(error.into()),
            };
            let read = file.read_at(&mut pages, at)?;
            for (number, page) in (at / PAGE as u64..).zip(pages[..read].chunks(PAGE)) {
                if page.iter().any(|byte| *byte != 0) {
                    hash.update(number.to_le_bytes());
                    hash.update(page);
                }
            }
            at += read as u64;
        }
    };
    let hash = hashed().map_err(TemplateError::file("read", path))?;
    Ok(hex::encode(hash.finalize()))
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(TemplateError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// Identifies what the state of a bare VM depends on: what [`accelerator::key`] has, its shape, the
/// accelerator and the host's cpu.
fn key(config: &NodeConfig, spec: &VmSpec) -> String {
    let Guest {
        modules, log_level, ..
    } = &spec.guest;
    let shape = (spec.cpus, spec.max_cpus, spec.memory, spec.max_memory);
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = |key: &str| {
        let line = cpus.lines().find(|line| line.starts_with(key));
        line.unwrap_or_default().to_owned()
    };
    let all = format!(
        "{} {} {shape:?} {:?} {} {log_level} {} {}",
        env!("CARGO_PKG_VERSION"),
        accelerator::key(config),
        spec.accelerator,
        modules.is_some(),
        cpu("model name"),
        cpu("flags"),
    );
    hex::encode(Sha256::digest(all))[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of 1 GiB whose pages with these numbers hold something.
    fn sparse(pages: &[u64]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 30).unwrap();
        for page in pages {
            file.as_file()
                .write_all_at(&[7; 4096], page * 4096)
                .unwrap();
        }
        file
    }

    #[test]
    fn digest_tells_files_of_other_pages_apart() {
        let one = digest(sparse(&[3, 200_000]).path()).unwrap();
        assert_eq!(one, digest(sparse(&[3, 200_000]).path()).unwrap());
        assert_ne!(one, digest(sparse(&[3, 200_001]).path()).unwrap());
        assert_ne!(one, digest(sparse(&[3]).path()).unwrap());
    }

    #[test]
    fn digest_is_the_same_for_zeros_and_holes() {
        let file = sparse(&[3]);
        let before = digest(file.path()).unwrap();
        file.as_file().write_all_at(&[0; 8192], 5 * 4096).unwrap();
        assert_eq!(before, digest(file.path()).unwrap());
    }
}
