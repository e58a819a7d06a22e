//! `cargo xtask node-vm`: makes the disk of a Debian node for `make test-node`, which boots it as a
//! VM. It has systemd, containerd and what a node of a cluster has besides, and nothing of
//! Caisson's.
//!
//! A disk takes minutes, so it is kept in `~/.cache/caisson/node-vm`, in a folder that is named by
//! a digest of its recipe: this file. `target/cache/node-vm/RELEASE` is a link to it. Its packages
//! are those that Debian had when it was made.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{bail, Context, Result};

use crate::{apt, cache, dirs::Dirs, files, step};

/// Debian's releases by their numbers, and the names of their suites.
const RELEASES: [(&str, &str); 2] = [("12", "bookworm"), ("13", "trixie")];

const PACKAGES: [&str; 29] = [
    // A node.
    "apparmor",
    "containerd",
    "containernetworking-plugins",
    "dbus",
    "iproute2",
    "iptables",
    "kmod",
    "linux-image-amd64",
    "nftables",
    "procps",
    "runc",
    "systemd-sysv",
    "udev",
    // What the package of Caisson depends on: a node VM has no network to get it by.
    "e2fsprogs",
    "libcap-ng0",
    "libgcc-s1",
    "libseccomp2",
    // By which the host runs programs in the VM.
    "qemu-guest-agent",
    // What the harness of the tests runs, when they run in the VM.
    "attr",
    "busybox-static",
    "ca-certificates",
    "cryptsetup-bin",
    "docker-registry",
    "ethtool",
    "lsof",
    "openssh-client",
    "python3-minimal",
    "squashfs-tools",
    "strace",
];

/// What is needed to find the root file system. Without a list, Debian's initrd has every driver,
/// and an emulated VM unpacks it for seconds.
const INITRD_MODULES: &str = "virtio_pci\nvirtio_blk\next4\n";

/// The network of the node's pods, as a cluster's add-on would configure it.
const NETWORK: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "node",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "cni0",
      "isGateway": true,
      "ipMasq": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{ "subnet": "10.88.0.0/16" }]],
        "routes": [{ "dst": "0.0.0.0/0" }]
      }
    },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
"#;

/// Units that would work while a test measures, for what the disk has no use for.
const MASKED: [&str; 5] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
];

/// The size of the file system. The file is sparse.
const SIZE: &str = "12G";

/// Makes the disks of the releases that are named, or of all, unless they are in the cache. Prints
/// where they are.
pub fn build(dirs: &Dirs, wanted: &[&str]) -> Result<()> {
    if let Some(unknown) = wanted
        .iter()
        .find(|name| !RELEASES.iter().any(|(number, _)| number == *name))
    {
        bail!("don't know Debian {unknown}: there are 12 and 13");
    }
    for (number, suite) in RELEASES {
        if wanted.is_empty() || wanted.contains(&number) {
            let disk = cached(dirs, suite)?;
            link(dirs, number, &disk)?;
            println!("{}", disk.display());
        }
    }
    Ok(())
}

/// Returns the folder with a release's `disk`, `vmlinuz` and `initrd`.
fn cached(dirs: &Dirs, suite: &str) -> Result<PathBuf> {
    let cache = cache::dir("node-vm")?;
    let entry = cache::entry(&cache, suite, include_str!("node_vm.rs"))?;
    if entry.exists() {
        cache::use_now(&entry)?;
        return Ok(entry);
    }
    let made = tempfile::tempdir_in(&cache).context("make a folder in the cache")?;
    make(dirs, suite, made.path())?;
    if let Err(error) = fs::rename(made.path(), &entry) {
        // Another checkout was quicker.
        if !entry.exists() {
            return Err(error).with_context(|| format!("make {}", entry.display()));
        }
    }
    cache::remove_old(&cache)?;
    Ok(entry)
}

fn make(dirs: &Dirs, suite: &str, to: &Path) -> Result<()> {
    let temp = tempfile::tempdir_in(&dirs.cache).context("make a folder in the cache")?;
    let root = temp.path().join("root");
    unpack(dirs, suite, temp.path(), &root)?;
    configure(&root)?;
    for (name, prefix) in [("vmlinuz", "vmlinuz-"), ("initrd", "initrd.img-")] {
        files::copy(&only(&root.join("boot"), prefix)?, &to.join(name))?;
    }
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-d"]).arg(&root);
    mkfs.arg(to.join("disk")).arg(SIZE);
    step::run(&dirs.log, &format!("node-vm-{suite}-disk"), &mut mkfs)
}

/// Unpacks and configures the packages. No service is started, since mmdebstrap puts a policy
/// against that into the root.
fn unpack(dirs: &Dirs, suite: &str, temp: &Path, root: &Path) -> Result<()> {
    let list = temp.join("initrd-modules");
    files::write(&list, INITRD_MODULES.as_bytes(), 0o644)?;
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--mode=root", "--variant=minbase", "--format=directory"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-exclude=/usr/share/man/*")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg(r#"--essential-hook=mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d""#)
        .arg(r#"--essential-hook=echo MODULES=list >"$1/etc/initramfs-tools/conf.d/node-vm""#)
        .arg(format!(
            "--essential-hook=upload {} /usr/share/initramfs-tools/modules.d/node-vm",
            list.display()
        ))
        .arg(suite)
        .arg(root)
        .arg(apt::debian_mirror()?)
        .env("TMPDIR", temp);
    step::run(&dirs.log, &format!("node-vm-{suite}"), &mut mmdebstrap)
}

fn configure(root: &Path) -> Result<()> {
    for (path, text) in [
        ("etc/hostname", "node\n"),
        // systemd makes an id at the boot, and takes that for no first boot (machine-id(5)).
        ("etc/machine-id", ""),
        ("etc/cni/net.d/10-node.conflist", NETWORK),
    ] {
        files::write(&root.join(path), text.as_bytes(), 0o644)?;
    }
    // The journal outlives a reboot (journald.conf(5), Storage=auto).
    files::make_dir(&root.join("var/log/journal"))?;
    for unit in MASKED {
        let at = root.join("etc/systemd/system").join(unit);
        symlink("/dev/null", &at).with_context(|| format!("make {}", at.display()))?;
    }
    Ok(())
}

/// Returns the one file of a folder whose name begins so.
fn only(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let names = files::below(dir)?;
    let mut found = names.iter().filter(|name| name.starts_with(prefix));
    match (found.next(), found.next()) {
        (Some(name), None) => Ok(dir.join(name)),
        _ => bail!("{} has not one {prefix}*: {names:?}", dir.display()),
    }
}

/// Lets the tests find a disk.
fn link(dirs: &Dirs, number: &str, disk: &Path) -> Result<()> {
    let links = dirs.cache.join("node-vm");
    files::make_dir(&links)?;
    let link = links.join(number);
    let _ = fs::remove_file(&link);
    symlink(disk, &link).with_context(|| format!("make {}", link.display()))
}
