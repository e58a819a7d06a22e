//! `caisson skill pack`: a squashfs file of a folder, the same for the same tree.

use std::{path::Path, process::Command as Process};

use anyhow::{bail, ensure, Context, Result};

/// Writes the squashfs of a folder. A file that is there is replaced.
pub fn pack(dir: &Path, output: &Path) -> Result<()> {
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
