//! `caisson skill pack`: makes a squashfs file of a folder, the same for the same tree, with hashes
//! of its blocks on request.

use std::{path::Path, process::Command as Process};

use anyhow::{bail, ensure, Context, Result};
use caisson_node::skills::{Verity, VERITY_BLOCK};

/// Writes the squashfs file of a folder. An existing file is replaced.
pub fn pack(dir: &Path, output: &Path) -> Result<()> {
    ensure!(dir.is_dir(), "{} is not a folder", dir.display());
    let result = Process::new("mksquashfs")
        // The path is absolute, so that no name is taken for an option.
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

/// Appends a tree of hashes to a file, with which a guest can check what it reads.
pub fn seal(file: &Path) -> Result<Verity> {
    let size = std::fs::metadata(file).context("read the size")?.len();
    // mksquashfs pads the file to whole blocks.
    ensure!(
        size % VERITY_BLOCK == 0,
        "{} has {size} bytes, which is not a number of whole blocks",
        file.display()
    );
    let data_blocks = size / VERITY_BLOCK;
    let result = Process::new("veritysetup")
        .args(["format", "--no-superblock", "--salt=-", "--hash=sha256"])
        .args([
            format!("--data-block-size={VERITY_BLOCK}"),
            format!("--hash-block-size={VERITY_BLOCK}"),
            format!("--data-blocks={data_blocks}"),
            format!("--hash-offset={size}"),
        ])
        .args([file, file])
        .env("LC_ALL", "C")
        .output()
        .context("start veritysetup (apt-get install cryptsetup-bin)")?;
    let (output, errors) = (
        String::from_utf8_lossy(&result.stdout),
        String::from_utf8_lossy(&result.stderr),
    );
    ensure!(
        result.status.success(),
        "veritysetup {}: {}",
        file.display(),
        errors.trim()
    );
    let mut lines = output.lines();
    let root_hash = lines.find_map(|line| line.strip_prefix("Root hash:"));
    let root_hash = root_hash.context("veritysetup said no root hash")?.trim();
    Ok(Verity {
        root_hash: root_hash.to_owned(),
        data_blocks,
    })
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
                // Waits for another second, so that the time stamps differ.
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
