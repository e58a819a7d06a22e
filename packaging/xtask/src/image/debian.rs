//! Fetches the kernel's Debian package through apt and checks that it is the pinned one.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{bail, Context, Result};

use crate::{dirs::Dirs, files, inputs::Kernel, pins::Pins, step};

/// A kernel package on disk whose digest was checked.
pub struct Package {
    pub kernel: Kernel,
    pub deb: PathBuf,
}

/// Returns the pinned package, from the cache if it is there.
pub fn fetch(dirs: &Dirs, pinned: &Kernel, pins: Pins) -> Result<Package> {
    let package = |kernel: &Kernel| Package {
        deb: deb_path(dirs, kernel),
        kernel: kernel.clone(),
    };
    if deb_path(dirs, pinned).exists() || download(dirs, pinned)? {
        return Ok(package(pinned));
    }
    if pins == Pins::Require {
        bail!(
            "{} {} is gone from Debian's mirror; run `cargo xtask image --update-pins` and look at what it changes",
            pinned.package,
            pinned.version
        );
    }
    let now = candidate(&pinned.meta_package)?;
    eprintln!(
        "WARNING: the pinned kernel {} {} is gone from Debian's mirror.\n\
         WARNING: building with {} {} instead, which nobody has tested with this checkout.\n\
         WARNING: `cargo xtask image --update-pins` makes it the pinned one.",
        pinned.package, pinned.version, now.package, now.version
    );
    if deb_path(dirs, &now).exists() || download(dirs, &now)? {
        return Ok(package(&now));
    }
    bail!(
        "apt-get can't download {} {}; see {}",
        now.package,
        now.version,
        dirs.log.join("kernel-download.log").display()
    );
}

/// Returns the package that `meta_package` would install now.
pub fn candidate(meta_package: &str) -> Result<Kernel> {
    let depends = apt_cache(&["depends", "--important", meta_package])?;
    let package = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{meta_package} depends on no linux-image package"))?;
    let shown = apt_cache(&["show", "--no-all-versions", package])?;
    let field = |name: &str| {
        shown
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .map(str::to_owned)
            .with_context(|| format!("apt-cache shows no {name} of {package}"))
    };
    Ok(Kernel {
        meta_package: meta_package.to_owned(),
        package: package.to_owned(),
        version: field("Version")?,
        sha256: field("SHA256")?,
    })
}

/// Refreshes apt's lists. Only root can do that, and a stale list may still be good enough, so a
/// failure is reported and ignored.
pub fn refresh_lists(dirs: &Dirs) {
    if let Err(error) = step::run(
        &dirs.log,
        "apt-get-update",
        Command::new("apt-get").arg("update"),
    ) {
        eprintln!("warning: {error:#}");
    }
}

fn apt_cache(args: &[&str]) -> Result<String> {
    let output = step::output(Command::new("apt-cache").args(args))?;
    String::from_utf8(output).context("apt-cache printed something that is not UTF-8")
}

fn deb_path(dirs: &Dirs, kernel: &Kernel) -> PathBuf {
    // The name has the digest: a file that is here was checked when it was put here.
    let name = format!("{}_{}.deb", kernel.package, &kernel.sha256);
    dirs.cache.join("debs").join(name)
}

/// Downloads the package into the cache. Returns `false` if apt has no such version, even after a
/// look at the mirror.
fn download(dirs: &Dirs, kernel: &Kernel) -> Result<bool> {
    let debs = dirs.cache.join("debs");
    files::make_dir(&debs)?;
    let temp = tempfile::tempdir_in(&debs)
        .with_context(|| format!("make a folder in {}", debs.display()))?;
    if !offered(kernel)? || !try_download(dirs, kernel, temp.path()) {
        refresh_lists(dirs);
        if !offered(kernel)? || !try_download(dirs, kernel, temp.path()) {
            return Ok(false);
        }
    }
    let deb = std::fs::read_dir(temp.path())
        .context("look at the download")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
        .context("apt-get download left no .deb")?;
    let digest = files::sha256(&deb)?;
    if digest != kernel.sha256 {
        bail!(
            "{} {} has sha256 {digest}, pinned is {}",
            kernel.package,
            kernel.version,
            kernel.sha256
        );
    }
    let to = deb_path(dirs, kernel);
    std::fs::rename(&deb, &to).with_context(|| format!("write {}", to.display()))?;
    Ok(true)
}

/// Returns whether apt's lists have exactly this version.
fn offered(kernel: &Kernel) -> Result<bool> {
    // apt-cache fails for a package that apt does not know, and prints nothing for a version that
    // it does not have.
    let output = Command::new("apt-cache")
        .arg("show")
        .arg(format!("{}={}", kernel.package, kernel.version))
        .stdin(Stdio::null())
        .output()
        .context("start apt-cache")?;
    Ok(output.status.success() && !output.stdout.is_empty())
}

fn try_download(dirs: &Dirs, kernel: &Kernel, dir: &Path) -> bool {
    let mut command = Command::new("apt-get");
    command
        // The sandbox user can't write into the checkout.
        .args(["-o", "APT::Sandbox::User=root", "download"])
        .arg(format!("{}={}", kernel.package, kernel.version))
        .current_dir(dir);
    step::run(&dirs.log, "kernel-download", &mut command).is_ok()
}
