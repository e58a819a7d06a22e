//! What is in the folder of a template.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use caisson_vmm::Translations;
use rustix::fs::SeekFrom;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::{Result, TemplateError};
use crate::host::{error::OnFile, file};

pub(super) const MACHINE: &str = "machine";
pub(super) const TRANSLATIONS: &str = "translations";
const ABOUT: &str = "about.json";

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
    pub(super) fn of(path: &Path) -> Result<Self> {
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
    /// Returns what is written in a folder, if it can be read.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(ABOUT)).ok()?).ok()
    }

    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        Ok(file::replace(&dir.join(ABOUT), &text)?)
    }

    /// Returns the template, if the files in its folder fit together.
    pub(super) fn template(&self, dir: &Path) -> Option<caisson_vmm::Template> {
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

    pub(super) fn age(&self) -> Duration {
        Duration::from_secs(now().saturating_sub(self.made))
    }
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

pub(super) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
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
