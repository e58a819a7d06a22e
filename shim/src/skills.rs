//! The node's skill store, `<store_dir>/skills/`: immutable tool bundles, each a squashfs file named by its sha256.
//!
//! ```text
//! <sha256>        the squashfs, read-only
//! <sha256>.json   its manifest
//! ```
//!
//! The shim looks skills up here; `caisson skill` packs, adds and lists them.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use caisson_oci::annotations::{is_plain_name, is_sha256};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The first bytes of a squashfs (kernel, fs/squashfs/squashfs_fs.h).
const SQUASHFS_MAGIC: [u8; 4] = *b"hsqs";

/// What can go wrong with a skill.
#[derive(Debug, thiserror::Error)]
pub enum SkillError {
    /// Not in the store.
    #[error("skill sha256:{digest} is not in {}; add it with `caisson skill add FILE`", store.display())]
    Missing { digest: String, store: PathBuf },
    /// The file to be added is something else.
    #[error("{} is not a squashfs file; make one with `caisson skill pack DIR`", .0.display())]
    NotSquashfs(PathBuf),
    /// The name can't name a folder in the guest.
    #[error("skill name {0:?} must be 1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit")]
    Name(String),
    /// Two skills would be mounted at the same place.
    #[error("two skills are named {0:?}; give one another name with NAME=sha256:…")]
    SameName(String),
    /// The manifest beside the file can't be read as one.
    #[error("manifest {}", path.display())]
    Manifest {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// A file of the store.
    #[error("{operation} {}", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What is known of a skill: its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skill {
    /// Under which it is mounted unless the pod says otherwise.
    pub name: String,
    /// sha256 of the file, 64 lower-case hex digits.
    pub digest: String,
    /// Of the file, in bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub created: u64,
}

/// The folder that holds a node's skills.
#[derive(Debug, Clone)]
pub struct SkillStore {
    dir: PathBuf,
}

impl SkillStore {
    /// The store of a node; it need not exist yet.
    pub fn new(store_dir: &Path) -> Self {
        Self {
            dir: store_dir.join("skills"),
        }
    }

    /// The squashfs file of a skill.
    pub fn path(&self, skill: &Skill) -> PathBuf {
        self.dir.join(&skill.digest)
    }

    /// Looks a skill up by its digest (64 hex digits).
    pub fn get(&self, digest: &str) -> Result<Skill, SkillError> {
        let missing = || SkillError::Missing {
            digest: digest.to_owned(),
            store: self.dir.clone(),
        };
        if !is_sha256(digest) || !self.dir.join(digest).is_file() {
            return Err(missing());
        }
        self.manifest(&self.manifest_path(digest))
    }

    /// All skills of the store, by name.
    pub fn list(&self) -> Result<Vec<Skill>, SkillError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(file("read", &self.dir)(error)),
        };
        let mut skills = Vec::new();
        for entry in entries {
            let entry = entry.map_err(file("read", &self.dir))?;
            let name = entry.file_name();
            let Some(digest) = name.to_str().filter(|name| is_sha256(name)) else {
                continue;
            };
            skills.push(self.get(digest)?);
        }
        skills.sort_by(|a, b| (&a.name, &a.digest).cmp(&(&b.name, &b.digest)));
        Ok(skills)
    }

    /// Copies a squashfs file into the store under its digest. Adding what is there changes nothing but the name.
    ///
    /// The file gets its name only when it is whole and on disk.
    pub fn add(&self, source: &Path, name: &str) -> Result<Skill, SkillError> {
        if !is_plain_name(name) {
            return Err(SkillError::Name(name.to_owned()));
        }
        fs::create_dir_all(&self.dir).map_err(file("create", &self.dir))?;
        let part = self.dir.join(format!(".part-{}", std::process::id()));
        let added = self.copy(source, &part).and_then(|(digest, size)| {
            let path = self.dir.join(&digest);
            fs::rename(&part, &path).map_err(file("name", &path))?;
            let created = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs());
            let skill = Skill {
                name: name.to_owned(),
                digest,
                size,
                created,
            };
            self.write_manifest(&skill)?;
            Ok(skill)
        });
        if added.is_err() && part.exists() {
            fs::remove_file(&part).map_err(file("remove", &part))?;
        }
        added
    }

    /// Copies, hashes and checks in one pass. Returns digest and size.
    fn copy(&self, source: &Path, part: &Path) -> Result<(String, u64), SkillError> {
        let mut from = File::open(source).map_err(file("open", source))?;
        let mut to = File::create(part).map_err(file("create", part))?;
        let mut hash = Sha256::new();
        let mut size = 0;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let length = from.read(&mut buffer).map_err(file("read", source))?;
            if size == 0 && !buffer[..length].starts_with(&SQUASHFS_MAGIC) {
                return Err(SkillError::NotSquashfs(source.to_owned()));
            }
            if length == 0 {
                break;
            }
            hash.update(&buffer[..length]);
            to.write_all(&buffer[..length])
                .map_err(file("write", part))?;
            size += length as u64;
        }
        to.set_permissions(fs::Permissions::from_mode(0o444))
            .map_err(file("set the mode of", part))?;
        to.sync_all().map_err(file("write", part))?;
        let digest = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        Ok((digest, size))
    }

    fn manifest_path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.json"))
    }

    fn manifest(&self, path: &Path) -> Result<Skill, SkillError> {
        let text = fs::read(path).map_err(file("read", path))?;
        let skill: Skill =
            serde_json::from_slice(&text).map_err(|source| SkillError::Manifest {
                path: path.to_owned(),
                source,
            })?;
        if !is_plain_name(&skill.name) {
            return Err(SkillError::Name(skill.name));
        }
        Ok(skill)
    }

    fn write_manifest(&self, skill: &Skill) -> Result<(), SkillError> {
        let path = self.manifest_path(&skill.digest);
        let part = path.with_extension(format!("json.part-{}", std::process::id()));
        let text = serde_json::to_vec_pretty(skill).map_err(|source| SkillError::Manifest {
            path: path.clone(),
            source,
        })?;
        fs::write(&part, text).map_err(file("write", &part))?;
        fs::rename(&part, &path).map_err(file("name", &path))
    }
}

fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SkillError {
    let path = path.to_owned();
    move |source| SkillError::File {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store_with(content: &[u8]) -> (tempfile::TempDir, SkillStore, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("bundle.squashfs");
        fs::write(&source, content).unwrap();
        let store = SkillStore::new(dir.path());
        (dir, store, source)
    }

    #[test]
    fn skill_that_was_added_is_found_by_its_digest() {
        let (_dir, store, source) = store_with(b"hsqs and the rest");
        let added = store.add(&source, "pptx").unwrap();
        assert_eq!(store.get(&added.digest).unwrap(), added);
        assert_eq!(store.list().unwrap(), std::slice::from_ref(&added));
        assert_eq!(fs::read(store.path(&added)).unwrap(), b"hsqs and the rest");
    }

    #[test]
    fn file_that_is_no_squashfs_is_refused_and_leaves_nothing() {
        let (dir, store, source) = store_with(b"#!/bin/sh");
        let refused = store.add(&source, "pptx");
        assert!(matches!(refused, Err(SkillError::NotSquashfs(_))));
        assert_eq!(fs::read_dir(dir.path().join("skills")).unwrap().count(), 0);
    }

    #[test]
    fn skill_that_is_not_there_is_named_with_what_to_do() {
        let (_dir, store, _) = store_with(b"");
        let error = store.get(&"0".repeat(64)).unwrap_err().to_string();
        assert!(error.contains("caisson skill add"), "{error}");
    }
}
