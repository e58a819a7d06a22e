//! The folder that holds a node's skills.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use caisson_oci::annotations::{is_sha256, SkillRef};

use super::{
    error::{ManifestError, SkillError},
    image::fs_type,
    manifest::Skill,
    part::{digest_of, Part},
};
use crate::host::{chain::chain, error::OnFile, folder::make_private};

/// A skill's file, opened for a VM. The skill stays in the store until this is dropped.
#[derive(Debug)]
pub struct OpenSkill {
    pub file: File,
    /// Either `squashfs` or `erofs`.
    pub fs_type: &'static str,
}

/// The folder that holds a node's skills.
#[derive(Debug, Clone)]
pub struct SkillStore {
    pub(super) dir: PathBuf,
}

impl SkillStore {
    /// The store of a node; its folder need not exist yet.
    pub fn new(store_dir: &Path) -> Self {
        Self {
            dir: store_dir.join("skills"),
        }
    }

    /// The file of a skill.
    pub fn path(&self, skill: &Skill) -> PathBuf {
        self.dir.join(&skill.digest)
    }

    /// Looks up a skill. If several have the same name and version, returns the newest.
    pub fn get(&self, wanted: &SkillRef) -> Result<Skill, SkillError> {
        let found = match wanted {
            SkillRef::Digest(digest) => self.by_digest(digest)?,
            SkillRef::Version { name, version } => self
                .list()?
                .into_iter()
                .filter(|skill| skill.name == *name && skill.version.as_ref() == Some(version))
                .max_by_key(|skill| skill.created),
        };
        found.ok_or_else(|| SkillError::Missing {
            wanted: wanted.to_string(),
            store: self.dir.clone(),
        })
    }

    fn by_digest(&self, digest: &str) -> Result<Option<Skill>, SkillError> {
        // Anything but a digest could be another path.
        if !is_sha256(digest) || !self.dir.join(digest).is_file() {
            return Ok(None);
        }
        let path = self.manifest_path(digest);
        let skill = Skill::read(&path)?;
        if skill.digest != digest {
            let source = ManifestError::OtherDigest(skill.digest);
            return Err(SkillError::Manifest { path, source });
        }
        Ok(Some(skill))
    }

    /// Opens a skill for a VM and records the use.
    pub fn open(&self, skill: &Skill) -> Result<OpenSkill, SkillError> {
        let path = self.path(skill);
        let file = File::open(&path).map_err(SkillError::file("open", &path))?;
        file.lock_shared()
            .map_err(SkillError::file("lock", &path))?;
        // The file was removed while the lock was waited for.
        if file
            .metadata()
            .map_err(SkillError::file("read", &path))?
            .nlink()
            == 0
        {
            return Err(SkillError::Missing {
                wanted: skill.name.clone(),
                store: self.dir.clone(),
            });
        }
        let manifest = self.manifest_path(&skill.digest);
        File::options()
            .append(true)
            .open(&manifest)
            .and_then(|file| file.set_modified(SystemTime::now()))
            .map_err(SkillError::file("note the use in", &manifest))?;
        let fs_type = fs_type(&file).map_err(SkillError::file("read", &path))?;
        Ok(OpenSkill {
            fs_type: fs_type.ok_or(SkillError::NotAnImage(path))?,
            file,
        })
    }

    /// Lists all skills of the store, by name. Leaves out manifests that can't be read, with a
    /// warning in the log.
    pub fn list(&self) -> Result<Vec<Skill>, SkillError> {
        let mut skills = Vec::new();
        for name in self.names()? {
            if !is_sha256(&name) {
                continue;
            }
            match self.by_digest(&name) {
                Ok(skill) => skills.extend(skill),
                Err(error) => log::warn!("skill left out: {}", chain(&error)),
            }
        }
        skills.sort_by(|a, b| {
            (&a.name, &a.version, &a.digest).cmp(&(&b.name, &b.version, &b.digest))
        });
        Ok(skills)
    }

    pub(super) fn names(&self) -> Result<Vec<String>, SkillError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(SkillError::file("read", &self.dir)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(SkillError::file("read", &self.dir))?;
            names.extend(entry.file_name().into_string().ok());
        }
        Ok(names)
    }

    /// Copies a file into the store under its digest. Adding an existing skill changes only the
    /// manifest.
    ///
    /// `skill` gives the manifest; its digest, size and time are filled in.
    pub fn add(&self, source: &Path, skill: Skill) -> Result<Skill, SkillError> {
        let mut from = File::open(source).map_err(SkillError::file("open", source))?;
        if fs_type(&from)
            .map_err(SkillError::file("read", source))?
            .is_none()
        {
            return Err(SkillError::NotAnImage(source.to_owned()));
        }
        let mut part = self.part(&std::process::id().to_string())?;
        let copied = part.restart().and_then(|()| {
            let mut buffer = vec![0; 1 << 20];
            loop {
                match from
                    .read(&mut buffer)
                    .map_err(SkillError::file("read", source))?
                {
                    0 => return Ok(()),
                    length => part.write(&buffer[..length])?,
                }
            }
        });
        if let Err(error) = copied {
            part.discard()?;
            return Err(error);
        }
        let (digest, size) = (part.digest(), part.size());
        self.keep(
            part,
            Skill {
                digest,
                size,
                ..skill
            },
        )
    }

    /// Opens a file that is being written. Resumes what an interrupted writer left under the same
    /// name. If another writer is working on it, waits until that writer ends.
    pub fn part(&self, name: &str) -> Result<Part, SkillError> {
        make_private(&self.dir).map_err(SkillError::file("create", &self.dir))?;
        let path = self.dir.join(format!(".part-{name}"));
        loop {
            let part = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(SkillError::file("create", &path))?;
            part.lock().map_err(SkillError::file("lock", &path))?;
            let ours = part.metadata().map_err(SkillError::file("read", &path))?;
            // The other writer may have renamed or removed it.
            if fs::metadata(&path).is_ok_and(|named| named.ino() == ours.ino()) {
                return Part::resume(part, path);
            }
        }
    }

    /// Renames a part, which makes it a skill of the store. It is on disk by then.
    pub fn keep(&self, part: Part, skill: Skill) -> Result<Skill, SkillError> {
        skill.check().map_err(|source| SkillError::Manifest {
            path: self.manifest_path(&skill.digest),
            source,
        })?;
        // The manifest comes first: a file with the digest's name is complete.
        self.write_manifest(&skill)?;
        let path = self.path(&skill);
        if path.exists() {
            part.discard()?;
        } else {
            part.name(&path)?;
        }
        Ok(skill)
    }

    /// Records where a skill came from. None means that the operator put it there.
    pub fn set_source(&self, skill: Skill, source: Option<&str>) -> Result<Skill, SkillError> {
        let fetched_from = source.map(str::to_owned);
        let skill = Skill {
            fetched_from,
            ..skill
        };
        self.write_manifest(&skill)?;
        Ok(skill)
    }

    /// Reads a whole skill and compares it with its digest.
    pub fn verify(&self, skill: &Skill) -> Result<(), SkillError> {
        let path = self.path(skill);
        let actual = File::open(&path)
            .and_then(|file| digest_of(&file))
            .map_err(SkillError::file("read", &path))?;
        if actual != skill.digest {
            return Err(SkillError::Damaged { path, actual });
        }
        Ok(())
    }

    /// Removes a skill that no VM is using.
    pub fn remove(&self, skill: &Skill) -> Result<(), SkillError> {
        let path = self.path(skill);
        let lock = File::open(&path).map_err(SkillError::file("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(SkillError::InUse {
                    name: skill.name.clone(),
                    digest: skill.digest.clone(),
                })
            }
            Err(TryLockError::Error(error)) => return Err(SkillError::file("lock", &path)(error)),
        }
        fs::remove_file(&path).map_err(SkillError::file("remove", &path))?;
        let manifest = self.manifest_path(&skill.digest);
        fs::remove_file(&manifest).map_err(SkillError::file("remove", &manifest))
    }

    pub(super) fn manifest_path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.json"))
    }

    pub(super) fn write_manifest(&self, skill: &Skill) -> Result<(), SkillError> {
        let path = self.manifest_path(&skill.digest);
        let part = self.dir.join(format!(
            ".part-{}.json-{}",
            skill.digest,
            std::process::id()
        ));
        let text = serde_json::to_vec_pretty(skill).map_err(|source| SkillError::Manifest {
            path: path.clone(),
            source: source.into(),
        })?;
        fs::write(&part, text).map_err(SkillError::file("write", &part))?;
        fs::rename(&part, &path).map_err(SkillError::file("name", &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skills::fixture::{node, SQUASHFS};

    fn digest(skill: &Skill) -> SkillRef {
        SkillRef::Digest(skill.digest.clone())
    }

    #[test]
    fn skill_that_was_added_is_found_by_its_digest() {
        let node = node();
        let added = node.add("pptx", SQUASHFS).unwrap();
        assert_eq!(node.store.get(&digest(&added)).unwrap(), added);
        assert_eq!(node.store.list().unwrap(), std::slice::from_ref(&added));
        assert_eq!(fs::read(node.store.path(&added)).unwrap(), SQUASHFS);
        assert_eq!(node.names().len(), 2);
    }

    #[test]
    fn skill_is_found_by_name_and_version_the_newest_first() {
        let node = node();
        let source = node.dir.path().join("file");
        let mut digests = Vec::new();
        for (created, version, content) in
            [(5, "1.4", "hsqs1"), (9, "1.4", "hsqs2"), (7, "2", "hsqs3")]
        {
            fs::write(&source, content).unwrap();
            let skill = Skill {
                version: Some(version.to_owned()),
                created,
                ..Skill::named("docx")
            };
            digests.push(node.store.add(&source, skill).unwrap().digest);
        }
        let wanted = SkillRef::Version {
            name: "docx".to_owned(),
            version: "1.4".to_owned(),
        };
        assert_eq!(node.store.get(&wanted).unwrap().digest, digests[1]);
    }

    #[test]
    fn file_that_is_no_image_is_refused_and_leaves_nothing() {
        let node = node();
        let refused = node.add("pptx", b"#!/bin/sh");
        assert!(matches!(refused, Err(SkillError::NotAnImage(_))));
        assert_eq!(node.names(), [""; 0]);
    }

    #[test]
    fn erofs_is_known_by_its_magic() {
        let node = node();
        let mut content = vec![0; 4096];
        content[1024..1028].copy_from_slice(&crate::skills::image::EROFS_MAGIC);
        let skill = node.add("pptx", &content).unwrap();
        assert_eq!(node.store.open(&skill).unwrap().fs_type, "erofs");
    }

    #[test]
    fn skill_that_is_not_there_is_named_with_what_to_do() {
        let wanted = SkillRef::Digest("0".repeat(64));
        let error = node().store.get(&wanted).unwrap_err().to_string();
        assert!(error.contains("caisson skill add"), "{error}");
    }

    #[test]
    fn skill_that_was_changed_is_found_out() {
        let node = node();
        let skill = node.add("pptx", SQUASHFS).unwrap();
        node.store.verify(&skill).unwrap();
        let path = node.store.path(&skill);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "hsqs something else").unwrap();
        let damaged = node.store.verify(&skill);
        assert!(matches!(damaged, Err(SkillError::Damaged { .. })));
    }

    #[test]
    fn skill_in_use_is_not_removed() {
        let node = node();
        let skill = node.add("pptx", SQUASHFS).unwrap();
        let used = node.store.open(&skill).unwrap();
        let refused = node.store.remove(&skill);
        assert!(matches!(refused, Err(SkillError::InUse { .. })));
        assert_eq!(node.store.gc(0).unwrap(), []);
        drop(used);
        node.store.remove(&skill).unwrap();
        assert_eq!(node.names(), [""; 0]);
    }

    #[test]
    fn manifest_of_another_skill_is_refused() {
        let node = node();
        let (one, other) = (
            node.add("a", b"hsqs1").unwrap(),
            node.add("b", b"hsqs2").unwrap(),
        );
        let path = |skill: &Skill| node.store.manifest_path(&skill.digest);
        fs::copy(path(&one), path(&other)).unwrap();
        let error = node.store.get(&digest(&other)).unwrap_err();
        let told = chain(&error);
        assert!(told.contains(&format!("sha256:{}", one.digest)), "{told}");
        assert_eq!(node.store.list().unwrap(), [one]);
    }
}
