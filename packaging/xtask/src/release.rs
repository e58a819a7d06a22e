//! `cargo xtask node-image`, `deb` and `release`: make what leaves this checkout, in `target/dist`.

use std::{fmt::Write, fs, path::Path};

use anyhow::{ensure, Context, Result};

use crate::{
    deb,
    dirs::Dirs,
    dist, files,
    machine::{self, Machine},
    node_image::{self, FILE},
    papers,
    pins::Pins,
    profile::Profile,
};

const SUMS: &str = "SHA256SUMS";

/// Where the programs and the guest image come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// They are built.
    Built(Pins, Profile),
    /// They are in `target/dist` already.
    AsIs,
}

/// Makes the node image, with everything that goes into it.
pub fn node_image(dirs: &Dirs, from: From) -> Result<()> {
    contents(dirs, from)?;
    node_image::build(dirs)
}

/// Makes the Debian package, with everything that goes into it.
pub fn deb(dirs: &Dirs, from: From) -> Result<()> {
    contents(dirs, from)?;
    deb::build(dirs)
}

/// Makes all of it, and the checksums.
pub fn all(dirs: &Dirs, from: From) -> Result<()> {
    contents(dirs, from)?;
    node_image::build(dirs)?;
    deb::build(dirs)?;
    let text = sums(&dirs.dist)?;
    files::write(&dirs.dist.join(SUMS), text.as_bytes(), 0o644)
}

/// Packs `target/dist` twice and fails unless both give the same bytes. (`image
/// --check-reproducible` checks what is packed.)
pub fn check_reproducible(dirs: &Dirs) -> Result<()> {
    all(dirs, From::AsIs)?;
    let first = files::read_text(&dirs.dist.join(SUMS))?;
    for name in [FILE, &deb::name()] {
        let path = dirs.dist.join(name);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    all(dirs, From::AsIs)?;
    let second = files::read_text(&dirs.dist.join(SUMS))?;
    ensure!(
        first == second,
        "packed twice, other bytes:\n{first}\n{second}"
    );
    println!("packed twice, the same bytes");
    Ok(())
}

fn contents(dirs: &Dirs, from: From) -> Result<()> {
    if let From::Built(pins, profile) = from {
        let machine = match profile {
            Profile::Release => Machine::Own,
            Profile::Dev => machine::built(dirs)?,
        };
        dist::build(dirs, machine, pins, profile)?;
    }
    papers::build(dirs)
}

/// Returns the checksums in the format of `sha256sum -c`: every file below `dist`, by its path
/// there, sorted.
fn sums(dist: &Path) -> Result<String> {
    let mut text = String::new();
    for path in files::below(dist)?.iter().filter(|path| *path != SUMS) {
        let _ = writeln!(text, "{}  {path}", files::sha256(&dist.join(path))?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_of_every_file_but_themselves() {
        let dist = tempfile::tempdir().unwrap();
        for path in ["b/x", "a", SUMS] {
            files::write(&dist.path().join(path), b"", 0o644).unwrap();
        }
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let expected = format!("{empty}  a\n{empty}  b/x\n");
        assert_eq!(sums(dist.path()).unwrap(), expected);
    }
}
