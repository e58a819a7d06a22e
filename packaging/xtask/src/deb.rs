//! `cargo xtask deb`: makes a Debian package of what a node gets.
//!
//! The package puts files in place and starts nothing; `caisson node install` adds the runtime to
//! containerd.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{
    dirs::Dirs,
    files,
    machine::{self, Machine},
    payload, step,
};

/// The folder of the package's files that are in the checkout.
const SOURCES: &str = "packaging/debian";
/// The time of all files (2026-01-01), which dpkg-deb takes from here.
const EPOCH: &str = "1767225600";

/// Makes the package from what `target/dist` has.
pub fn build(dirs: &Dirs) -> Result<()> {
    let temp = tempfile::tempdir_in(&dirs.cache).context("make a folder in the cache")?;
    let root = temp.path().join("root");
    let mut kib = 0;
    for entry in payload::entries(dirs)? {
        let to = root.join(entry.to);
        files::write(&to, &files::read(&entry.from)?, entry.mode)?;
        let size = fs::metadata(&to)
            .with_context(|| format!("look at {}", to.display()))?
            .len();
        kib += size.div_ceil(1024);
    }
    let sources = dirs.root.join(SOURCES);
    files::copy(
        &sources.join("copyright"),
        &root.join(payload::PAPERS).join("copyright"),
    )?;
    files::copy(
        &sources.join("config.toml"),
        &root.join("etc/caisson/config.toml"),
    )?;
    // The shim has to be on the PATH for `ctr run --runtime io.containerd.caisson.v2`.
    for program in ["caisson", "containerd-shim-caisson-v2"] {
        let target = format!("../lib/caisson/bin/{program}");
        link(&root.join("usr/bin").join(program), &target)?;
    }

    let qemu = match machine::installed(dirs) {
        Machine::Own => "",
        Machine::Debian => ", qemu-system-x86 (>= 1:7.2)",
    };
    let control = files::read_text(&sources.join("control"))?;
    let control = control
        .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
        .replace("@QEMU@", qemu)
        .replace("@SIZE@", &kib.to_string());
    files::write(&root.join("DEBIAN/control"), control.as_bytes(), 0o644)?;
    files::write(
        &root.join("DEBIAN/conffiles"),
        b"/etc/caisson/config.toml\n",
        0o644,
    )?;
    let sums = sums(&root)?;
    files::write(&root.join("DEBIAN/md5sums"), sums.as_bytes(), 0o644)?;

    let built = temp.path().join(name());
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.env("SOURCE_DATE_EPOCH", EPOCH)
        .args([
            "--root-owner-group",
            "-Zgzip",
            "-z6",
            "--threads-max=1",
            "--build",
        ])
        .args([&root, &built]);
    make_plain(&root)?;
    step::run(&dirs.log, "deb", &mut dpkg)?;
    files::copy(&built, &dirs.dist.join(name()))
}

/// Returns the name of the file in `target/dist`.
pub fn name() -> String {
    format!("caisson_{}_amd64.deb", env!("CARGO_PKG_VERSION"))
}

fn link(path: &Path, target: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        files::make_dir(folder)?;
    }
    std::os::unix::fs::symlink(target, path).with_context(|| format!("make {}", path.display()))
}

/// Returns the checksums that dpkg compares an installation with.
fn sums(root: &Path) -> Result<String> {
    let mut find = Command::new("sh");
    find.args(["-c", "find etc usr -type f | LC_ALL=C sort | xargs md5sum"])
        .current_dir(root);
    Ok(String::from_utf8_lossy(&step::output(&mut find)?).into_owned())
}

/// Makes all folders 0755, whatever the umask is.
fn make_plain(root: &Path) -> Result<()> {
    let mut chmod = Command::new("find");
    chmod
        .arg(root)
        .args(["-type", "d", "-exec", "chmod", "0755", "{}", "+"]);
    step::output(&mut chmod).map(drop)
}
