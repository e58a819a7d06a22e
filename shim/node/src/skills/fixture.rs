//! A skill store for unit tests.

use std::fs;

use super::{error::SkillError, manifest::Skill, store::SkillStore};

pub const SQUASHFS: &[u8] = b"hsqs and the rest";

pub struct Node {
    pub dir: tempfile::TempDir,
    pub store: SkillStore,
}

pub fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let store = SkillStore::new(dir.path());
    Node { dir, store }
}

impl Node {
    pub fn add(&self, name: &str, content: &[u8]) -> Result<Skill, SkillError> {
        let source = self.dir.path().join("bundle.squashfs");
        fs::write(&source, content).unwrap();
        self.store.add(&source, Skill::named(name))
    }

    pub fn names(&self) -> Vec<String> {
        let mut names = self.store.names().unwrap();
        names.sort();
        names
    }
}
