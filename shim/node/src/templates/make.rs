//! Makes templates.

use std::{
    fs::{self, File},
    future::Future,
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use caisson_oci::NodeConfig;
use caisson_vmm::{Accelerator, Secret, Translations, VmSpec, Vmm};

use super::{
    about::{now, About, Content, MACHINE, TRANSLATIONS},
    error::{Result, TemplateError},
    machine::{key, shape},
    store::{look_into, remove_folder, retire, store, NEW},
};
use crate::{
    host::{chain::chain, error::OnFile, folder::make_private},
    state::PodDir,
};

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
    let about = About::read(dir).ok_or_else(missing)?;
    let found = about.template(dir).ok_or_else(missing)?;
    let new = dir.join(format!(".{TRANSLATIONS}"));
    let file = File::create(&new).map_err(TemplateError::file("create", &new))?;
    let template = caisson_vmm::Template {
        translations: Translations::To(new.clone()),
        ..found
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
        ..about
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

#[cfg(test)]
mod tests {
    use caisson_vmm::{Device, Vm};

    use super::*;
    use crate::templates::{
        machine::bare,
        store::{find, RETRY},
    };

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
        let mut about = About::read(&dir).unwrap();
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
