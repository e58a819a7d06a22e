//! The node that the tests share, and what is on it.

use std::{
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use caisson_tests::{
    fixture,
    node_vm::{Debian, NodeVm},
    paths,
};

/// What a node of a cluster is configured with besides: crictl waits for slow pods.
const CRICTL: &str = "runtime-endpoint: unix:///run/containerd/containerd.sock
image-endpoint: unix:///run/containerd/containerd.sock
timeout: 300
";

static SITE: LazyLock<Mutex<Site>> = LazyLock::new(|| {
    let site = Site::boot().unwrap_or_else(|error| panic!("no node: {error:?}"));
    Mutex::new(site)
});

/// A node VM with images, crictl, and perhaps Caisson.
pub struct Site {
    vm: NodeVm,
    is_installed: bool,
    /// [`Site::files`] before anything of Caisson's was there.
    pristine: String,
}

impl Deref for Site {
    type Target = NodeVm;

    fn deref(&self) -> &NodeVm {
        &self.vm
    }
}

/// Returns the node with Caisson's package and handler, and no pod. Other tests wait meanwhile.
pub fn installed() -> Result<MutexGuard<'static, Site>> {
    let mut site = SITE.lock().unwrap_or_else(PoisonError::into_inner);
    site.install()?;
    site.remove_pods()?;
    Ok(site)
}

/// Returns the node without anything of Caisson's.
pub fn bare() -> Result<MutexGuard<'static, Site>> {
    let mut site = SITE.lock().unwrap_or_else(PoisonError::into_inner);
    if site.is_installed {
        site.remove_pods()?;
        site.uninstall()?;
    }
    Ok(site)
}

/// Returns the package that `cargo xtask release` made.
pub fn package() -> PathBuf {
    let name = format!("caisson_{}_amd64.deb", env!("CARGO_PKG_VERSION"));
    paths::dist().join(name)
}

impl Site {
    fn boot() -> Result<Self> {
        // A folder of the host that the node mounts, so this comes before its boot.
        let images = paths::target().join("cache/node-vm/images");
        fs::create_dir_all(&images)?;
        let archives = ["busybox", "pause"].map(|name| fixture::archive(name, &images));
        let vm = NodeVm::boot(Debian::from_environment()?)?;
        let mut site = Self {
            vm,
            is_installed: false,
            pristine: String::new(),
        };
        for archive in archives {
            site.import(&archive?)?;
        }
        site.configure()?;
        site.pristine = site.files()?;
        Ok(site)
    }

    fn import(&self, archive: &Path) -> Result<()> {
        for namespace in ["default", "k8s.io"] {
            let archive = archive.display();
            self.sh(&format!("ctr -n {namespace} images import {archive}"))?;
        }
        Ok(())
    }

    fn configure(&self) -> Result<()> {
        let crictl = paths::target().join("cache/tools/cri-tools/bin/crictl");
        self.sh(&format!(
            "set -e
            ln -s {crictl} /usr/local/bin/crictl
            echo '{CRICTL}' >/etc/crictl.yaml
            image=$(containerd config dump | sed -n 's/.*sandbox_image = \"\\(.*\\)\"/\\1/p')
            ctr -n k8s.io images tag {pause} $image",
            crictl = crictl.display(),
            pause = fixture::full_name("pause"),
        ))
        .map(drop)
    }

    /// Lists the node's files: of `/etc` with their digests, of programs and stores without.
    pub fn files(&self) -> Result<String> {
        self.sh("cd /; find etc -type f -print0 | sort -z | xargs -0 md5sum
            find opt usr var/lib/caisson | sort")
    }

    /// What [`Site::files`] was before anything of Caisson's was there.
    pub fn pristine(&self) -> &str {
        &self.pristine
    }

    /// Installs the package and the handler, and makes the template of the handler's pods, so that
    /// no pod's start makes it in the background.
    pub fn install(&mut self) -> Result<()> {
        if !self.is_installed {
            self.install_package()?;
            self.sh("caisson node install && /opt/caisson/current/bin/caisson template build")?;
            self.is_installed = true;
        }
        Ok(())
    }

    /// Installs the package by apt, as a user does.
    pub fn install_package(&self) -> Result<String> {
        let package = package();
        self.sh(&format!("apt-get install --yes {}", package.display()))
            .context("cargo xtask release")
    }

    /// Removes the handler and the package with its configuration and stores.
    pub fn uninstall(&mut self) -> Result<()> {
        self.sh(
            "caisson node uninstall && apt-get purge --yes caisson && rm -rf /var/lib/caisson",
        )?;
        self.is_installed = false;
        Ok(())
    }

    /// Removes all pods and containers, also those of a test that has failed.
    fn remove_pods(&self) -> Result<()> {
        self.sh("crictl rmp --force --all
            for id in $(ctr containers list --quiet); do
                ctr tasks delete --force $id; ctr containers delete $id
            done
            crictl pods --quiet | wc -l | grep -qx 0")
            .map(drop)
    }

    /// Fails unless nothing of a pod is left on the node within a minute.
    pub fn has_nothing_left(&self) -> Result<()> {
        self.poll(
            "nothing left of pods",
            "left() {
                pgrep --list-full 'qemu-system|virtiofsd|vhost-device|containerd-shim'
                find /run/caisson -mindepth 1 -maxdepth 1 -not -name '.*'
                grep -E '/run/caisson/.|/io.containerd.runtime.v2.task/' /proc/self/mounts
                losetup --list --noheadings --output BACK-FILE | grep /caisson/
                find /sys/fs/cgroup -type d -name 'cri-containerd*' -o -type d -path '*/default/?*' \\
                    -o -type d -path '*/k8s.io/?*'
                ls /run/netns
            }
            found=$(left 2>/dev/null)
            test -z \"$found\" || { echo \"$found\" >&2; exit 1; }",
        )
        .map(drop)
    }
}
