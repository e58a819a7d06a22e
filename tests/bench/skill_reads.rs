//! Measures reading a skill from its disk in a VM, compared with the same file mounted on the host.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use caisson_tests::{command, node::LIMIT, skill, Node};

use crate::table::{heading, Series};

const MIB: u64 = 64;

/// Prints the times of reading a file of [`MIB`] MiB of noise to its end, each time from a separate
/// mount.
pub fn measure(node: &Node, rounds: usize) -> Result<()> {
    let tree = skill::tree(node, "reads")?;
    let mut noise = fs::File::open("/dev/urandom")?.take(MIB << 20);
    io::copy(&mut noise, &mut fs::File::create(tree.join("noise"))?)?;
    let digest = skill::pack(node, "reads", &tree)?;
    let mut host = Series::new("mounted on the host");
    let mut guest = Series::new("Caisson");
    for _ in 0..rounds {
        host.add(on_the_host(
            &skill::file(node, &digest),
            &node.dir().join("mounted"),
        )?);
        guest.add(in_a_guest(node, &digest)?);
    }
    heading(&format!("\na skill's file of {MIB} MiB read"));
    host.print();
    guest.print();
    Ok(())
}

fn on_the_host(file: &Path, at: &Path) -> Result<Duration> {
    let mounted = Mounted::squashfs(file, at)?;
    let start = Instant::now();
    let mut noise = fs::File::open(mounted.0.join("noise"))?;
    io::copy(&mut noise, &mut io::sink())?;
    Ok(start.elapsed())
}

fn in_a_guest(node: &Node, digest: &str) -> Result<Duration> {
    let container = node
        .container("busybox")
        .annotation("caisson.dev/skills", digest)
        .args(["sleep", "1000"])
        .start()?;
    // The time of an exec that reads nothing is subtracted, since it is not part of the read.
    let read = |path: &str| {
        let start = Instant::now();
        container.exec(["wc", "-c", path])?.ok()?;
        anyhow::Ok(start.elapsed())
    };
    let nothing = read("/dev/null")?;
    Ok(read("/opt/skills/reads/noise")?.saturating_sub(nothing))
}

/// A mount. Dropping it unmounts it.
struct Mounted(PathBuf);

impl Mounted {
    fn squashfs(file: &Path, at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        let mut mount = std::process::Command::new("mount");
        mount
            .args(["-t", "squashfs", "-o", "loop,ro"])
            .arg(file)
            .arg(at);
        command::run(&mut mount, None, LIMIT)?
            .ok()
            .context("mount the skill")?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = nix::mount::umount(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}
