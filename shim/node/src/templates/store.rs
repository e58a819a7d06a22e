//! The templates of a node.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use caisson_oci::NodeConfig;
use caisson_vmm::{Accelerator, Translations, VmSpec};

use super::{
    about::{About, Content, MACHINE, TRANSLATIONS},
    error::{Result, TemplateError},
    machine::key,
};
use crate::host::error::OnFile;

/// What the name of a template's folder ends with until the template is whole.
pub(super) const NEW: &str = ".new";
/// How long it is not tried again after a failure.
pub(super) const RETRY: Duration = Duration::from_secs(24 * 3600);
/// How long a template is kept beside one that was made later.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// A template in the store.
#[derive(Debug)]
pub struct Template {
    /// The folder's name.
    pub key: String,
    pub about: About,
    /// Bytes on the disk.
    pub used: u64,
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
pub(super) fn look_into(dir: &Path, accelerator: Accelerator) -> Found {
    let Some(about) = About::read(dir) else {
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
                about: About::read(&entry.path())?,
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
pub(super) fn retire(config: &NodeConfig, kept: &str) -> Result<()> {
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

pub(super) fn store(config: &NodeConfig) -> PathBuf {
    config.store_dir.join("templates")
}

pub(super) fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(TemplateError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}
