//! `make demo`: two containers in VMs of their own, through a containerd of their own, with a skill and a home.
//!
//! Everything lies below one temporary folder, which is removed at the end, also after Ctrl-C.

mod steps;

use std::{fs, os::unix::fs::PermissionsExt, process::ExitCode};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    node::{caisson, exit_on_signals, LIMIT},
    paths::Containerd,
    Node,
};
use steps::Steps;

fn main() -> ExitCode {
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    exit_on_signals()?;
    let steps = Steps::new();

    let node = steps.run("start containerd 1.6", || {
        Node::start_version(Containerd::V1_6, |_| {})
    })?;
    let node = Node::keep(node);
    steps.run("make an image of busybox-static and import it", || {
        node.image("busybox")
    })?;
    let digest = steps.run("pack a skill: caisson skill pack greeting", || skill(node))?;
    steps.say(&format!("skill greeting is {}…", &digest[..19]));

    let first = steps.run("ctr run --runtime io.containerd.caisson.v2 … first", || {
        in_vm(node, &digest, "uname -r; /opt/skills/greeting/bin/greet; echo 'written by the first container' > ~/note")
    })?;
    let mut lines = first.lines();
    let host = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    steps.say(&format!("kernel of the host:   {}", host.trim()));
    steps.say(&format!(
        "kernel of the guest:  {}",
        lines.next().unwrap_or_default()
    ));
    steps.say(&format!(
        "the skill says:       {}",
        lines.next().unwrap_or_default()
    ));

    let second = steps.run(
        "ctr run --runtime io.containerd.caisson.v2 … second",
        || in_vm(node, &digest, "cat ~/note"),
    )?;
    steps.say(&format!("found in its home:    {}", second.trim()));

    steps.run("stop and remove everything", || {
        node.remove();
        Ok(())
    })?;
    steps.total();
    Ok(())
}

/// A small skill, packed and added to the node's store; its digest.
fn skill(node: &Node) -> Result<String> {
    let tree = node.dir().join("greeting");
    fs::create_dir_all(tree.join("bin"))?;
    fs::write(
        tree.join("SKILL.md"),
        "# greeting\nSays hello from where it runs.\n",
    )?;
    fs::write(
        tree.join("bin/greet"),
        "#!/bin/sh\necho hello from a skill on $(uname -n)\n",
    )?;
    fs::set_permissions(tree.join("bin/greet"), fs::Permissions::from_mode(0o755))?;
    let mut pack = caisson(node)?;
    pack.args(["skill", "pack"]).arg(&tree);
    let output = command::run(&mut pack, None, LIMIT)?
        .ok()
        .context("caisson skill pack")?;
    Ok(output.line())
}

fn in_vm(node: &Node, skill: &str, line: &str) -> Result<String> {
    let container = node.container("busybox");
    let container = container.annotation("caisson.dev/skills", skill);
    let container = container.annotation("caisson.dev/home", "persistent/demo");
    let output = container.sh(line).run()?;
    let output = output
        .ok()
        .with_context(|| format!("containerd's log:\n{}", last_lines(&node.log())))?;
    Ok(output.text())
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
