//! The tests that run on any machine, run in the node: under KVM, systemd and cgroup v2.

use std::{process::Command, time::Duration};

use anyhow::{ensure, Context, Result};
use caisson_tests::{command, node_vm::Debian, paths};
use rstest::rstest;
use serde_json::Value;

use crate::site;

/// How long one of them may take in an emulated node.
const LIMIT: Duration = Duration::from_secs(3 * 3600);

#[rstest]
fn suite_passes_in_the_node(
    #[values(
        "machine",
        "control",
        "events",
        "exit_codes",
        "kills",
        "homes",
        "skills",
        "network",
        "port_forward",
        "clones",
        "pool",
        "cri_lifecycle",
        "cri_network",
        "cri_volumes",
        "cri_resources",
        "cri_kills",
        "cri_users",
        "node_install"
    )]
    suite: &str,
) -> Result<()> {
    let program = program(suite)?;
    let node = site::bare()?;
    // The containerd that this Debian has, of which the tests start one of their own.
    let version = match node.debian() {
        Debian::V12 => "1.6",
        Debian::V13 => "1.7",
    };
    let target = paths::target();
    // What they print is on the node's console meanwhile. The host's templates are of no use here,
    // and 9p does not say where a sparse file has its data: looking through one takes minutes.
    let script = format!(
        "set -o pipefail
        templates=/var/lib/suites/templates; mkdir -p $templates {target}/templates
        mountpoint -q {target}/templates || mount --bind $templates {target}/templates
        cd {} && systemd-run --pipe --wait --collect --unit=suite --property=Delegate=yes \
            --setenv=PATH=$PATH --setenv=HOME=/root --setenv=CARGO_TARGET_DIR={target} \
            --setenv=CAISSON_TEST_CONTAINERD={version} --setenv=CAISSON_TEST_ACCELERATOR=kvm \
            {program} --test-threads 1 2>&1 | tee /dev/console",
        paths::workspace().display(),
        target = target.display(),
    );
    let output = node.run(&script, LIMIT)?;
    let text = output.text();
    println!("{text}");
    ensure!(output.code == 0, "{suite}: exit code {}", output.code);
    Ok(())
}

/// Returns the path of a compiled test, which cargo builds first if needed.
fn program(suite: &str) -> Result<String> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args([
            "test",
            "--no-run",
            "--package",
            "caisson-tests",
            "--test",
            suite,
        ])
        .arg("--message-format=json")
        .current_dir(paths::workspace());
    let said = command::run(&mut cargo, None, LIMIT)?.ok()?.text();
    let artifacts = said
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    artifacts
        .filter_map(|artifact: Value| {
            let is_it = artifact["target"]["name"] == suite;
            let program = artifact["executable"].as_str().filter(|_| is_it);
            program.map(str::to_owned)
        })
        .next_back()
        .with_context(|| format!("cargo built no {suite}"))
}
