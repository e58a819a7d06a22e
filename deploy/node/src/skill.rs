//! `caisson skill`: packs folders into squashfs files and keeps the node's store of them.

use std::{
    path::{Path, PathBuf},
    process::Command as Process,
};

use anyhow::{bail, ensure, Context, Result};
use caisson_shim::{config::NodeConfig, skills::SkillStore};
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Command {
    /// Packs a folder into a squashfs file and adds it to this node's store
    ///
    /// The same tree gives the same digest: times and owners are left out.
    Pack {
        /// The folder
        dir: PathBuf,
        /// The skill's name, by which it is mounted at /opt/skills/NAME; the folder's, when not said
        #[arg(long)]
        name: Option<String>,
        /// Writes the file there instead of adding it to the store
        #[arg(short, long)]
        output: Option<PathBuf>,
    },
    /// Adds a squashfs file to this node's store
    Add {
        file: PathBuf,
        /// The skill's name; the file's without its extension, when not said
        #[arg(long)]
        name: Option<String>,
    },
    /// Lists this node's skills
    List,
}

/// Runs the command. What was packed or added is printed as `sha256:HEX`.
pub fn run(command: Command, config: &NodeConfig) -> Result<()> {
    let store = SkillStore::new(&config.store_dir);
    match command {
        Command::Pack { dir, name, output } => {
            let name = name.map_or_else(|| last_part(&dir, Path::file_name), Ok)?;
            if let Some(output) = output {
                return pack(&dir, &output);
            }
            let folder = tempfile::tempdir().context("make a temporary folder")?;
            let file = folder.path().join("skill.squashfs");
            pack(&dir, &file)?;
            println!("sha256:{}", store.add(&file, &name)?.digest);
        }
        Command::Add { file, name } => {
            let name = name.map_or_else(|| last_part(&file, Path::file_stem), Ok)?;
            println!("sha256:{}", store.add(&file, &name)?.digest);
        }
        Command::List => {
            for skill in store.list()? {
                println!("sha256:{} {:>12} {}", skill.digest, skill.size, skill.name);
            }
        }
    }
    Ok(())
}

/// Writes the squashfs of a folder. A file that is there is replaced.
fn pack(dir: &Path, output: &Path) -> Result<()> {
    ensure!(dir.is_dir(), "{} is not a folder", dir.display());
    let result = Process::new("mksquashfs")
        // Absolute, so that no name is taken for an option.
        .arg(std::path::absolute(dir)?)
        .arg(std::path::absolute(output)?)
        .args(["-noappend", "-no-progress", "-quiet"])
        .args([
            "-all-root",
            "-no-xattrs",
            "-mkfs-time",
            "0",
            "-all-time",
            "0",
        ])
        .args(["-comp", "zstd", "-Xcompression-level", "9"])
        .env_remove("SOURCE_DATE_EPOCH")
        .output()
        .context("start mksquashfs (apt-get install squashfs-tools)")?;
    if !result.status.success() {
        bail!(
            "mksquashfs {}: {}",
            dir.display(),
            String::from_utf8_lossy(&result.stderr).trim()
        );
    }
    Ok(())
}

fn last_part<'p>(
    path: &'p Path,
    part: impl Fn(&'p Path) -> Option<&'p std::ffi::OsStr>,
) -> Result<String> {
    let name = part(path).and_then(std::ffi::OsStr::to_str);
    Ok(name
        .with_context(|| format!("{} gives no name; say one with --name", path.display()))?
        .to_owned())
}

#[cfg(test)]
mod tests {
    use std::{fs, thread, time::Duration};

    use super::*;

    #[test]
    fn trees_that_are_the_same_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let packed: Vec<_> = ["one", "two"]
            .iter()
            .map(|name| {
                let dir = folder.path().join(name);
                fs::create_dir_all(dir.join("bin")).unwrap();
                fs::write(dir.join("bin/tool"), "#!/bin/sh\n").unwrap();
                fs::write(dir.join("SKILL.md"), "what it is for\n").unwrap();
                // Another second, another time stamp.
                thread::sleep(Duration::from_millis(1100));
                let file = folder.path().join(format!("{name}.squashfs"));
                pack(&dir, &file).unwrap();
                fs::read(file).unwrap()
            })
            .collect();
        assert!(packed[0] == packed[1]);
    }

    #[test]
    fn folder_that_is_not_there_is_named() {
        let error = pack(Path::new("/no/such/folder"), Path::new("/tmp/x")).unwrap_err();
        assert!(error.to_string().contains("/no/such/folder"));
    }
}
