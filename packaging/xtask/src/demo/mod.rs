//! `cargo xtask demo`: runs two containers in VMs of their own, through a containerd of their own,
//! with a skill and a home.
//!
//! Everything lies below one temporary folder, which is removed at the end, also after Ctrl-C.

mod node;
mod steps;

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use serde_json::json;

use self::{
    node::{exit_on_signals, Node},
    steps::Steps,
};
use crate::{archive::Archive, dirs::Dirs, files, oci_image};

/// The program that the demo runs, from Debian's package busybox-static.
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 3] = ["cat", "sh", "uname"];
const IMAGE: &str = "localhost/busybox:demo";

/// Runs the demo with what `target/dist` has.
pub fn run(dirs: &Dirs) -> Result<()> {
    let steps = Steps::new();
    let node = Arc::new(Node::new(dirs)?);
    exit_on_signals(node.clone())?;
    let ran = show(&steps, &node, dirs);
    let stopped = steps.run("stop and remove everything", || node.remove());
    ran.and(stopped)?;
    steps.total();
    Ok(())
}

fn show(steps: &Steps, node: &Node, dirs: &Dirs) -> Result<()> {
    steps.run("start containerd", || node.start())?;
    steps.run("make an image of busybox-static and import it", || {
        let image = node.dir().join("image.tar");
        write_image(dirs, node.dir(), &image)?;
        node.ctr(&["images", "import", &image.to_string_lossy()])
    })?;
    let skill = steps.run("pack a skill: caisson skill pack greeting", || {
        let tree = node.dir().join("greeting");
        write_skill(&tree)?;
        node.caisson(&["skill", "pack", &tree.to_string_lossy()])
    })?;
    let skill = skill.trim();
    steps.say(&format!(
        "skill greeting is {}…",
        skill.get(..19).unwrap_or(skill)
    ));

    let first = steps.run(
        "ctr run --runtime io.containerd.caisson.v2 … first",
        || {
            let line = "uname -r; /opt/skills/greeting/bin/greet; \
                        echo 'written by the first container' > ~/note";
            in_vm(node, skill, "first", line)
        },
    )?;
    let mut lines = first.lines();
    let host = files::read_text(Path::new("/proc/sys/kernel/osrelease"))?;
    steps.say(&format!("kernel of the host:   {}", host.trim()));
    for what in ["kernel of the guest:", "the skill says:"] {
        steps.say(&format!("{what:<21} {}", lines.next().unwrap_or_default()));
    }

    let second = steps.run(
        "ctr run --runtime io.containerd.caisson.v2 … second",
        || in_vm(node, skill, "second", "cat ~/note"),
    )?;
    steps.say(&format!("found in its home:    {}", second.trim()));
    Ok(())
}

fn in_vm(node: &Node, skill: &str, id: &str, line: &str) -> Result<String> {
    let skills = format!("caisson.dev/skills={skill}");
    let mut run = vec!["run", "--rm", "--runtime", "io.containerd.caisson.v2"];
    run.extend(["--annotation", &skills]);
    run.extend(["--annotation", "caisson.dev/home=persistent/demo"]);
    run.extend([IMAGE, id, "sh", "-c", line]);
    node.ctr(&run)
        .with_context(|| format!("containerd's log:\n{}", node.end_of_log()))
}

fn write_image(dirs: &Dirs, temp: &Path, to: &Path) -> Result<()> {
    let path = temp.join("layer.tar");
    let mut layer = Archive::create(&path)?;
    layer.file("bin/busybox", 0o755, &files::read(Path::new(BUSYBOX))?)?;
    for applet in APPLETS {
        layer.link(&format!("bin/{applet}"), "busybox")?;
    }
    for folder in ["dev", "proc", "root", "sys", "tmp"] {
        layer.folder(folder)?;
    }
    layer.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    layer.finish()?;
    let config = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] });
    oci_image::write(&dirs.log, &path, config, IMAGE, to)
}

/// Writes a small skill: a text for whoever uses it, and a tool.
fn write_skill(tree: &Path) -> Result<()> {
    let text = b"# greeting\nSays hello from where it runs.\n";
    files::write(&tree.join("SKILL.md"), text, 0o644)?;
    let tool = b"#!/bin/sh\necho hello from a skill on $(uname -n)\n";
    files::write(&tree.join("bin/greet"), tool, 0o755)
}
