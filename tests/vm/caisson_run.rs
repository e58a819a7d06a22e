//! Tests `caisson run`, `check` and `gc`: what is left of a run, however it ends, and what plugs
//! into one. Streams, exit codes and terminals are in `run.rs`.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use caisson_tests::{
    command::{self, Output, Stdin},
    fixture,
    node::{caisson, LIMIT},
    proc, skill, Leftovers, Node,
};

#[test]
fn run_prints_the_guests_kernel_reads_stdin_and_returns_42() -> Result<()> {
    let node = Node::shared();
    let mut run = run(node, &[], &["sh", "-c", "uname -r; cat; exit 42"])?;
    let output = command::run(&mut run, Some(Stdin::from(b"to the end".to_vec())), LIMIT)?;
    let host = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let text = output.text();
    let (kernel, rest) = text.split_once('\n').context("two lines")?;
    assert_eq!((output.code, rest), (42, "to the end"));
    assert_ne!(kernel, host.trim());
    Ok(())
}

#[test]
fn run_of_an_unknown_command_leaves_nothing() -> Result<()> {
    let node = Node::start()?;
    let before = Leftovers::count(&node);
    let output = finish(run(&node, &[], &["no-such-command"])?)?;
    assert_eq!(output.code, 125);
    let error = output.errors();
    assert!(error.contains("no-such-command"), "{error}");
    assert_eq!(bundles(&node), Vec::<String>::new());
    Leftovers::none_since(&node, &before)
}

#[test]
fn run_reads_a_skill_by_digest_and_by_file() -> Result<()> {
    let node = Node::shared();
    let tree = node.dir().join("tree");
    fs::create_dir_all(&tree)?;
    fs::write(tree.join("SKILL.md"), "# known\n")?;
    let file = node.dir().join("known.squashfs");
    let mut pack = caisson(node)?;
    pack.args(["skill", "pack", "--output"])
        .args([&file, &tree]);
    finish(pack)?.ok()?;
    let digest = skill::add(node, "added", &file)?;

    let named = format!("other={digest}");
    let by_digest = run(
        node,
        &["--skill", &named],
        &["cat", "/opt/skills/other/SKILL.md"],
    )?;
    assert_eq!(finish(by_digest)?.ok()?.line(), "# known");
    let file = file.display().to_string();
    let by_file = run(
        node,
        &["--skill", &file],
        &["cat", "/opt/skills/known/SKILL.md"],
    )?;
    assert_eq!(finish(by_file)?.ok()?.line(), "# known");
    Ok(())
}

#[test]
fn run_of_a_folder_writes_into_it() -> Result<()> {
    let node = Node::shared();
    let folder = node.dir().join("a root");
    fs::create_dir_all(folder.join("bin"))?;
    fs::copy("/bin/busybox", folder.join("bin/sh"))?;
    let mut run = caisson(node)?;
    run.arg("run").arg(&folder);
    run.args(["--", "/bin/sh", "-c", "echo kept > /new"]);
    finish(run)?.ok()?;
    assert_eq!(fs::read_to_string(folder.join("new"))?, "kept\n");
    Ok(())
}

#[test]
fn run_whose_reader_has_gone_ends_as_by_a_broken_pipe() -> Result<()> {
    let node = Node::start()?;
    let before = Leftovers::count(&node);
    let mut run = run(&node, &[], &["yes"])?;
    let mut child = run.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    drop(child.stdout.take());
    let status = command::wait(&mut child, LIMIT)?.context("it goes on")?;
    assert_eq!(status.code(), Some(128 + libc::SIGPIPE));
    Leftovers::none_since(&node, &before)
}

#[test]
fn run_that_is_interrupted_twice_is_killed() -> Result<()> {
    let node = Node::start()?;
    let before = Leftovers::count(&node);
    // An init without a handler ignores the first signal.
    let mut run = run(&node, &[], &["sh", "-c", "echo ready; exec sleep 1000"])?;
    let running = command::spawn(&mut run, None)?;
    running.wait_for_output("ready")?;
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(500));
        proc::kill(running.pid(), libc::SIGINT);
    }
    assert_eq!(running.finish(LIMIT)?.code, 137);
    Leftovers::none_since(&node, &before)
}

#[test]
fn run_that_is_interrupted_while_it_starts_leaves_nothing() -> Result<()> {
    let node = Node::start()?;
    let before = Leftovers::count(&node);
    let mut run = run(&node, &[], &["sleep", "1000"])?;
    // No start is done by then. A program that runs would get the signal, and PID 1 ignores it.
    for delay in [20, 60, 120] {
        let running = command::spawn(&mut run, None)?;
        std::thread::sleep(Duration::from_millis(delay));
        proc::kill(running.pid(), libc::SIGTERM);
        assert_eq!(running.finish(LIMIT)?.code, 143, "after {delay} ms");
        assert_eq!(bundles(&node), Vec::<String>::new());
    }
    Leftovers::none_since(&node, &before)
}

#[test]
fn killed_run_is_swept_by_gc_and_by_the_next_run_and_its_home_is_kept() -> Result<()> {
    let node = Node::start()?;
    let before = Leftovers::count(&node);
    let killed = || -> Result<()> {
        let line = "echo kept > ~/note; sync; echo ready; exec sleep 1000";
        let mut run = run(&node, &["--home", "runs"], &["sh", "-c", line])?;
        let running = command::spawn(&mut run, None)?;
        running.wait_for_output("ready")?;
        proc::kill(running.pid(), libc::SIGKILL);
        assert_eq!(running.finish(LIMIT)?.code, 137);
        assert_eq!(bundles(&node).len(), 1);
        Ok(())
    };
    killed()?;
    let mut gc = caisson(&node)?;
    gc.arg("gc");
    let output = finish(gc)?.ok()?;
    assert!(output.text().contains("run-"), "{}", output.text());
    Leftovers::none_since(&node, &before)?;

    killed()?;
    let output = finish(run(&node, &["--home", "runs"], &["cat", "/root/note"])?)?.ok()?;
    assert_eq!(output.line(), "kept");
    assert_eq!(bundles(&node), Vec::<String>::new());
    Leftovers::none_since(&node, &before)
}

#[test]
fn check_exits_with_0_on_this_node_and_with_1_where_something_is_missing() -> Result<()> {
    let node = Node::shared();
    let mut check = caisson(node)?;
    check.arg("check");
    let output = finish(check)?.ok()?.text();
    for name in ["cpu", "kvm", "qemu", "virtiofsd", "guest image", "Linux 6."] {
        assert!(output.contains(name), "{name}: {output}");
    }
    let broken = node.dir().join("broken");
    fs::create_dir_all(&broken)?;
    let config = fs::read_to_string(node.config_file())?;
    fs::write(
        broken.join("config.toml"),
        config.replace("vmlinux", "no-such-kernel"),
    )?;
    let mut check = caisson(node)?;
    check
        .args(["check", "--json"])
        .env("CAISSON_CONFIG", broken.join("config.toml"));
    let output = finish(check)?;
    let lines: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let guest = lines.as_array().context("lines")?.iter();
    let guest = guest
        .clone()
        .find(|line| line["name"] == "guest image")
        .context("guest image")?;
    assert_eq!((output.code, &guest["standing"]), (1, &"fail".into()));
    assert!(guest["todo"].is_string(), "{guest}");
    Ok(())
}

#[test]
fn check_of_a_broken_configuration_names_the_key() -> Result<()> {
    let node = Node::shared();
    let file = node.dir().join("nonsense.toml");
    fs::write(&file, "[vm]\ncpu = 1\n")?;
    let mut check = caisson(node)?;
    check.arg("check").env("CAISSON_CONFIG", &file);
    let output = finish(check)?;
    assert_eq!(output.code, 1);
    let text = output.text();
    assert!(
        text.contains("FAIL  configuration") && text.contains("cpu"),
        "{text}"
    );
    Ok(())
}

/// Returns the command `caisson run` for the image busybox.
fn run(node: &Node, options: &[&str], command: &[&str]) -> Result<Command> {
    let mut run = caisson(node)?;
    run.arg("run").args(options).arg(archive(node)?);
    run.arg("--").args(command);
    Ok(run)
}

fn archive(node: &Node) -> Result<PathBuf> {
    let dir = node.dir().join("archives").join(node.next_id());
    fs::create_dir_all(&dir)?;
    fixture::archive("busybox", &dir).context("archive")
}

fn finish(mut command: Command) -> Result<Output> {
    command::run(&mut command, None, LIMIT)
}

/// Returns the bundles of runs, whose folder must be inaccessible to other users.
fn bundles(node: &Node) -> Vec<String> {
    let runs = node.store_dir().join("run");
    let mode = fs::metadata(&runs).map(|metadata| metadata.permissions().mode() & 0o777);
    assert_eq!(mode.ok(), Some(0o700));
    let names = fs::read_dir(runs).into_iter().flatten().flatten();
    names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != ".lock")
        .collect()
}
