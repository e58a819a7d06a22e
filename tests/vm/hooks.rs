//! Tests the hooks of a spec (OCI runtime spec, config.md, "POSIX-platform Hooks"): those of the
//! host, by which tools such as nerdctl bring the network, and those inside the container.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use caisson_tests::{
    bridge::{Bridge, GATEWAY},
    command,
    node::LIMIT,
    proc, Leftovers, Node, Runtime,
};
use rstest::rstest;
use serde_json::{json, Value};

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn hook_of_the_host_brings_the_network(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let bridge = Bridge::new(node)?;
    let host = bridge.host.name();
    let script = Script::new(
        node,
        &format!(
            "set -e; pid=$(grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*$'); \
             ip link add eth0 netns $pid type veth peer name v7 netns {host}; \
             ip -n {host} link set v7 master br0 up; \
             inside() {{ nsenter --net=/proc/$pid/ns/net ip \"$@\"; }}; \
             inside addr add 10.9.0.7/24 dev eth0; inside link set eth0 up; inside link set lo up"
        ),
    )?;
    let container = sleeping(node, runtime)
        .hooks(json!({ "createRuntime": [script.hook("bring-network")] }))
        .start()?;
    let address = container.sh("ip -4 -o addr show dev eth0 | grep -o 'inet [0-9./]*'")?;
    assert_eq!(address, "inet 10.9.0.7/24");
    container.sh(&format!("ping -c 1 -w 10 {GATEWAY}"))?;
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc, "created")]
#[case::caisson(Runtime::Caisson, "running")]
fn hooks_of_the_host_run_in_their_order_and_know_the_state(
    #[case] runtime: Runtime,
    #[case] after_start: &str,
) -> Result<()> {
    let node = Node::shared();
    let script = Script::noting(node)?;
    let builder = sleeping(node, runtime).annotation("org.example.note", "seen");
    let id = builder.id().to_owned();
    let container = builder.hooks(script.all()).start()?;
    container.kill("SIGKILL")?;
    container.wait()?;
    container.delete()?;
    let seen: Vec<_> = script
        .noted()?
        .into_iter()
        .map(|(name, state)| {
            assert_eq!(state["id"], id.as_str(), "{name}");
            assert_eq!(state["annotations"]["org.example.note"], "seen", "{name}");
            let bundle = state["bundle"].as_str().unwrap_or_default();
            assert!(bundle.ends_with(&id), "{name}: {bundle}");
            let has_pid = state["pid"].as_u64().is_some_and(|pid| pid > 0);
            assert_eq!(has_pid, name != "poststop", "{name}: {state}");
            format!("{name} {}", state["status"].as_str().unwrap_or_default())
        })
        .collect();
    let expected = [
        "prestart creating",
        "createRuntime creating",
        &format!("poststart {after_start}"),
        "poststop stopped",
    ];
    assert_eq!(seen, expected);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn hook_that_fails_keeps_the_container_from_being_created(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let script = Script::new(node, "echo the switch has no port left >&2; exit 3")?;
    let builder = sleeping(node, runtime).hooks(json!({ "createRuntime": [script.hook("x")] }));
    let id = builder.id().to_owned();
    let error = format!("{:#}", builder.start().err().context("it started")?);
    assert!(error.contains("the switch has no port left"), "{error}");
    let left = Leftovers::of(node, &id);
    assert!(left.is_empty(), "{left}");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn hook_that_takes_longer_than_its_timeout_is_ended(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let script = Script::new(node, "exec sleep 1000")?;
    let mut hook = script.hook("x");
    hook["timeout"] = json!(1);
    let builder = sleeping(node, runtime).hooks(json!({ "createRuntime": [hook] }));
    let error = format!("{:#}", builder.start().err().context("it started")?);
    assert!(error.contains("time"), "{error}");
    Ok(())
}

/// Its program is the container's.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn hook_inside_the_container_runs_before_its_program(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let hook = json!({
        "path": "/bin/sh",
        "args": ["sh", "-c", "cat > /state; echo $NOTE > /note"],
        "env": ["NOTE=from the hook", "PATH=/bin"],
    });
    let container = node
        .container("busybox")
        .runtime(runtime)
        .sh("cp /note /seen; sleep 1000")
        .hooks(json!({ "startContainer": [hook] }))
        .start()?;
    let seen = command::poll("the program to run", LIMIT, || {
        container.sh("cat /seen").ok()
    })?;
    assert_eq!(seen, "from the hook");
    let id = container.sh("grep -o '\"id\": *\"[^\"]*\"' /state")?;
    assert!(id.contains(container.id()), "{id}");
    Ok(())
}

#[test]
fn program_of_the_host_that_acts_inside_the_container_is_refused() -> Result<()> {
    let node = Node::shared();
    let hooks = json!({ "createContainer": [{ "path": "/bin/true" }] });
    let started = sleeping(node, Runtime::Caisson).hooks(hooks).start();
    let error = format!("{:#}", started.err().context("it started")?);
    assert!(error.contains("hooks.createContainer"), "{error}");
    Ok(())
}

/// The hook gives back what an earlier one took, such as an address.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn last_hook_runs_also_when_the_shim_was_killed(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let script = Script::noting(node)?;
    let container = sleeping(node, runtime).hooks(script.all()).start()?;
    proc::kill(container.shim()?, libc::SIGKILL);
    command::poll("the last hook", LIMIT, || {
        let noted = script.noted().ok()?;
        noted
            .iter()
            .any(|(name, _)| name == "poststop")
            .then_some(())
    })
}

fn sleeping(node: &Node, runtime: Runtime) -> caisson_tests::ContainerBuilder<'_> {
    let container = node.container("busybox").runtime(runtime);
    container.args(["sleep", "1000"])
}

/// A program of the host that hooks run. It is given the hook's name, and the state on stdin.
struct Script {
    dir: tempfile::TempDir,
}

impl Script {
    fn new(node: &Node, lines: &str) -> Result<Self> {
        let dir = tempfile::tempdir_in(node.dir())?;
        let script = Self { dir };
        let path = script.path();
        fs::write(
            &path,
            format!("#!/bin/sh\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\n{lines}\n"),
        )?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(script)
    }

    /// Makes one that notes each call.
    fn noting(node: &Node) -> Result<Self> {
        Self::new(
            node,
            "{ echo \"$1\"; tr -d '\\n'; echo; } >> \"$(dirname \"$0\")/notes\"",
        )
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("hook")
    }

    fn hook(&self, name: &str) -> Value {
        json!({ "path": self.path(), "args": ["hook", name] })
    }

    /// Returns all hooks that the host runs.
    fn all(&self) -> Value {
        let names = ["prestart", "createRuntime", "poststart", "poststop"];
        let hooks = names.map(|name| (name.to_owned(), json!([self.hook(name)])));
        Value::Object(hooks.into_iter().collect())
    }

    /// Returns the calls so far: the hook's name and the state that it was told.
    fn noted(&self) -> Result<Vec<(String, Value)>> {
        let text = read(&self.dir.path().join("notes"))?;
        let lines: Vec<_> = text.lines().collect();
        let calls = lines.chunks_exact(2);
        calls
            .map(|call| Ok((call[0].to_owned(), serde_json::from_str(call[1])?)))
            .collect()
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}
