//! Manages the settings of a node that `caisson node install --settings` was given, as a drop-in of
//! the configuration: `config.d/50-node.toml`.
//!
//! The file itself says that it is Caisson's and which folders were made for it. It may set where
//! the record of everything else is, so it is written first and removed last.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{bail, Context, Result};

use super::files;

const HEADER: &str =
    "# `caisson node install --settings` wrote this, `caisson node uninstall` removes it.";
const MADE: &str = "# Folders that came with it: ";

/// Returns where the settings are for a main file.
pub fn path(config_file: &Path) -> PathBuf {
    config_file.with_file_name("config.d").join("50-node.toml")
}

/// Writes the settings. A file of that name that is not Caisson's is left alone, with an error.
pub fn write(config_file: &Path, text: &str) -> Result<()> {
    let path = path(config_file);
    let dir = path.parent().unwrap_or(Path::new("/"));
    let old = files::read_text(&path)?;
    let made = match &old {
        Some(old) => made(old, &path)?,
        None => {
            // Left by a run that was killed meanwhile.
            let part = files::part(&path);
            files::remove(&part).with_context(|| format!("remove {}", part.display()))?;
            let mut made = files::missing(dir);
            for dir in dir
                .ancestors()
                .take(2)
                .filter(|dir| is_empty(dir, &made))
                .collect::<Vec<_>>()
            {
                made.insert(0, dir.to_owned());
            }
            made
        }
    };
    let made_line = serde_json::to_string(&made).context("folders")?;
    let new = format!("{HEADER}\n{MADE}{made_line}\n{text}");
    if old.as_deref() == Some(&new) {
        return Ok(());
    }
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    files::write(&path, new.as_bytes())
}

/// Removes the settings and the folders that were made for them, and returns whether there were
/// any. Where these folders hold nothing else, everything goes with one rename: after a kill, the
/// next run could no longer tell whose an empty folder is.
pub fn remove(config_file: &Path) -> Result<bool> {
    let path = path(config_file);
    for dir in path.ancestors().skip(1).take(2) {
        files::remove_tree(&going(dir))?;
    }
    let Some(old) = files::read_text(&path)? else {
        return Ok(false);
    };
    let Ok(made) = made(&old, &path) else {
        return Ok(false);
    };
    let ours = |dir: &&Path| made.iter().any(|made| made == dir) && holds_only(dir, &path);
    match path.ancestors().skip(1).take(2).filter(ours).last() {
        Some(dir) => {
            let going = going(dir);
            fs::rename(dir, &going).with_context(|| format!("move {} away", dir.display()))?;
            files::remove_tree(&going)?;
        }
        None => {
            files::remove(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    for dir in made.iter().rev() {
        files::remove_empty(dir)?;
    }
    Ok(true)
}

/// Returns where a folder is while it is removed.
fn going(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".caisson-old");
    dir.with_file_name(name)
}

fn holds_only(dir: &Path, file: &Path) -> bool {
    let ours = |path: PathBuf| path == file || file.starts_with(&path) && holds_only(&path, file);
    fs::read_dir(dir).is_ok_and(|entries| entries.flatten().all(|entry| ours(entry.path())))
}

fn made(text: &str, path: &Path) -> Result<Vec<PathBuf>> {
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        bail!("{} is there and not ours: move it away", path.display());
    }
    let made = lines.next().and_then(|line| line.strip_prefix(MADE));
    Ok(made
        .and_then(|made| serde_json::from_str(made).ok())
        .unwrap_or_default())
}

fn is_empty(dir: &Path, but: &[PathBuf]) -> bool {
    fs::read_dir(dir)
        .is_ok_and(|entries| entries.flatten().all(|entry| but.contains(&entry.path())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_and_go_with_their_folders() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("etc/caisson/config.toml");
        write(&config, "[vm]\ndefault_cpus = 2\n").unwrap();
        write(&config, "[vm]\ndefault_cpus = 3\n").unwrap();
        assert!(fs::read_to_string(path(&config))
            .unwrap()
            .ends_with("[vm]\ndefault_cpus = 3\n"));
        assert!(remove(&config).unwrap());
        assert!(is_empty(dir.path(), &[]));
        assert!(!remove(&config).unwrap());
    }

    #[test]
    fn folder_that_holds_more_stays() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("caisson/config.toml");
        write(&config, "").unwrap();
        fs::write(&config, "[vm]\n").unwrap();
        assert!(remove(&config).unwrap());
        assert!(config.exists() && !path(&config).parent().unwrap().exists());
    }

    #[test]
    fn removal_that_was_killed_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("caisson/config.toml");
        write(&config, "").unwrap();
        let folder = dir.path().join("caisson");
        fs::rename(&folder, going(&folder)).unwrap();
        remove(&config).unwrap();
        assert!(is_empty(dir.path(), &[]));
    }

    #[test]
    fn settings_of_another_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.toml");
        fs::create_dir(dir.path().join("config.d")).unwrap();
        fs::write(path(&config), "[vm]\n").unwrap();
        assert!(write(&config, "").is_err());
        assert!(!remove(&config).unwrap());
        assert_eq!(fs::read_to_string(path(&config)).unwrap(), "[vm]\n");
    }
}
