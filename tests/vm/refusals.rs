//! Tests that impossible requests are refused with an error that names the field.

use std::{path::Path, time::Duration};

use anyhow::{bail, Result};
use caisson::shim::{within, Launch};
use caisson_tests::{command::poll, paths, Leftovers, Node};
use containerd_shim_protos::{api::CreateTaskRequest, ttrpc};
use rstest::rstest;
use serde_json::{json, Value};

/// Each case has flags of `ctr run` and what the error has to name.
#[rstest]
#[case::unknown_annotation(&["--annotation", "caisson.dev/skils=x"], "caisson.dev/skils")]
#[case::annotation_that_is_no_skill(&["--annotation", "caisson.dev/skills=../x"], "caisson.dev/skills")]
#[case::home_that_leaves_its_folder(&["--annotation", "caisson.dev/home=persistent/../x"], "caisson.dev/home")]
#[case::network_of_the_host(&["--net-host"], "linux.namespaces.network")]
#[case::pids_of_the_host(&["--with-ns", "pid:/proc/1/ns/pid"], "linux.namespaces.pid")]
#[case::ipc_of_the_host(&["--with-ns", "ipc:/proc/1/ns/ipc"], "linux.namespaces.ipc")]
#[case::device_of_the_host(&["--device", "/dev/loop-control"], "linux.devices")]
#[case::more_memory_than_a_vm_can_have(&["--memory-limit", "1099511627776"], "memory")]
fn container_that_cannot_be_is_refused_by_its_field(
    #[case] flags: &[&str],
    #[case] field: &str,
) -> Result<()> {
    let node = Node::shared();
    node.image("busybox")?;
    let mut container = node.container("busybox").args(["true"]);
    let id = container.id().to_owned();
    for flag in flags {
        container = container.switch(flag);
    }
    let output = container.run()?;
    assert_ne!(output.code, 0);
    let error = output.errors();
    assert!(error.contains(field), "{error}");
    let left = Leftovers::of(node, &id);
    assert!(left.is_empty(), "{left}");
    Ok(())
}

/// Each case has a change of the node's configuration and what the error has to name.
#[rstest]
#[case::unknown_key(json!({ "vm": { "default_cpu": 1 } }), &["config.toml", "default_cpu"])]
#[case::unknown_section(json!({ "hypervisors": { "qemu": "/bin/true" } }), &["config.toml", "hypervisors"])]
#[case::value_that_cannot_be(json!({ "vm": { "default_cpus": 0 } }), &["vm.default_cpus"])]
#[case::missing_kernel(json!({ "guest": { "kernel": "/no/such/kernel" } }), &["/no/such/kernel"])]
#[case::missing_initramfs(json!({ "guest": { "initramfs": "/no/such/initramfs" } }), &["/no/such/initramfs"])]
#[case::missing_qemu(json!({ "hypervisor": { "qemu": "/no/such/qemu" } }), &["/no/such/qemu"])]
#[case::missing_virtiofsd(json!({ "hypervisor": { "virtiofsd": "/no/such/virtiofsd" } }), &["/no/such/virtiofsd"])]
#[case::kernel_that_is_none(json!({ "guest": { "kernel": "/bin/busybox" } }), &["VM"])]
fn node_that_cannot_run_vms_says_why(#[case] change: Value, #[case] named: &[&str]) -> Result<()> {
    let node = Node::start_with(|config| merge(config, change))?;
    let before = Leftovers::count(&node);
    let container = node.container("busybox").args(["true"]);
    let output = container.run()?;
    assert_ne!(output.code, 0);
    let error = output.errors();
    for name in named {
        assert!(error.contains(name), "{name} is not in: {error}");
    }
    Leftovers::none_since(&node, &before)
}

/// A program in place of QEMU exits at once, as QEMU does when the host has no memory for the
/// guest.
#[test]
fn vm_without_memory_on_the_host_says_what_qemu_said() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::start_with(|config| config["hypervisor"]["accelerator"] = "tcg".into())?;
    let before = Leftovers::count(&node);
    let qemu = node.dir().join("qemu");
    std::fs::write(
        &qemu,
        "#!/bin/sh\nulimit -v 100000\nexec /usr/bin/qemu-system-x86_64 \"$@\"\n",
    )?;
    std::fs::set_permissions(&qemu, std::fs::Permissions::from_mode(0o755))?;
    let text = std::fs::read_to_string(node.config_file())?;
    let text = text.replace(
        paths::qemu().to_str().unwrap_or_default(),
        &qemu.display().to_string(),
    );
    std::fs::write(node.config_file(), text)?;
    let output = node.container("busybox").args(["true"]).run()?;
    assert_ne!(output.code, 0);
    let error = output.errors();
    assert!(
        error.contains("memory") || error.contains("map segment"),
        "{error}"
    );
    Leftovers::none_since(&node, &before)
}

/// Each case has a config.json and what the error has to name. The shim gets it directly, since
/// containerd would refuse some of them.
#[rstest]
#[case::not_json("{ process", "config.json is not an OCI runtime spec")]
#[case::not_an_object("[]", "config.json")]
#[case::without_process(
    r#"{ "ociVersion": "1.0.2", "root": { "path": "rootfs" } }"#,
    "process"
)]
#[case::without_root(
    r#"{ "ociVersion": "1.0.2", "process": { "cwd": "/", "args": ["true"], "user": { "uid": 0, "gid": 0 } } }"#,
    "root"
)]
fn bundle_that_cannot_be_is_refused_by_its_field(
    #[case] config: &str,
    #[case] named: &str,
) -> Result<()> {
    let node = Node::shared();
    let error = created_by_hand(node, &node.next_id(), config)?;
    assert!(error.contains(named), "{error}");
    Ok(())
}

/// containerd refuses such ids itself; the shim does not rely on that.
#[rstest]
#[case::with_slash("a/b")]
#[case::that_leaves_the_folder("..")]
#[case::empty("")]
#[case::with_newline("a\nb")]
fn id_that_cannot_be_is_refused(#[case] id: &str) -> Result<()> {
    let error = created_by_hand(Node::shared(), id, "{}")?;
    assert!(error.starts_with("id \""), "{error}");
    Ok(())
}

#[test]
fn id_of_4096_bytes_is_refused() -> Result<()> {
    let error = created_by_hand(Node::shared(), &"x".repeat(4096), "{}")?;
    assert!(error.starts_with("id \"xxx"), "{error}");
    assert!(error.len() < 1000, "an error of {} bytes", error.len());
    Ok(())
}

/// containerd removes the bundle as soon as a shim has answered `Shutdown`. The test removes the
/// file that names the socket and no more, since `delete` runs in the bundle.
#[test]
fn shim_whose_bundle_is_gone_removes_its_socket() -> Result<()> {
    let node = Node::shared();
    let launch = launch_by_hand(node, "{}")?;
    let address = launch.bundle.join("address");
    let socket = node.runtime().block_on(async {
        let shim = launch.start().await?;
        let socket = std::fs::read_to_string(&address)?;
        std::fs::remove_file(&address)?;
        shim.end().await?;
        anyhow::Ok(socket)
    })?;
    let socket = Path::new(socket.trim_start_matches("unix://"));
    poll("no socket", Duration::from_secs(5), || {
        (!socket.exists()).then_some(())
    })
}

/// Starts a shim in a bundle with this config.json and has it create the task, as containerd would.
/// Returns the error.
fn created_by_hand(node: &Node, id: &str, config: &str) -> Result<String> {
    let launch = launch_by_hand(node, config)?;
    let request = CreateTaskRequest {
        id: id.to_owned(),
        bundle: launch.bundle.display().to_string(),
        ..Default::default()
    };
    node.runtime().block_on(async {
        let shim = launch.start().await?;
        let created = shim
            .tasks
            .create(within(Duration::from_secs(60)), &request)
            .await;
        shim.end().await?;
        match created {
            Ok(answer) => bail!("created: {answer:?}"),
            Err(ttrpc::Error::RpcStatus(status)) => Ok(status.message),
            Err(error) => Err(error.into()),
        }
    })
}

/// Makes a bundle with this config.json. Returns how to start a shim in it.
fn launch_by_hand(node: &Node, config: &str) -> Result<Launch> {
    let bundle = node.dir().join("bundles").join(node.next_id());
    std::fs::create_dir_all(bundle.join("rootfs"))?;
    std::fs::write(bundle.join("config.json"), config)?;
    Ok(Launch {
        program: paths::dist().join("bin").join(caisson::shim::PROGRAM),
        bundle,
        namespace: node.tag().to_owned(),
        id: node.next_id(),
        config: Some(node.config_file()),
    })
}

fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change,
    }
}
