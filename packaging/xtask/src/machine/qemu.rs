//! Builds QEMU with the devices of `packaging/machine/qemu-devices.mak` and nothing else: one
//! static program, and the firmware that it loads into a guest.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::part::{apply, jobs, sources, Recipe};
use crate::{apt::Kind, dirs::Dirs, files, inputs, step};

/// The program, in the part's folder and in `libexec`.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// The folder with the firmware, in the part's folder and in `libexec`.
pub const ROMS: &str = "roms";
/// How QEMU was configured, in the part's folder.
const CONFIG: &str = "qemu.config";
/// What is changed in the source.
const PATCH: &str = "qemu.patch";
/// What the GPL asks for beside the source.
pub const PAPERS: [&str; 2] = [CONFIG, PATCH];
const DEVICES: &str = "qemu-devices.mak";
const REQUIREMENTS: &str = "requirements.txt";

/// The packages of this machine that QEMU is statically linked with.
pub const LINKED: [&str; 5] = [
    "libc6-dev",
    "libglib2.0-dev",
    "libpcre2-dev",
    "libseccomp-dev",
    "zlib1g-dev",
];
/// The packages of this machine that decide about the bytes.
const TOOLS: [&str; 7] = [
    "binutils", "gcc", LINKED[0], LINKED[1], LINKED[2], LINKED[3], LINKED[4],
];

/// What QEMU's configure gets: nothing but an x86 machine, by emulation or KVM, whose devices may
/// be other processes' (vhost-user) or the host kernel's (vhost).
const OPTIONS: [&str; 14] = [
    "--target-list=x86_64-softmmu",
    "--static",
    "--enable-pie",
    "--without-default-features",
    "--without-default-devices",
    "--with-devices-x86_64=caisson",
    "--enable-tcg",
    "--enable-kvm",
    "--enable-seccomp",
    "--enable-vhost-user",
    "--enable-vhost-kernel",
    "--enable-vhost-net",
    "--disable-download",
    "--disable-install-blobs",
];

/// The firmware: of QEMU's own source, what starts a kernel by its PVH entry, and the substitute
/// for an interrupt controller that KVM lacks on old processors; and SeaBIOS.
const OPTION_ROMS: [&str; 3] = ["kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin"];
const BIOS: &str = "bios-256k.bin";
/// The files in the folder with the firmware.
pub const FIRMWARE: [&str; 4] = [BIOS, OPTION_ROMS[0], OPTION_ROMS[1], OPTION_ROMS[2]];

/// Says how QEMU is made, and of what.
pub fn recipe<'a>(dirs: &Dirs, pins: &'a inputs::Machine) -> Result<Recipe<'a>> {
    let from = sources(dirs);
    Ok(Recipe {
        name: "qemu",
        pinned: vec![(&pins.qemu, Kind::Source), (&pins.seabios, Kind::Binary)],
        texts: vec![
            files::read_text(&from.join(DEVICES))?,
            files::read_text(&from.join(PATCH))?,
            files::read_text(&from.join(REQUIREMENTS))?,
            include_str!("qemu.rs").to_owned(),
        ],
        tools: &TOOLS,
        make,
    })
}

/// Makes the part in `to` from the files of the two packages. Returns their copyright texts.
fn make(dirs: &Dirs, work: &Path, to: &Path, packages: &[PathBuf]) -> Result<Vec<String>> {
    let from = sources(dirs);
    let source = work.join("source");
    let mut unpack = Command::new("dpkg-source");
    unpack.arg("-x").arg(&packages[0]).arg(&source);
    step::run(&dirs.log, "qemu-source", &mut unpack)?;
    apply(dirs, "qemu-patch", &from.join(PATCH), &source)?;
    files::copy(
        &from.join(DEVICES),
        &source.join("configs/devices/x86_64-softmmu/caisson.mak"),
    )?;

    let python = work.join("python");
    let mut venv = Command::new("python3");
    step::run(
        &dirs.log,
        "qemu-python",
        venv.args(["-m", "venv"]).arg(&python),
    )?;
    let mut pip = Command::new(python.join("bin/pip"));
    pip.args(["install", "--disable-pip-version-check", "--require-hashes"])
        .arg("--requirement")
        .arg(from.join(REQUIREMENTS));
    step::run(&dirs.log, "qemu-pip", &mut pip)?;
    let python = python.join("bin/python3");

    let build = work.join("build");
    files::make_dir(&build)?;
    let mut configure = Command::new(source.join("configure"));
    configure
        .args(OPTIONS)
        .arg(format!("--python={}", python.display()))
        // Nothing in the program tells where it was built.
        .arg(format!(
            "--extra-cflags=-ffile-prefix-map={}=qemu",
            work.display()
        ))
        .current_dir(&build)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    step::run(&dirs.log, "qemu-configure", &mut configure)?;
    let mut compile = Command::new("ninja");
    compile.args([&jobs(), PROGRAM]).current_dir(&build);
    step::run(&dirs.log, "qemu-compile", &mut compile)?;
    let mut strip = Command::new("strip");
    strip
        .arg("-o")
        .arg(to.join(PROGRAM))
        .arg(build.join(PROGRAM));
    step::run(&dirs.log, "qemu-strip", &mut strip)?;

    let roms = to.join(ROMS);
    make_option_roms(dirs, &source, &work.join("roms"), &python, &roms)?;
    let seabios = work.join("seabios");
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("-x").arg(&packages[1]).arg(&seabios);
    step::run(&dirs.log, "seabios", &mut unpack)?;
    let share = seabios.join("usr/share");
    files::copy(&share.join("seabios").join(BIOS), &roms.join(BIOS))?;

    let config = format!(
        "# configure {}\n{}",
        OPTIONS.join(" "),
        files::read_text(&from.join(DEVICES))?
    );
    files::write(&to.join(CONFIG), config.as_bytes(), 0o644)?;
    files::copy(&from.join(PATCH), &to.join(PATCH))?;
    Ok(vec![
        files::read_text(&source.join("debian/copyright"))?,
        files::read_text(&share.join("doc/seabios/copyright"))?,
    ])
}

/// Makes the ROMs of QEMU's `pc-bios/optionrom`, whose Makefile wants these variables.
fn make_option_roms(
    dirs: &Dirs,
    source: &Path,
    work: &Path,
    python: &Path,
    to: &Path,
) -> Result<()> {
    let variables = format!(
        "TOPSRC_DIR={}\nCC=gcc\nOBJCOPY=objcopy\nPYTHON={}\n",
        source.display(),
        python.display()
    );
    files::write(&work.join("config.mak"), variables.as_bytes(), 0o644)?;
    let mut make = Command::new("make");
    make.arg("-f")
        .arg(source.join("pc-bios/optionrom/Makefile"))
        .args(OPTION_ROMS)
        .current_dir(work);
    step::run(&dirs.log, "qemu-roms", &mut make)?;
    for name in OPTION_ROMS {
        files::copy(&work.join(name), &to.join(name))?;
    }
    Ok(())
}
