//! Removes what the store can do without.

use std::{
    fs::{self, File},
    path::Path,
};

use super::{error::SkillError, manifest::Skill, store::SkillStore};
use crate::host::error::OnFile;

impl SkillStore {
    /// Removes the least recently used skills until the rest takes `max_bytes` at most, but never
    /// one that a VM is using. Also removes what interrupted writers left. Returns the removed
    /// skills.
    pub fn gc(&self, max_bytes: u64) -> Result<Vec<Skill>, SkillError> {
        for name in self.names()? {
            let digest = name.strip_suffix(".json");
            let orphan = digest.is_some_and(|digest| !self.dir.join(digest).exists());
            if orphan || name.starts_with(".part-") {
                self.remove_left(&self.dir.join(&name))?;
            }
        }
        let mut by_use = Vec::new();
        for skill in self.list()? {
            let manifest = self.manifest_path(&skill.digest);
            let used = fs::metadata(&manifest)
                .and_then(|metadata| metadata.modified())
                .map_err(SkillError::file("read", &manifest))?;
            by_use.push((used, skill));
        }
        by_use.sort_by_key(|(used, _)| *used);
        // The sizes in manifests may add up to more than an u64 holds.
        let mut bytes: u128 = by_use.iter().map(|(_, skill)| u128::from(skill.size)).sum();
        let mut removed = Vec::new();
        for (_, skill) in by_use {
            if bytes <= max_bytes.into() {
                break;
            }
            match self.remove(&skill) {
                Ok(()) => {
                    bytes -= u128::from(skill.size);
                    removed.push(skill);
                }
                Err(SkillError::InUse { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    /// Removes a file that nobody writes any more.
    fn remove_left(&self, path: &Path) -> Result<(), SkillError> {
        let Ok(left) = File::open(path) else {
            return Ok(());
        };
        match left.try_lock() {
            Ok(()) => fs::remove_file(path).map_err(SkillError::file("remove", path)),
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        time::{Duration, SystemTime},
    };

    use crate::skills::fixture::{node, SQUASHFS};

    #[test]
    fn gc_removes_the_least_recently_used_until_the_bound() {
        let node = node();
        let skills: Vec<_> = ["hsqs1", "hsqs2", "hsqs3"]
            .iter()
            .map(|content| node.add("pptx", content.as_bytes()).unwrap())
            .collect();
        for (skill, age) in skills.iter().zip([20, 30, 10]) {
            File::options()
                .append(true)
                .open(node.store.manifest_path(&skill.digest))
                .and_then(|file| file.set_modified(SystemTime::now() - Duration::from_secs(age)))
                .unwrap();
        }
        drop(node.store.open(&skills[1]).unwrap());
        assert_eq!(node.store.gc(10).unwrap(), [skills[0].clone()]);
        assert_eq!(node.store.gc(10).unwrap(), []);
    }

    #[test]
    fn gc_counts_sizes_that_cannot_be() {
        let node = node();
        for content in [b"hsqs1", b"hsqs2"] {
            let mut skill = node.add("a", content).unwrap();
            skill.size = u64::MAX;
            node.store.write_manifest(&skill).unwrap();
        }
        assert_eq!(node.store.gc(u64::MAX).unwrap().len(), 1);
    }

    #[test]
    fn gc_removes_what_interrupted_writers_left_and_nothing_of_running_ones() {
        let node = node();
        let skill = node.add("pptx", SQUASHFS).unwrap();
        let mut running = node.store.part("running").unwrap();
        running.write(b"x").unwrap();
        drop(node.store.part("dead").unwrap());
        fs::write(node.store.manifest_path(&"0".repeat(64)), "{}").unwrap();
        node.store.gc(u64::MAX).unwrap();
        let manifest = format!("{}.json", skill.digest);
        assert_eq!(node.names(), [".part-running", &skill.digest, &manifest]);
    }
}
