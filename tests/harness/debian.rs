//! Images of Debian packages with all their dependencies. `mmdebstrap` makes each once; they are
//! kept below `target/cache/images`.
//!
//! | name | what is in it |
//! |---|---|
//! | `podman` | podman with runc and netavark, the tools of iptables and nftables |
//! | `nginx` | nginx, which it runs, and wrk |
//! | `redis` | the server and redis-benchmark |
//! | `postgresql` | PostgreSQL 15 with pgbench |
//! | `python` | pip, git |
//! | `node` | Node.js with a library for WebSockets |
//! | `jupyterhub` | JupyterHub with its proxy and a kernel; a client of WebSockets |
//! | `npm` | npm with Node.js |
//! | `java` | OpenJDK 17 without graphics |
//! | `pytest` | pytest |
//! | `cargo` | cargo and rustc with a linker |
//! | `rclone` | rclone with FUSE's `fusermount3` |
//! | `features` | the tools of ACLs and of flags of inodes, and python |
//! | `agnhost` | the program of Kubernetes' end-to-end tests, curl and network tools |
//! | `workspace` | headless Chromium, socat, curl, and shellinabox, a terminal in the browser |
//! | `work` | a programmer's tools: git, npm, cargo with a linker |
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

/// Increased when the way of making an image changes, so that cached images are made anew.
const RECIPE: &str = "1";
const SUITE: &str = "bookworm";
/// A hook. critest looks for a text in `/proc/1/cmdline`, which has a NUL byte, and wants nothing
/// on standard error, where GNU's grep would report that a binary file matches.
const BUSYBOX_GREP: &str = r#"ln -sf busybox "$1/bin/grep""#;
/// How long the download and the unpacking of an image may take.
const LIMIT: Duration = Duration::from_secs(900);

/// The contents of an image.
struct Recipe {
    packages: &'static [&'static str],
    /// Hooks that mmdebstrap runs once the packages are installed (mmdebstrap(1), HOOKS).
    hooks: Vec<String>,
    entrypoint: &'static [&'static str],
    cmd: &'static [&'static str],
}

fn recipe(name: &str) -> Option<Result<Recipe>> {
    let packages: &[_] = match name {
        "podman" => &[
            "podman", "runc", "netavark", "iptables", "nftables", "iproute2", "procps",
        ],
        "nginx" => &["nginx-light", "wrk"],
        "redis" => &["redis-server"],
        "postgresql" => &["postgresql-15"],
        "python" => &["python3-pip", "git"],
        "node" => &["nodejs", "node-ws"],
        "jupyterhub" => &["jupyterhub", "python3-ipykernel", "python3-websocket"],
        "npm" => &["npm"],
        "java" => &["openjdk-17-jdk-headless"],
        "pytest" => &["python3-pytest"],
        "cargo" => &["cargo", "gcc", "libc6-dev", "mount"],
        "rclone" => &["rclone", "fuse3"],
        "features" => &["acl", "e2fsprogs", "python3-minimal"],
        "workspace" => &["chromium-headless-shell", "socat", "shellinabox", "curl"],
        "work" => &["git", "npm", "cargo", "gcc", "libc6-dev", "mount"],
        "agnhost" => return Some(agnhost()),
        _ => return None,
    };
    let (hooks, cmd): (_, &[_]) = match name {
        "nginx" => (vec![BUSYBOX_GREP.into()], &["nginx", "-g", "daemon off;"]),
        _ => (Vec::new(), &["sh"]),
    };
    Some(Ok(Recipe {
        packages,
        hooks,
        entrypoint: &[],
        cmd,
    }))
}

/// Follows `k8s.io/kubernetes/test/images/agnhost/Dockerfile`, without CoreDNS and iperf.
fn agnhost() -> Result<Recipe> {
    let program = paths::conformance("agnhost")?;
    let digest = image::sha256(File::open(&program)?)?;
    let upload = |name: &str| {
        let file = paths::conformance(name)?;
        anyhow::Ok(format!("upload {} /{name}", file.display()))
    };
    Ok(Recipe {
        packages: &["curl", "bind9-dnsutils", "netcat-openbsd", "iproute2"],
        hooks: vec![
            format!("# the program's digest is {digest}"),
            upload("agnhost")?,
            upload("localhost.crt")?,
            upload("localhost.key")?,
            r#"chmod 755 "$1/agnhost" && ln -s agnhost "$1/agnhost-2" && mkdir "$1/uploads""#
                .into(),
            r#"echo user-defined-in-image:x:1000:1000::/home:/bin/sh >> "$1/etc/passwd""#.into(),
            r#"echo user-defined-in-image:x:1000: >> "$1/etc/group""#.into(),
            r#"echo group-defined-in-image:x:50000:user-defined-in-image >> "$1/etc/group""#.into(),
        ],
        entrypoint: &["/agnhost"],
        cmd: &["pause"],
    })
}

/// Returns the archive of an image of this module. The first call for it makes it.
pub fn archive(name: &str) -> Option<Result<PathBuf>> {
    recipe(name)
        .map(|recipe| cached(name, &recipe?))
        .map(|made| made.with_context(|| format!("image {name}")))
}

fn cached(name: &str, recipe: &Recipe) -> Result<PathBuf> {
    let dir = paths::target().join("cache/images");
    fs::create_dir_all(&dir)?;
    let packages = recipe.packages.join(" ");
    let (entrypoint, cmd) = (recipe.entrypoint, recipe.cmd);
    let hooks = recipe.hooks.join("\n");
    let text = format!("{RECIPE} {SUITE} {packages}{hooks}{entrypoint:?}{cmd:?}");
    let digest = image::sha256(text.as_bytes())?;
    let archive = dir.join(format!("{name}-{}.tar", &digest[..12]));
    // Another run may be about to make the same image.
    let _lock = Flock::lock(File::create(dir.join("lock"))?, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)?;
    if archive.exists() {
        return Ok(archive);
    }
    let work = dir.join(format!("{name}.new"));
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work)?;
    let layer = work.join("layer.tar");
    let made = unpack(recipe, &work, &layer).and_then(|()| {
        let finished = work.join("image.tar");
        let config = json!({
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            "Entrypoint": recipe.entrypoint,
            "Cmd": recipe.cmd,
        });
        let layer = image::Layer::plain(&layer)?;
        image::write(&layer, &config, &fixture::full_name(name), &finished)?;
        Ok(fs::rename(&finished, &archive)?)
    });
    let _ = fs::remove_dir_all(&work);
    made.map(|()| archive)
}

/// Writes the tar of a root with these packages. Services are not started, since mmdebstrap puts a
/// policy against that into the root.
fn unpack(recipe: &Recipe, work: &Path, layer: &Path) -> Result<()> {
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--mode=root", "--variant=essential", "--format=tar"])
        .arg(format!(
            "--include=busybox-static,{}",
            recipe.packages.join(",")
        ))
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-exclude=/usr/share/man/*")
        // Java's packages make links in this folder and fail without it.
        .arg("--dpkgopt=path-include=/usr/share/man/man1")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .args(
            recipe
                .hooks
                .iter()
                .map(|hook| format!("--customize-hook={hook}")),
        )
        .arg(SUITE)
        .arg(layer)
        .arg(mirror()?)
        .env("TMPDIR", work)
        .env("SOURCE_DATE_EPOCH", "1700000000");
    let output =
        command::run(&mut mmdebstrap, None, LIMIT).context("apt-get install mmdebstrap")?;
    output.ok().map(drop).context("mmdebstrap")
}

/// Returns the mirror from which this machine's apt has the suite.
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
