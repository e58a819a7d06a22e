//! A skill's manifest: what is known of a skill besides its bytes.

use std::{
    fs::File,
    io::Read,
    path::{Component, Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use caisson_oci::annotations::{is_plain_name, is_sha256, is_version};
use serde::{Deserialize, Serialize};

use super::error::{ManifestError, SkillError};
use crate::host::error::OnFile;

/// The largest manifest that is read, in bytes.
const MAX_MANIFEST: u64 = 64 << 10;
/// The size of a block of data or of hashes, in bytes.
pub const VERITY_BLOCK: u64 = 4096;

/// A skill's manifest, `<sha256>.json` in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skill {
    /// The name under which it is mounted unless the pod says otherwise.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// sha256 of the file, 64 lower-case hex digits.
    pub digest: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// The absolute path where it is mounted in a container; `/opt/skills/<name>` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_path: Option<PathBuf>,
    /// Seconds since 1970.
    pub created: u64,
    /// The source that it was fetched from for a pod. None if the operator put it into the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched_from: Option<String>,
    /// The hash tree with which the guest checks what it reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity: Option<Verity>,
}

/// A tree of sha256 hashes at the end of the file, as dm-verity has it: blocks of 4096 bytes, no
/// salt, no superblock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verity {
    /// The root hash: 64 lower-case hex digits.
    pub root_hash: String,
    /// The number of blocks before the tree.
    pub data_blocks: u64,
}

impl Skill {
    /// Makes the manifest of a skill that is created now; digest and size are to be filled in.
    pub fn named(name: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            name: name.to_owned(),
            version: None,
            digest: String::new(),
            size: 0,
            mount_path: None,
            created: now.map_or(0, |since| since.as_secs()),
            fetched_from: None,
            verity: None,
        }
    }

    /// Reads a manifest and checks it.
    pub fn read(path: &Path) -> Result<Self, SkillError> {
        let mut text = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_MANIFEST).read_to_end(&mut text))
            .map_err(SkillError::file("read", path))?;
        Self::parse(&text).map_err(|source| SkillError::Manifest {
            path: path.to_owned(),
            source,
        })
    }

    /// Parses a manifest and checks it.
    pub fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        let skill: Self = serde_json::from_slice(text)?;
        skill.check()?;
        Ok(skill)
    }

    /// Checks that the skill can be kept and mounted.
    pub fn check(&self) -> Result<(), ManifestError> {
        let refuse = |field, value: &str, rule| {
            Err(ManifestError::Field {
                field,
                value: value.chars().take(80).collect(),
                rule,
            })
        };
        if !is_plain_name(&self.name) {
            return refuse("name", &self.name, NAME_RULE);
        }
        if !is_sha256(&self.digest) {
            return refuse("digest", &self.digest, "is not 64 lower-case hex digits");
        }
        if let Some(verity) = &self.verity {
            if !is_sha256(&verity.root_hash) {
                let rule = "is not 64 lower-case hex digits";
                return refuse("verity.root_hash", &verity.root_hash, rule);
            }
            let data = verity.data_blocks.checked_mul(VERITY_BLOCK);
            if !data.is_some_and(|data| 0 < data && data < self.size) {
                let rule = "leaves no room for the tree of hashes";
                return refuse("verity.data_blocks", &verity.data_blocks.to_string(), rule);
            }
        }
        if let Some(version) = &self.version {
            if !is_version(version) {
                return refuse("version", version, VERSION_RULE);
            }
        }
        if let Some(path) = &self.mount_path {
            let plain = path
                .components()
                .skip(1)
                .all(|part| matches!(part, Component::Normal(_)));
            if !path.is_absolute() || !plain || path.parent().is_none() {
                let path = path.display().to_string();
                return refuse("mount_path", &path, "is not an absolute path without ..");
            }
        }
        Ok(())
    }

    /// The mount point in a container that asks for it as `name`, or without a name of its own.
    pub fn target(&self, name: Option<&str>) -> PathBuf {
        match (name, &self.mount_path) {
            (None, Some(path)) => path.clone(),
            (name, _) => Path::new("/opt/skills").join(name.unwrap_or(&self.name)),
        }
    }
}

const NAME_RULE: &str =
    "must be 1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit";
const VERSION_RULE: &str =
    "must be 1 to 128 letters, digits, '.', '_' or '-', starting with a letter, a digit or '_'";

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(field: &str, value: impl Into<serde_json::Value>) -> Result<Skill, ManifestError> {
        let mut json = serde_json::json!({
            "name": "pptx", "version": "1.4", "digest": "0".repeat(64), "size": 8192, "created": 0,
            "verity": {"root_hash": "0".repeat(64), "data_blocks": 1},
        });
        json[field] = value.into();
        Skill::parse(json.to_string().as_bytes())
    }

    #[test]
    fn manifest_that_could_leave_its_place_is_refused_naming_the_field() {
        for (field, value) in [
            ("name", "../x"),
            ("name", ""),
            ("version", "1/2"),
            ("digest", "../../etc/passwd"),
            ("mount_path", "relative"),
            ("mount_path", "/opt/../etc"),
            ("mount_path", "/"),
        ] {
            let error = manifest(field, value).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        manifest("colour", "blue").unwrap_err();
        for (root, blocks) in [("-", 1), (&*"0".repeat(64), 0), (&"0".repeat(64), 2)] {
            let verity = serde_json::json!({"root_hash": root, "data_blocks": blocks});
            let error = manifest("verity", verity).unwrap_err().to_string();
            assert!(error.contains("verity."), "{error}");
        }
    }

    #[test]
    fn mount_path_holds_unless_the_pod_gives_a_name() {
        let skill = manifest("mount_path", "/usr/lib/pptx").unwrap();
        assert_eq!(skill.target(None), Path::new("/usr/lib/pptx"));
        assert_eq!(
            skill.target(Some("slides")),
            Path::new("/opt/skills/slides")
        );
        let skill = manifest("name", "pptx").unwrap();
        assert_eq!(skill.target(None), Path::new("/opt/skills/pptx"));
    }
}
