//! Images of Debian packages with all that they depend on, made by `mmdebstrap` once and kept below `target/cache/images`.
//!
//! | name | what is in it |
//! |---|---|
//! | `podman` | podman with runc and netavark, the tools of iptables and nftables |
//! | `nginx` | nginx and wrk |
//! | `redis` | the server and redis-benchmark |
//! | `postgresql` | PostgreSQL 15 with pgbench |
//! | `python` | pip, git |
//! | `cargo` | cargo and rustc with a linker |
//! | `rclone` | rclone with FUSE's `fusermount3` |
//! | `work` | what a programmer has: git, npm, cargo with a linker |
//!
//! All of them have busybox.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;

use crate::{command, fixture, image, paths};

/// Changed where the way of making an image changes, so that cached ones are made anew.
const RECIPE: &str = "1";
const SUITE: &str = "bookworm";
/// How long the download and the unpacking of an image may take.
const LIMIT: Duration = Duration::from_secs(900);

/// The packages of the image of this name.
fn packages(name: &str) -> Option<&'static [&'static str]> {
    Some(match name {
        "podman" => &[
            "podman", "runc", "netavark", "iptables", "nftables", "iproute2", "procps",
        ],
        "nginx" => &["nginx-light", "wrk"],
        "redis" => &["redis-server"],
        "postgresql" => &["postgresql-15"],
        "python" => &["python3-pip", "git"],
        "cargo" => &["cargo", "gcc", "libc6-dev"],
        "rclone" => &["rclone", "fuse3"],
        "work" => &["git", "npm", "cargo", "gcc", "libc6-dev"],
        _ => return None,
    })
}

/// The archive of an image of this module; made by the first call that asks for it.
pub fn archive(name: &str) -> Option<Result<PathBuf>> {
    packages(name).map(|packages| cached(name, packages).with_context(|| format!("image {name}")))
}

fn cached(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let dir = paths::target().join("cache/images");
    fs::create_dir_all(&dir)?;
    let recipe = format!("{RECIPE} {SUITE} {}", packages.join(" "));
    let digest = image::sha256(recipe.as_bytes())?;
    let archive = dir.join(format!("{name}-{}.tar", &digest[..12]));
    // Another run may be about to make the same.
    let _lock = Flock::lock(File::create(dir.join("lock"))?, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)?;
    if archive.exists() {
        return Ok(archive);
    }
    let work = dir.join(format!("{name}.new"));
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work)?;
    let layer = work.join("layer.tar");
    let made = unpack(packages, &work, &layer).and_then(|()| {
        let finished = work.join("image.tar");
        let config = json!({
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            "Cmd": ["sh"],
        });
        image::archive_of_layer(&layer, &config, &fixture::full_name(name), &finished)?;
        Ok(fs::rename(&finished, &archive)?)
    });
    let _ = fs::remove_dir_all(&work);
    made.map(|()| archive)
}

/// Writes the tar of a root with these packages. Services are not started: the tool's root has a policy against it.
fn unpack(packages: &[&str], work: &Path, layer: &Path) -> Result<()> {
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--mode=root", "--variant=essential", "--format=tar"])
        .arg(format!("--include=busybox-static,{}", packages.join(",")))
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-exclude=/usr/share/man/*")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg(SUITE)
        .arg(layer)
        .arg(mirror()?)
        .env("TMPDIR", work)
        .env("SOURCE_DATE_EPOCH", "1700000000");
    let output =
        command::run(&mut mmdebstrap, None, LIMIT).context("apt-get install mmdebstrap")?;
    output.ok().map(drop).context("mmdebstrap")
}

/// The mirror that this machine's apt has the suite from.
fn mirror() -> Result<String> {
    let mut apt = Command::new("apt-get");
    apt.args([
        "indextargets",
        "--format",
        "$(SITE) $(RELEASE)",
        "Created-By: Packages",
    ]);
    let targets = command::run(&mut apt, None, Duration::from_secs(60))?
        .ok()?
        .text();
    let found = targets.lines().find_map(|line| {
        let (site, release) = line.split_once(' ')?;
        (release == SUITE).then(|| site.to_owned())
    });
    found.with_context(|| format!("apt has no mirror of {SUITE}"))
}
