//! Tests containers of nerdctl, which is to containerd what Docker's command is to Docker. It
//! brings their network by hooks of the host: `createRuntime` calls CNI.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{network, CriNode},
    node::LIMIT,
    paths, Output, Runtime,
};
use rstest::rstest;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn container_has_the_network_of_cni(#[case] runtime: Runtime) -> Result<()> {
    let host = Nerdctl::new()?;
    let line = "ip -4 -o addr show dev eth0 | grep -o 'inet 10.213.[0-9.]*'; \
                ping -c 1 -w 10 $(ip route | grep -o 'via [0-9.]*' | cut -d ' ' -f 2) >&2 && echo reached";
    let output = host.run(runtime, &["--rm"], line)?.ok()?.text();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), 2, "{output}");
    assert!(lines[0].starts_with("inet 10.213."), "{output}");
    assert_eq!(lines[1], "reached");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn container_in_the_background_is_read_entered_and_removed(#[case] runtime: Runtime) -> Result<()> {
    let host = Nerdctl::new()?;
    let name = format!("background-{}", host.node.next_id());
    let flags = ["--detach", "--name", &name];
    host.run(runtime, &flags, "echo begun; exec sleep 1000")?
        .ok()?;
    command::poll("the output", LIMIT, || {
        let logs = host.nerdctl(&["logs", &name]).ok()?.ok().ok()?;
        (logs.line() == "begun").then_some(())
    })?;
    let inspect = [
        "inspect",
        "--format",
        "{{.NetworkSettings.IPAddress}}",
        &name,
    ];
    let address = host.nerdctl(&inspect)?.ok()?.line();
    let inside = host.nerdctl(&["exec", &name, "ip", "-4", "-o", "addr", "show", "eth0"])?;
    let inside = inside.ok()?.text();
    assert!(
        address.starts_with("10.213.") && inside.contains(&address),
        "{address}: {inside}"
    );
    host.nerdctl(&["rm", "--force", &name])?.ok()?;
    let all = host
        .nerdctl(&["ps", "--all", "--format", "{{.Names}}"])?
        .ok()?;
    assert!(!all.text().contains(&name), "{}", all.text());
    Ok(())
}

/// nerdctl with folders of its own, on a node whose bridge it uses.
struct Nerdctl {
    node: &'static CriNode,
    program: PathBuf,
}

impl Nerdctl {
    fn new() -> Result<Self> {
        let program = paths::nerdctl()?;
        let node = CriNode::shared();
        // It adds a network of its own to the folder.
        let networks = node.dir().join("nerdctl-cni");
        fs::create_dir_all(&networks)?;
        let network = network::conf_file(node.dir());
        fs::copy(network, networks.join("10-bridge.conflist")).context("copy the network")?;
        Ok(Self { node, program })
    }

    fn run(&self, runtime: Runtime, flags: &[&str], line: &str) -> Result<Output> {
        let image = self.node.image_in(self.node.tag(), "busybox")?;
        let common = [
            "run",
            "--pull=never",
            "--network",
            self.node.tag(),
            "--runtime",
        ];
        let runtime = [runtime.name()];
        let command = [image.as_str(), "sh", "-c", line];
        self.nerdctl(&[&common[..], &runtime, flags, &command].concat())
    }

    fn nerdctl(&self, arguments: &[&str]) -> Result<Output> {
        let dir = self.node.dir();
        let mut nerdctl = Command::new(&self.program);
        nerdctl
            .arg("--address")
            .arg(self.node.socket())
            .args(["--namespace", self.node.tag()])
            .arg("--data-root")
            .arg(dir.join("nerdctl"))
            .args(["--cni-path", network::PLUGINS])
            .arg("--cni-netconfpath")
            .arg(dir.join("nerdctl-cni"))
            .arg("--cgroup-manager=cgroupfs")
            .args(arguments)
            .env("PATH", self.node.path());
        command::run(&mut nerdctl, None, LIMIT)
    }
}
