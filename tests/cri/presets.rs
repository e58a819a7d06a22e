//! Tests the presets of the node's configuration, each of which has a handler and a link to the
//! shim of its own. Only with Caisson.

use std::{fs, sync::OnceLock};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{CriNode, Pod},
    node::{caisson, LIMIT},
    paths::Containerd,
    Node,
};
use rstest::rstest;
use serde_json::{json, Value};

const DEVICES: &str = "caisson.dev/devices";
const HOME: &str = "caisson.dev/home";

/// What a strict isolation and no components mean, but for the accelerator.
const STRICT: &str = "sandbox-strict";
/// Allows in every namespace what the node allows in none.
const NESTED: &str = "sandbox-nested";
/// Is for some namespaces only.
const TEAMS: &str = "sandbox-teams";
const KVM: &str = "sandbox-kvm";

#[rstest]
#[case::containerd_1_6(Containerd::V1_6)]
#[case::containerd_1_7(Containerd::V1_7)]
#[case::containerd_2(Containerd::V2)]
fn pod_has_the_preset_of_its_handler(#[case] version: Containerd) -> Result<()> {
    let node = CriNode::start_version_with(version, |config| config["presets"] = presets())?;
    let cpus = |pod: &Pod<'_>| -> Result<String> {
        let container = pod.container("busybox").milli_cpus(2000);
        Ok(container.args(["nproc"]).run()?.ok()?.line())
    };
    assert_eq!(cpus(&node.pod().start()?)?, "2");
    let strict = node.pod().handler(STRICT).start()?;
    // The second one is found by the pod's shim.
    assert_eq!([cpus(&strict)?, cpus(&strict)?], ["1", "1"]);
    Ok(())
}

#[rstest]
#[case::a_device(DEVICES, "fuse")]
#[case::a_home(HOME, "ephemeral")]
fn annotation_that_the_node_allows_is_refused_by_the_preset(
    #[case] key: &str,
    #[case] value: &str,
) -> Result<()> {
    node().pod().annotation(key, value).start()?;
    let pod = node().pod().handler(STRICT).annotation(key, value);
    let error = refused(pod.start())?;
    let text = format!("with the preset strict: annotation {key}: ");
    assert!(error.contains(&text), "{error}");
    assert!(
        error.contains("is not allowed in the namespace tests"),
        "{error}"
    );
    Ok(())
}

#[test]
fn device_that_the_node_refuses_is_given_by_the_preset() -> Result<()> {
    let pod = node().pod().handler(NESTED).annotation(DEVICES, "tun");
    let pod = pod.start()?;
    let container = pod.container("busybox").annotation(DEVICES, "tun");
    let container = container.sh("test -c /dev/net/tun && echo there");
    assert_eq!(container.run()?.ok()?.line(), "there");
    Ok(())
}

#[test]
fn privileges_beyond_the_default_are_refused_and_the_default_is_not() -> Result<()> {
    let pod = node().pod().handler(STRICT).start()?;
    let added = pod.container("busybox").capabilities(&["SYS_ADMIN"], &[]);
    let error = refused(added.args(["true"]).run())?;
    let text = "with the preset strict: config.json: process.capabilities: SYS_ADMIN is not \
                allowed in the namespace tests; \"privileges\" in [policy]";
    assert!(error.contains(text), "{error}");
    let container = pod.container("busybox").args(["echo", "goes on"]);
    assert_eq!(container.run()?.ok()?.line(), "goes on");
    Ok(())
}

#[test]
fn privileged_container_is_refused() -> Result<()> {
    let pod = node().pod().handler(STRICT).privileged().start()?;
    let container = pod.container("busybox").privileged();
    let error = refused(container.args(["true"]).run())?;
    assert!(error.contains("privileged: true is not allowed"), "{error}");
    Ok(())
}

#[test]
fn memory_above_the_presets_limit_is_refused_with_the_limit() -> Result<()> {
    let pod = node().pod().handler(STRICT).start()?;
    let container = pod.container("busybox").memory_mib(600);
    let error = refused(container.args(["true"]).run())?;
    assert!(error.contains("with the preset strict: "), "{error}");
    assert!(error.contains("vm.limit_memory_mib is 512"), "{error}");
    Ok(())
}

#[test]
fn pod_of_another_namespace_is_refused_by_the_preset() -> Result<()> {
    node().pod().handler(TEAMS).namespace("team-a").start()?;
    let error = refused(node().pod().handler(TEAMS).start())?;
    let text = "with the preset teams: the pod is not allowed in the namespace tests; \
                \"namespaces\" in [policy]";
    assert!(error.contains(text), "{error}");
    Ok(())
}

#[test]
fn pod_with_kvm_only_runs_by_kvm_or_is_refused_with_the_reason() -> Result<()> {
    node().pod().start()?;
    let started = node().pod().handler(KVM).start();
    if works_by_kvm()? {
        return started.map(drop);
    }
    let error = refused(started)?;
    for text in ["with the preset kvm: ", "KVM does not work on this node"] {
        assert!(error.contains(text), "{error}");
    }
    Ok(())
}

#[test]
fn list_shows_the_preset_of_each_pod() -> Result<()> {
    let (plain, strict) = (node().pod().start()?, node().pod().handler(STRICT).start()?);
    let list = said("list")?;
    let preset = |pod: &Pod<'_>| {
        let line = list.lines().find(|line| line.starts_with(pod.id()));
        // POD STATE CONTAINERS PRESET
        line.and_then(|line| line.split_whitespace().nth(3))
    };
    assert_eq!(preset(&plain), Some("-"), "{list}");
    assert_eq!(preset(&strict), Some("strict"), "{list}");
    Ok(())
}

#[test]
fn check_says_of_each_preset_whether_it_can_work() -> Result<()> {
    node().pod().start()?;
    let check = said("check")?;
    for name in ["nested", "strict", "teams"] {
        let line = format!("ok    preset         {name}: cpus ");
        assert!(check.contains(&line), "{check}");
    }
    let kvm = format!(
        "{:<4}  preset         kvm: ",
        match works_by_kvm()? {
            true => "ok",
            false => "FAIL",
        }
    );
    assert!(check.contains(&kvm), "{check}");
    Ok(())
}

#[test]
fn pod_goes_on_without_its_preset_and_a_new_one_is_refused() -> Result<()> {
    let node = CriNode::start_with(|config| config["presets"] = presets())?;
    let pod = node.pod().handler(TEAMS).namespace("team-a").start()?;
    let file = node.config_file();
    let text = fs::read_to_string(&file)?.replace("presets.teams", "presets.others");
    fs::write(&file, text)?;
    let container = pod.container("busybox").args(["echo", "goes on"]);
    assert_eq!(container.run()?.ok()?.line(), "goes on");
    let error = refused(node.pod().handler(TEAMS).namespace("team-a").start())?;
    assert!(
        error.contains("[presets.teams]: the node has no such preset"),
        "{error}"
    );
    Ok(())
}

#[test]
fn pool_serves_the_presets_whose_vms_are_the_nodes() -> Result<()> {
    let node = CriNode::start_with(|config| {
        config["pool"]["size"] = 1.into();
        config["presets"] = json!({
            "same": { "vm": { "limit_cpus": 1 }, "policy": { "privileges": [] } },
            "other": { "vm": { "max_memory_mib": 1024 } },
            "none": { "pool": { "size": 0 } },
        });
    })?;
    // containerd has another environment after its first pod, with which members of before are
    // stale.
    for _ in 0..2 {
        node.pod().start()?;
        member(&node)?;
    }
    let member = member(&node)?;
    for handler in ["sandbox-other", "sandbox-none"] {
        node.pod().handler(handler).start()?;
        assert!(node.state_dir().join(&member).exists(), "{handler}");
    }
    let pod = node.pod().handler("sandbox-same").start()?;
    assert!(!node.state_dir().join(&member).exists());
    // It has the preset that the pod has, not that of the process that made it.
    let container = pod.container("busybox").capabilities(&["SYS_ADMIN"], &[]);
    let error = refused(container.args(["true"]).run())?;
    assert!(error.contains("with the preset same: "), "{error}");
    Ok(())
}

/// Waits for a VM of the pool that is ready, and returns its id.
fn member(node: &Node) -> Result<String> {
    command::poll("a VM in the pool", LIMIT, || {
        let entries = fs::read_dir(node.state_dir()).ok()?.flatten();
        let mut members = entries.filter_map(|entry| entry.file_name().into_string().ok());
        members.find(|id| caisson_node::pool::is_ready(&node.state_dir(), id))
    })
}

fn presets() -> Value {
    json!({
        "strict": {
            "vm": { "limit_cpus": 1, "limit_memory_mib": 512 },
            "policy": {
                "privileges": [],
                "annotations": { DEVICES: [], HOME: [] },
            },
        },
        "nested": { "policy": { "annotations": { DEVICES: ["*"] } } },
        "teams": { "policy": { "namespaces": ["team-*"] } },
        "kvm": { "hypervisor": { "accelerator": "kvm" } },
    })
}

/// Returns the one node.
fn node() -> &'static CriNode {
    static NODE: OnceLock<CriNode> = OnceLock::new();
    let mut first = false;
    let node = NODE.get_or_init(|| {
        first = true;
        CriNode::start_with(|config| config["presets"] = presets())
            .unwrap_or_else(|error| panic!("no test node: {error:#}"))
    });
    if first {
        Node::end_at_exit(node);
    }
    node
}

fn refused<T>(result: Result<T>) -> Result<String> {
    let error = result.err().context("it was not refused")?;
    // The CRI client prints a message in Rust's `Debug` format.
    Ok(format!("{error:#}").replace("\\\"", "\""))
}

/// Returns what the node's probe has found, once a pod has run.
fn works_by_kvm() -> Result<bool> {
    let found = fs::read(node().store_dir().join("accelerator.json"))?;
    let found: Value = serde_json::from_slice(&found)?;
    Ok(found["result"]["accelerator"] == "kvm")
}

/// Returns what a subcommand of `caisson` prints.
fn said(subcommand: &str) -> Result<String> {
    let mut command = caisson(node())?;
    command.arg(subcommand);
    Ok(command::run(&mut command, None, LIMIT)?.text())
}
