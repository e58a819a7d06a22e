//! Tests what `caisson list`, `caisson trace` and `caisson gc` say of pods, above all of those
//! whose shim was killed.

use std::{fs, io, os::unix::process::ExitStatusExt, thread, time::Duration};

use anyhow::{Context, Result};
use caisson_tests::{
    command, fixture,
    leftovers::{alone, processes},
    node::{caisson, LIMIT},
    proc, Leftovers, Node,
};
use rstest::rstest;

/// A line of `caisson list`.
#[derive(Debug)]
struct Listed {
    id: String,
    state: String,
    line: String,
}

#[test]
fn list_of_a_container_that_runs_says_so() -> Result<()> {
    let node = Node::shared();
    let container = node.container("busybox").args(["sleep", "1000"]).start()?;
    let listed = listed_as(node, container.id())?;
    assert_eq!(listed.state, "running", "{listed:?}");
    assert!(listed.line.contains("qemu"), "{listed:?}");
    Ok(())
}

#[test]
fn list_of_a_container_that_has_ended_counts_it_until_it_is_removed() -> Result<()> {
    let node = Node::shared();
    let container = node.container("busybox").args(["true"]).start()?;
    container.wait_within(LIMIT)?;
    let listed = listed_as(node, container.id())?;
    assert!(listed.line.contains("0, 1 ended"), "{listed:?}");
    container.delete()?;
    assert!(listed_as(node, container.id()).is_err());
    Ok(())
}

#[test]
fn list_that_nobody_reads_ends_without_a_word() -> Result<()> {
    let (reader, writer) = io::pipe()?;
    drop(reader);
    let list = caisson(Node::shared())?
        .arg("list")
        .stdout(writer)
        .output()?;
    assert_eq!(list.status.signal(), Some(libc::SIGPIPE));
    assert_eq!(String::from_utf8_lossy(&list.stderr), "");
    Ok(())
}

#[test]
fn trace_of_a_container_has_the_stages_of_its_start() -> Result<()> {
    let node = Node::shared();
    let container = node.container("busybox").args(["sleep", "1000"]).start()?;
    let mut trace = caisson(node)?;
    trace.args(["trace", container.id()]);
    let said = command::run(&mut trace, None, LIMIT)?.ok()?.text();
    // Of the shim's side of the VM, of the guest, and of the container.
    for stage in ["vmm", "guest", "created"] {
        let has = said
            .lines()
            .any(|line| line.ends_with(&format!("  {stage}")));
        assert!(has, "no {stage} in:\n{said}");
    }
    Ok(())
}

/// The times lie in the start of the VM, in that of the container, and after it.
#[rstest]
fn shim_that_is_killed_is_listed_as_dead_and_gc_leaves_nothing(
    #[values(40, 120, 250, 500, 900, 1500, 2500)] after_ms: u64,
) -> Result<()> {
    let _alone = alone();
    let node = Node::start()?;
    let before = Leftovers::count(&node);
    let mut run = caisson(&node)?;
    let dir = node.dir().join("archives");
    fs::create_dir_all(&dir)?;
    run.arg("run")
        .arg(fixture::archive("busybox", &dir).context("archive")?);
    run.args(["--", "sleep", "1000"]);
    let running = command::spawn(&mut run, None)?;
    thread::sleep(Duration::from_millis(after_ms));
    // `caisson run` first, since it would remove what is left.
    proc::kill(running.pid(), libc::SIGKILL);
    running.finish(LIMIT)?;
    // containerd may be about to start the shim.
    command::poll("no shim", LIMIT, || {
        let shims = shims(&node);
        for shim in &shims {
            proc::kill(*shim, libc::SIGKILL);
        }
        thread::sleep(Duration::from_millis(300));
        shims.is_empty().then_some(())
    })?;

    for listed in list(&node)? {
        assert_eq!(listed.state, "dead", "{listed:?}");
        assert!(listed.line.contains("gone"), "{listed:?}");
    }
    let mut gc = caisson(&node)?;
    gc.arg("gc");
    let said = command::run(&mut gc, None, LIMIT)?.ok()?.text();
    assert!(list(&node)?.is_empty(), "{said}");
    Leftovers::none_since(&node, &before)
}

fn list(node: &Node) -> Result<Vec<Listed>> {
    let mut list = caisson(node)?;
    list.arg("list");
    let text = command::run(&mut list, None, LIMIT)?.ok()?.text();
    let lines = text.lines().skip(1);
    lines
        .map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            Ok(Listed {
                id: words.next().context("an id")?,
                state: words.next().context("a state")?,
                line: line.to_owned(),
            })
        })
        .collect()
}

fn listed_as(node: &Node, id: &str) -> Result<Listed> {
    let mut all = list(node)?.into_iter();
    let found = all.find(|listed| id.starts_with(&listed.id) || listed.id.contains(id));
    found.with_context(|| format!("{id} is not listed"))
}

/// The pids of the node's shims.
fn shims(node: &Node) -> Vec<u32> {
    let processes = processes(node.tag()).into_iter();
    let shims = processes.filter(|process| process.command.contains("containerd-shim-caisson"));
    shims.map(|process| process.pid).collect()
}
