//! Installation, upgrade and removal of the Debian package, and of the handler.

use anyhow::Result;
use serde_json::{json, Value};

use crate::site;

#[test]
fn package_installed_by_apt_runs_and_needs_nothing_more() -> Result<()> {
    let node = site::bare()?;
    let said = node.install_package()?;
    assert!(said.contains("Setting up caisson"), "{said}");
    // The node's dpkg leaves out what nobody reads there.
    let differs = "dpkg --verify caisson | grep -v ' /usr/share/doc/' || true";
    assert_eq!(node.sh(differs)?, "");
    assert_eq!(
        node.sh("caisson --version")?,
        format!("caisson {}", env!("CARGO_PKG_VERSION"))
    );
    // None of its programs lacks a library.
    node.sh(
        "for program in $(find /usr/lib/caisson/bin /usr/lib/caisson/libexec -type f -perm /1); do
            ldd $program | grep 'not found' && exit 1
        done
        true",
    )?;
    Ok(())
}

/// Its KVM is slow, since it is emulated itself, and still it is KVM that is to be used.
#[test]
fn node_install_on_a_slow_kvm_chooses_kvm() -> Result<()> {
    let node = site::installed()?;
    let status: Value = serde_json::from_str(&node.sh("caisson node status --json")?)?;
    assert_eq!(status["ready"], true, "{status}");
    assert_eq!(status["accelerator"], "kvm", "{status}");
    Ok(())
}

#[test]
fn check_on_a_slow_kvm_finds_that_it_works() -> Result<()> {
    let node = site::installed()?;
    // Its status is that of the whole node.
    let lines: Value = serde_json::from_str(&node.sh("caisson check --json || true")?)?;
    let lines = lines.as_array().cloned().unwrap_or_default();
    let kvm = lines.iter().find(|line| line["name"] == "kvm");
    let found = kvm.map_or("", |kvm| kvm["found"].as_str().unwrap_or_default());
    println!("{found}");
    assert!(
        found.starts_with("accelerator kvm: a guest booted under KVM in "),
        "{lines:#?}"
    );
    let failed = lines.iter().filter(|line| line["standing"] == "fail");
    assert_eq!(failed.count(), 0, "{lines:#?}");
    Ok(())
}

#[test]
fn package_upgraded_while_a_pod_runs_leaves_the_pod_as_it_is() -> Result<()> {
    let node = site::installed()?;
    let pod = node.pod("upgraded", json!({}))?;
    let container = pod.sleeping()?;
    let qemu = pod.process("qemu")?;
    // The same files as a later version, which is what a user's `apt upgrade` unpacks over them.
    node.sh(&format!(
        "set -e; rm -rf /var/tmp/later; dpkg-deb --raw-extract {} /var/tmp/later
        sed -i 's/^Version: .*/&+later/' /var/tmp/later/DEBIAN/control
        dpkg-deb -Znone --build /var/tmp/later /var/tmp/later.deb
        apt-get install --yes /var/tmp/later.deb
        rm -rf /var/tmp/later /var/tmp/later.deb",
        site::package().display()
    ))?;
    assert_eq!(container.sh("echo goes on")?, "goes on");
    assert_eq!(pod.process("qemu")?, qemu);
    pod.remove()?;
    let next = node.pod("after-the-upgrade", json!({}))?;
    assert_eq!(next.sleeping()?.sh("echo runs")?, "runs");
    next.remove()?;
    node.has_nothing_left()
}

/// The handler's files are the package's no more: `caisson node install` has copied them.
#[test]
fn package_removed_while_a_pod_runs_leaves_the_pod_and_the_handler() -> Result<()> {
    let node = site::installed()?;
    let pod = node.pod("outlives", json!({}))?;
    let container = pod.sleeping()?;
    node.sh("apt-get remove --yes caisson")?;
    assert_eq!(container.sh("echo goes on")?, "goes on");
    pod.remove()?;
    let next = node.pod("after-the-removal", json!({}))?;
    assert_eq!(next.sleeping()?.sh("echo runs")?, "runs");
    next.remove()?;
    node.install_package()?;
    node.has_nothing_left()
}

#[test]
fn uninstall_while_a_pod_runs_is_refused_and_leaves_it() -> Result<()> {
    let node = site::installed()?;
    let pod = node.pod("in-the-way", json!({}))?;
    let container = pod.sleeping()?;
    let refused = node.run("caisson node uninstall", caisson_tests::node_vm::LIMIT)?;
    assert_ne!(refused.code, 0);
    let errors = refused.errors();
    assert!(errors.contains("tests/in-the-way"), "{errors}");
    assert_eq!(container.sh("echo goes on")?, "goes on");
    pod.remove()
}

#[test]
fn uninstalled_node_is_as_it_was() -> Result<()> {
    let mut node = site::installed()?;
    node.uninstall()?;
    let after = node.files()?;
    let before: Vec<&str> = node.pristine().lines().collect();
    let new: Vec<&str> = after
        .lines()
        .filter(|line| !before.contains(line))
        .collect();
    assert!(new.is_empty(), "{new:?}");
    assert_eq!(node.sh("systemctl is-active containerd")?, "active");
    Ok(())
}
