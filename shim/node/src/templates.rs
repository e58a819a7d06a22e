//! Keeps the templates of this node's bare VMs, from which pods start instead of booting.
//!
//! A template is a folder of the store, named by a digest of everything that its VM depends on:
//!
//! ```text
//! <store_dir>/templates/<key>/machine       what caisson_vmm::Vmm::make_template wrote
//! <store_dir>/templates/<key>/translations  what an emulator made of the guest's instructions
//! <store_dir>/templates/<key>/about.json    when it was made, sizes and sha256 of the two
//! <store_dir>/templates/<key>.new           the folder to come
//! <store_dir>/templates/.<key>              locked by the one process that makes the template
//! ```
//!
//! Three quarters of the time that an emulator needs for a start go into translating instructions
//! that run for the first time. So a first VM starts from the template for a rehearsal, in which it
//! does what a pod asks for, and the emulator writes down its translations. They hold nothing of a
//! pod either.
//!
//! If a template or its translations can't be made, `about.json` says why, and it is not tried
//! again for a day.
//!
//! It holds nothing of a pod: its guest has done nothing but boot. A template whose files do not
//! fit together is not used, and one that no VM starts from is [discarded](discard). Nothing hashes
//! a template when a pod starts; `caisson template list` does.

use std::{
    fs::{self, File},
    future::Future,
    io,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use caisson_oci::{NodeConfig, VmSize};
use caisson_vmm::{Accelerator, Credentials, Guest, Placement, Secret, Translations, VmSpec, Vmm};
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

/// The last word of the command line by which the shim makes the template, as `start` and `delete`
/// are of containerd's.
pub const ACTION: &str = "template";

const MACHINE: &str = "machine";
const TRANSLATIONS: &str = "translations";
const ABOUT: &str = "about.json";
/// What the name of a template's folder ends with until the template is whole.
const NEW: &str = ".new";
/// How long it is not tried again after a failure.
const RETRY: Duration = Duration::from_secs(24 * 3600);
/// How long a template is kept beside one that was made later.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// What is known about a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The version of Caisson that made it.
    pub version: String,
    /// When it was last worked on, in seconds since 1970.
    pub made: u64,
    /// Its file.
    #[serde(flatten)]
    pub machine: Content,
    /// The file with the translations, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub translations: Option<Content>,
    /// Why it has none, where an emulator would use them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untranslated: Option<String>,
    /// What its VM is like, for people.
    pub shape: String,
    /// Why it could not be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Its length in bytes.
    pub length: u64,
    /// The sha256 of what it holds, in hex digits.
    pub sha256: String,
}

impl Content {
    fn of(path: &Path) -> Result<Self> {
        let length = fs::metadata(path).map_err(TemplateError::file("look at", path))?;
        Ok(Self {
            length: length.len(),
            sha256: digest(path)?,
        })
    }

    /// Whether a file has this length.
    fn fits(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|found| found.len() == self.length)
    }
}

impl About {
    fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        Ok(file::replace(&dir.join(ABOUT), &text)?)
    }

    /// Returns the template, if the files in its folder fit together.
    fn template(&self, dir: &Path) -> Option<caisson_vmm::Template> {
        let (machine, translations) = (dir.join(MACHINE), dir.join(TRANSLATIONS));
        if self.failed.is_some() || !self.machine.fits(&machine) {
            return None;
        }
        let translations = match &self.translations {
            Some(content) if !content.fits(&translations) => return None,
            Some(_) => Translations::From(translations),
            None => Translations::Own,
        };
        Some(caisson_vmm::Template {
            machine,
            translations,
        })
    }

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

/// What the store has for VMs of one kind.
#[derive(Debug)]
pub struct Found {
    pub template: Option<caisson_vmm::Template>,
    /// Whether the template is to be made: there is none, or it lacks translations. What failed is
    /// not tried again for a day.
    pub is_wanted: bool,
}

/// Returns what there is for VMs like `spec`.
pub fn find(config: &NodeConfig, spec: &VmSpec) -> Found {
    look_into(&store(config).join(key(config, spec)), spec.accelerator)
}

/// Returns what there is in a template's folder. It has a template if the files fit together.
fn look_into(dir: &Path, accelerator: Accelerator) -> Found {
    let Some(about) = about(dir) else {
        return Found {
            template: None,
            is_wanted: true,
        };
    };
    let is_given_up = |failed: &Option<String>| failed.is_some() && about.age() < RETRY;
    let template = about.template(dir);
    let is_wanted = match &template {
        None => !is_given_up(&about.failed),
        Some(template) => {
            accelerator == Accelerator::Tcg
                && template.translations == Translations::Own
                && !is_given_up(&about.untranslated)
        }
    };
    Found {
        template,
        is_wanted,
    }
}

/// Makes the template for VMs like `spec`, or what it lacks. Returns whether it did: there may be
/// one, or another process may be making it.
///
/// `rehearse` gets a VM that starts from it, and the state folder for that. It has the VM do what a
/// pod asks for and stops it, or says why it can't.
pub async fn make<F>(
    config: &NodeConfig,
    vmm: &dyn Vmm,
    spec: &VmSpec,
    rehearse: impl FnOnce(VmSpec, PathBuf) -> F + Send,
) -> Result<bool>
where
    F: Future<Output = std::result::Result<(), String>> + Send,
{
    let store = store(config);
    make_private(&store).map_err(TemplateError::file("create", &store))?;
    let key = key(config, spec);
    let lock = store.join(format!(".{key}"));
    let Some(_locked) = begin(&lock)? else {
        return Ok(false);
    };
    let found = look_into(&store.join(&key), spec.accelerator);
    let made = match found.is_wanted {
        true => {
            let alone = make_alone(config, vmm, spec, &key, found.template.is_some(), rehearse);
            alone.await.map(|()| true)
        }
        false => Ok(false),
    };
    fs::remove_file(&lock).map_err(TemplateError::file("remove", &lock))?;
    made
}

/// Makes a template, or what it lacks, while no other process does.
async fn make_alone<F>(
    config: &NodeConfig,
    vmm: &dyn Vmm,
    spec: &VmSpec,
    key: &str,
    is_there: bool,
    rehearse: impl FnOnce(VmSpec, PathBuf) -> F + Send,
) -> Result<()>
where
    F: Future<Output = std::result::Result<(), String>> + Send,
{
    let dir = store(config).join(key);
    // Removes what a maker left that was killed.
    let pod = PodDir::create(config, &format!("template-{key}"))?;
    let spec = VmSpec {
        id: "template".to_owned(),
        dir: pod.vm(),
        credentials: pod.credentials,
        placement: pod.placement.clone(),
        template: None,
        secret: Secret::random().map_err(TemplateError::file("read", "/dev/urandom"))?,
        ..spec.clone()
    };
    if !is_there {
        make_machine(vmm, &spec, &dir).await?;
        retire(config, key)?;
    }
    if spec.accelerator == Accelerator::Tcg {
        let place = pod.path().to_owned();
        make_translations(spec, &dir, |spec| rehearse(spec, place)).await?;
    }
    Ok(())
}

/// Makes a template without translations. If that fails, the folder says so.
async fn make_machine(vmm: &dyn Vmm, spec: &VmSpec, dir: &Path) -> Result<()> {
    let mut new = dir.as_os_str().to_owned();
    new.push(NEW);
    let new = PathBuf::from(new);
    remove_folder(&new)?;
    fs::create_dir(&new).map_err(TemplateError::file("create", &new))?;
    let machine = new.join(MACHINE);
    let file = File::create(&machine).map_err(TemplateError::file("create", &machine))?;
    let made = vmm.make_template(spec.clone(), &machine).await;
    let about = About {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        made: now(),
        machine: Content::of(&machine)?,
        translations: None,
        untranslated: None,
        shape: shape(spec),
        failed: made.as_ref().err().map(|error| chain(error)),
    };
    match &made {
        Ok(()) => keep(&file),
        // Only a file that nobody has open makes room for what is written next.
        Err(_) => {
            drop(file);
            fs::remove_file(&machine)
        }
    }
    .map_err(TemplateError::file("write", &machine))?;
    about.write(&new)?;
    // What is there does not fit together.
    remove_folder(dir)?;
    fs::rename(&new, dir).map_err(TemplateError::file("write", dir))?;
    Ok(made?)
}

/// Has a VM that starts from a template rehearse, and keeps its translations. If that fails, the
/// folder says so: the template is of use without them, too.
async fn make_translations<F>(
    spec: VmSpec,
    dir: &Path,
    rehearse: impl FnOnce(VmSpec) -> F,
) -> Result<()>
where
    F: Future<Output = std::result::Result<(), String>> + Send,
{
    let missing = || TemplateError::Missing(dir.display().to_string());
    let found = look_into(dir, spec.accelerator).template;
    let new = dir.join(format!(".{TRANSLATIONS}"));
    let file = File::create(&new).map_err(TemplateError::file("create", &new))?;
    let template = caisson_vmm::Template {
        translations: Translations::To(new.clone()),
        ..found.ok_or_else(missing)?
    };
    let rehearsed = rehearse(VmSpec {
        template: Some(template),
        ..spec
    })
    .await;
    let is_empty = file.metadata().is_ok_and(|written| written.len() == 0);
    let mut about = About {
        made: now(),
        untranslated: match rehearsed {
            Ok(()) if is_empty => Some("the VMM wrote none".to_owned()),
            Ok(()) => None,
            Err(why) => Some(why),
        },
        ..about(dir).ok_or_else(missing)?
    };
    if about.untranslated.is_none() {
        keep(&file).map_err(TemplateError::file("write", &new))?;
        about.translations = Some(Content::of(&new)?);
        let path = dir.join(TRANSLATIONS);
        fs::rename(&new, &path).map_err(TemplateError::file("write", &path))?;
    } else {
        fs::remove_file(&new).map_err(TemplateError::file("remove", &new))?;
    }
    about.write(dir)
}

/// Makes a file one that nobody writes any more.
fn keep(file: &File) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(0o400))?;
    file.sync_all()
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
            let used = [MACHINE, TRANSLATIONS].map(|name| {
                let file = fs::metadata(entry.path().join(name));
                file.map_or(0, |file| file.blocks() * 512)
            });
            let is_made = !key.starts_with('.') && !key.ends_with(NEW);
            is_made.then_some(Template {
                key,
                about: about(&entry.path())?,
                used: used.iter().sum(),
            })
        })
        .collect();
    templates.sort_by_key(|template| std::cmp::Reverse(template.about.made));
    Ok(templates)
}

/// Returns whether the files of a template are as they were made.
pub fn is_whole(config: &NodeConfig, template: &Template) -> Result<bool> {
    let dir = store(config).join(&template.key);
    let About {
        machine,
        translations,
        ..
    } = &template.about;
    let is_translated = match translations {
        Some(content) => Content::of(&dir.join(TRANSLATIONS))? == *content,
        None => true,
    };
    Ok(is_translated && Content::of(&dir.join(MACHINE))? == *machine)
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

/// Removes the templates that were made long ago, of VMs that this node has no more, and what
/// makers that were killed have left.
fn retire(config: &NodeConfig, kept: &str) -> Result<()> {
    for template in list(config)? {
        if template.about.age() > KEPT && template.key != kept {
            remove_folder(&store(config).join(&template.key))?;
        }
    }
    let store = store(config);
    let entries = fs::read_dir(&store).map_err(TemplateError::file("list", &store))?;
    for entry in entries.flatten() {
        let changed = entry.metadata().and_then(|entry| entry.modified());
        let is_old = changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age > KEPT));
        if is_old
            && entry
                .file_name()
                .as_encoded_bytes()
                .ends_with(NEW.as_bytes())
        {
            remove_folder(&entry.path())?;
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

/// Locks the file of a template that is to be made. `None` if another process makes it.
fn begin(path: &Path) -> Result<Option<File>> {
    let mut options = File::options();
    let file = options
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
    // The maker before may have been done in between, and the file removed.
    let same = fs::metadata(path).is_ok_and(|there| {
        file.metadata()
            .is_ok_and(|opened| (opened.dev(), opened.ino()) == (there.dev(), there.ino()))
    });
    Ok(same.then_some(file))
}

fn shape(spec: &VmSpec) -> String {
    format!(
        "{} of {} cpus, {} of {} MiB, {:?}",
        spec.cpus,
        spec.max_cpus,
        spec.memory >> 20,
        spec.max_memory >> 20,
        spec.accelerator
    )
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
    use caisson_vmm::{Device, Vm};

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

    /// Makes templates of a few bytes, of which no VM starts.
    #[derive(Debug)]
    struct Writes;

    #[async_trait::async_trait]
    impl Vmm for Writes {
        async fn boot(&self, _: VmSpec, _: Vec<Device>) -> caisson_vmm::Result<Box<dyn Vm>> {
            Err(caisson_vmm::Error::NotPossible { what: "booting" })
        }

        async fn make_template(&self, _: VmSpec, to: &Path) -> caisson_vmm::Result<()> {
            fs::write(to, "saved").unwrap();
            Ok(())
        }
    }

    /// A store with a template of an emulated VM, which has not rehearsed yet.
    async fn made() -> (tempfile::TempDir, NodeConfig, VmSpec, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let config = NodeConfig {
            store_dir: temp.path().to_owned(),
            ..NodeConfig::default()
        };
        let spec = bare(&config, Accelerator::Tcg).unwrap();
        let dir = store(&config).join(key(&config, &spec));
        fs::create_dir(store(&config)).unwrap();
        assert!(find(&config, &spec).is_wanted);
        make_machine(&Writes, &spec, &dir).await.unwrap();
        (temp, config, spec, dir)
    }

    #[tokio::test]
    async fn template_is_there_before_its_vm_has_rehearsed_and_still_lacks_something() {
        let (_temp, config, spec, _) = made().await;
        let found = find(&config, &spec).template.unwrap();
        assert_eq!(found.translations, Translations::Own);
        assert!(find(&config, &spec).is_wanted);
        let of_kvm = VmSpec {
            accelerator: Accelerator::Kvm,
            ..spec
        };
        let dir = store(&config).join(key(&config, &of_kvm));
        make_machine(&Writes, &of_kvm, &dir).await.unwrap();
        assert!(!find(&config, &of_kvm).is_wanted);
    }

    #[tokio::test]
    async fn translations_of_a_rehearsal_are_the_templates() {
        let (_temp, config, spec, dir) = made().await;
        let rehearse = |spec: VmSpec| async {
            let template = spec.template.unwrap();
            let Translations::To(path) = template.translations else {
                return Err("nothing to write to".to_owned());
            };
            fs::write(path, "translated").map_err(|error| error.to_string())
        };
        make_translations(spec.clone(), &dir, rehearse)
            .await
            .unwrap();
        let found = find(&config, &spec).template.unwrap();
        assert_eq!(
            found.translations,
            Translations::From(dir.join(TRANSLATIONS))
        );
        assert!(!find(&config, &spec).is_wanted);
        fs::write(dir.join(TRANSLATIONS), "cut").unwrap();
        assert_eq!(find(&config, &spec).template, None);
        assert!(find(&config, &spec).is_wanted);
    }

    #[tokio::test]
    async fn rehearsal_that_fails_leaves_a_template_and_is_tried_again_after_a_day() {
        let (_temp, config, spec, dir) = made().await;
        let rehearse = |_| async { Err("no tap".to_owned()) };
        make_translations(spec.clone(), &dir, rehearse)
            .await
            .unwrap();
        let found = find(&config, &spec).template.unwrap();
        assert_eq!(found.translations, Translations::Own);
        assert!(!find(&config, &spec).is_wanted);
        let mut about = about(&dir).unwrap();
        assert_eq!(about.untranslated.as_deref(), Some("no tap"));
        about.made -= RETRY.as_secs() + 1;
        about.write(&dir).unwrap();
        assert!(find(&config, &spec).is_wanted);
    }

    #[tokio::test]
    async fn template_that_another_process_makes_is_left_to_it() {
        let (_temp, config, spec, _) = made().await;
        let lock = store(&config).join(format!(".{}", key(&config, &spec)));
        let _other = begin(&lock).unwrap().unwrap();
        let rehearse = |_, _| async { Err("it is not asked".to_owned()) };
        assert!(!make(&config, &Writes, &spec, rehearse).await.unwrap());
    }
}
