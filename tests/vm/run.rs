//! Tests `caisson run`, which works without containerd.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result};
use caisson_tests::{
    command::{self, Output, Stdin},
    fixture,
    node::{caisson, LIMIT},
    proc,
    terminal::Terminal,
    Node,
};

#[test]
fn run_of_an_archive_has_streams_and_exit_code_of_the_command() -> Result<()> {
    let mut run = run(&["--memory", "256M", "--cpus", "2"])?;
    run.arg(archive("busybox")?);
    run.args([
        "--",
        "sh",
        "-c",
        "cat; echo err >&2; uname -r; grep -c ^processor /proc/cpuinfo; exit 7",
    ]);
    let output = command::run(&mut run, Some(Stdin::from(b"from stdin\n".to_vec())), LIMIT)?;
    let host = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let text = output.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        (output.code, output.errors().as_str()),
        (7, "err\n"),
        "{text}"
    );
    assert_eq!((lines.len(), lines[0], lines[2]), (3, "from stdin", "2"));
    assert_ne!(lines[1], host.trim());
    Ok(())
}

#[test]
fn run_uses_what_the_image_says() -> Result<()> {
    let mut run = run(&["--env", "COLOUR=blue"])?;
    run.arg(archive("busybox-app")?);
    run.args([
        "--",
        "sh",
        "-c",
        "id -u; id -G; echo $HOME $COLOUR; echo mine > /home/app/note && echo written",
    ]);
    let output = finish(run)?.ok()?;
    assert_eq!(output.line(), "1000\n1000 2000\n/home/app blue\nwritten");
    Ok(())
}

#[test]
fn run_on_a_terminal_gives_the_command_one() -> Result<()> {
    let mut run = run(&[])?;
    run.arg(archive("busybox")?).args(["--", "sh"]);
    let mut terminal = Terminal::spawn(&mut run, 91, 31)?;
    terminal.write("stty size; tty > /dev/null && echo is-a-$((1+1))-tty\r")?;
    terminal.wait_for("is-a-2-tty")?;
    assert!(terminal.shown().contains("31 91"), "{}", terminal.shown());
    terminal.resize(70, 20)?;
    std::thread::sleep(Duration::from_secs(1));
    terminal.write("stty size\r")?;
    terminal.wait_for("20 70")?;
    terminal.write("exit 6\r")?;
    assert_eq!(terminal.wait(LIMIT)?, 6);
    Ok(())
}

#[test]
fn run_passes_signals_on_and_leaves_nothing() -> Result<()> {
    let mut run = run(&[])?;
    let line = "trap 'echo told; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    run.arg(archive("busybox")?).args(["--", "sh", "-c", line]);
    let running = command::spawn(&mut run, None)?;
    running.wait_for_output("ready")?;
    proc::kill(running.pid(), libc::SIGTERM);
    let output = running.finish(LIMIT)?;
    assert_eq!(
        (output.code, output.text().as_str()),
        (5, "ready\ntold\n"),
        "{}",
        output.errors()
    );
    let left: Vec<_> = fs::read_dir(Node::shared().state_dir())?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().starts_with("caisson-run-")),
        "{left:?}"
    );
    Ok(())
}

#[test]
fn run_plugs_in_a_home_that_is_kept() -> Result<()> {
    let archive = archive("busybox")?;
    let mut first = run(&["--home", "runs"])?;
    first
        .arg(&archive)
        .args(["--", "sh", "-c", "echo kept > ~/note"]);
    finish(first)?.ok()?;
    let mut second = run(&["--home", "runs"])?;
    second.arg(&archive).args(["--", "cat", "/root/note"]);
    assert_eq!(finish(second)?.ok()?.line(), "kept");
    Ok(())
}

#[test]
fn run_of_what_is_no_image_says_so_and_gives_125() -> Result<()> {
    let file = Node::shared().dir().join("no-image.tar");
    fs::write(&file, "something else")?;
    let mut run = run(&[])?;
    run.arg(&file).args(["--", "true"]);
    let output = finish(run)?;
    assert_eq!(output.code, 125);
    assert!(
        output.errors().contains("no-image.tar") && output.errors().contains("not a"),
        "{}",
        output.errors()
    );
    Ok(())
}

#[test]
fn run_of_a_command_that_is_not_there_names_it_and_gives_125() -> Result<()> {
    let mut run = run(&[])?;
    run.arg(archive("busybox")?).args(["--", "no-such-command"]);
    let output = finish(run)?;
    assert_eq!(output.code, 125);
    assert!(
        output
            .errors()
            .contains("\"no-such-command\": executable file not found"),
        "{}",
        output.errors()
    );
    Ok(())
}

fn run(arguments: &[&str]) -> Result<Command> {
    let mut command = caisson(Node::shared())?;
    command.arg("run").args(arguments);
    Ok(command)
}

fn finish(mut command: Command) -> Result<Output> {
    command::run(&mut command, None, LIMIT)
}

/// Makes an archive in its own folder, since the tests of this file run side by side.
fn archive(name: &str) -> Result<PathBuf> {
    let node = Node::shared();
    let dir = node.dir().join("archives").join(node.next_id());
    fs::create_dir_all(&dir)?;
    fixture::archive(name, &dir).context("archive")
}
