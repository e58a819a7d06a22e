//! Builds the guest's kernel and its modules.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{ensure, Context, Result};

use super::part::{apply, jobs, sources, Recipe};
use crate::{apt::Kind, dirs::Dirs, files, inputs, step};

/// The packages of this machine that decide about the bytes.
const TOOLS: [&str; 2] = ["binutils", "gcc"];
/// The configuration: its options in the checkout, the whole of it in the part's folder.
const CONFIG: &str = "kernel.config";
/// What is changed in the source.
const PATCH: &str = "kernel.patch";
/// What the GPL asks for beside the source.
pub const PAPERS: [&str; 2] = [CONFIG, PATCH];

/// Says how the kernel is made, and of what.
pub fn recipe<'a>(dirs: &Dirs, pins: &'a inputs::Machine) -> Result<Recipe<'a>> {
    let from = sources(dirs);
    Ok(Recipe {
        name: "kernel",
        pinned: vec![(&pins.linux, Kind::Binary)],
        texts: vec![
            files::read_text(&from.join(CONFIG))?,
            files::read_text(&from.join(PATCH))?,
            include_str!("kernel.rs").to_owned(),
        ],
        tools: &TOOLS,
        make,
    })
}

/// Makes `vmlinux`, `lib/modules`, the whole configuration and the patch in `to`. Returns the
/// copyright text.
fn make(dirs: &Dirs, work: &Path, to: &Path, packages: &[PathBuf]) -> Result<Vec<String>> {
    let config = &sources(dirs).join(CONFIG);
    let change = &sources(dirs).join(PATCH);
    let deb = &packages[0];
    let (package, source, build) = (work.join("deb"), work.join("source"), work.join("build"));
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("-x").arg(deb).arg(&package);
    step::run(&dirs.log, "kernel-package", &mut unpack)?;
    let name = files::name(deb);
    let name = name.split('_').next().unwrap_or_default();
    for dir in [&source, &build] {
        files::make_dir(dir)?;
    }
    let mut unpack = Command::new("tar");
    unpack
        .arg("-xf")
        .arg(package.join(format!("usr/src/{name}.tar.xz")))
        .arg("--strip-components=1")
        .current_dir(&source);
    step::run(&dirs.log, "kernel-source", &mut unpack)?;
    apply(dirs, "kernel-patch", change, &source)?;

    let kbuild = || {
        let mut make = Command::new("make");
        make.arg("-C")
            .arg(&source)
            .arg(format!("O={}", build.display()));
        // The same inputs give the same bytes (Documentation/kbuild/reproducible-builds.rst).
        make.env("KBUILD_BUILD_TIMESTAMP", "2026-01-01")
            .env("KBUILD_BUILD_USER", "caisson")
            .env("KBUILD_BUILD_HOST", "caisson")
            .env("KBUILD_BUILD_VERSION", "1")
            .env("LC_ALL", "C");
        make
    };
    let mut configure = kbuild();
    configure
        .arg("allnoconfig")
        .env("KCONFIG_ALLCONFIG", config);
    step::run(&dirs.log, "kernel-configure", &mut configure)?;
    let result = build.join(".config");
    let ignored = ignored(&files::read_text(config)?, &files::read_text(&result)?);
    ensure!(
        ignored.is_empty(),
        "kconfig ignores lines of {}, since something that they depend on is missing: {}",
        config.display(),
        ignored.join(", ")
    );
    let mut compile = kbuild();
    compile.args([&jobs(), "vmlinux", "modules"]);
    step::run(&dirs.log, "kernel-compile", &mut compile)?;

    let mut strip = Command::new("strip");
    strip
        .arg("-o")
        .arg(to.join("vmlinux"))
        .arg(build.join("vmlinux"));
    step::run(&dirs.log, "kernel-strip", &mut strip)?;
    let mut install = kbuild();
    install
        .arg("modules_install")
        .arg(format!("INSTALL_MOD_PATH={}", to.display()))
        .arg("INSTALL_MOD_STRIP=1");
    step::run(&dirs.log, "kernel-modules", &mut install)?;
    remove_link_to_build(&to.join("lib/modules"))?;
    files::copy(&result, &to.join(CONFIG))?;
    files::copy(change, &to.join(PATCH))?;
    let copyright = package.join(format!("usr/share/doc/{name}/copyright"));
    Ok(vec![files::read_text(&copyright)?])
}

/// Returns the lines of a configuration that kconfig did not take over.
fn ignored(wanted: &str, result: &str) -> Vec<String> {
    let set = |line: &str| result.lines().any(|found| found == line);
    let taken = |line: &str| match line.strip_suffix("=n") {
        Some(option) => !result.contains(&format!("\n{option}=")),
        None => set(line),
    };
    wanted
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && !taken(line))
        .map(str::to_owned)
        .collect()
}

/// `modules_install` leaves a link to the folder that it was built in.
fn remove_link_to_build(modules: &Path) -> Result<()> {
    for release in std::fs::read_dir(modules).context("list the kernel's modules")? {
        let link = release
            .context("list the kernel's modules")?
            .path()
            .join("build");
        if link.is_symlink() {
            std::fs::remove_file(&link).with_context(|| format!("remove {}", link.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_that_kconfig_does_not_take_over_is_ignored() {
        let result = "# comment\nCONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D=y\n";
        let wanted = "# why\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\nCONFIG_D=n\nCONFIG_E=n\n";
        assert_eq!(ignored(wanted, result), ["CONFIG_B=y", "CONFIG_D=n"]);
    }
}
