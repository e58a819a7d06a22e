//! The controller of agent-sandbox, which runs in the tests' cluster as its own manifests say.

use std::fs;

use anyhow::{Context, Result};
use caisson_image::{root, ImageBuilder};
use serde_json::json;

use super::{line, TestCluster, LIMIT};
use crate::{
    command::{self, Stdin},
    paths,
};

/// The name that the manifests have in place of the image's.
const PLACEHOLDER: &str = "ko://sigs.k8s.io/agent-sandbox/cmd/agent-sandbox-controller";
const IMAGE: &str = "localhost/agent-sandbox-controller:test";
const PROGRAM: &str = "agent-sandbox-controller";

/// In the order in which they are applied: the second controller takes the first one's place.
const MANIFESTS: [&str; 9] = [
    "crds/agents.x-k8s.io_sandboxes.yaml",
    "crds/extensions.agents.x-k8s.io_sandboxclaims.yaml",
    "crds/extensions.agents.x-k8s.io_sandboxtemplates.yaml",
    "crds/extensions.agents.x-k8s.io_sandboxwarmpools.yaml",
    "rbac.generated.yaml",
    "extensions-rbac.generated.yaml",
    "controller.yaml",
    "extensions.yaml",
    "extensions.controller.yaml",
];

/// Installs the controller with its extensions and waits until it runs.
pub fn install(cluster: &TestCluster) -> Result<()> {
    import_image(cluster)?;
    for name in MANIFESTS {
        let path = paths::agent_sandbox(&format!("k8s/{name}"))?;
        let text = fs::read_to_string(path)?.replace(PLACEHOLDER, IMAGE);
        let mut kubectl = cluster.kubectl_command();
        kubectl.args([
            "apply",
            "--server-side",
            "--force-conflicts",
            "--filename",
            "-",
        ]);
        line(command::run(
            &mut kubectl,
            Some(Stdin::from(text.into_bytes())),
            LIMIT,
        )?)
        .with_context(|| format!("apply {name}"))?;
    }
    let rollout = [
        "rollout",
        "status",
        "statefulset/agent-sandbox-controller",
        "--namespace=agent-sandbox-system",
        "--timeout=110s",
    ];
    line(cluster.kubectl(&rollout)?).map(drop)
}

fn import_image(cluster: &TestCluster) -> Result<()> {
    let program = paths::agent_sandbox(&format!("bin/{PROGRAM}"))?;
    let dir = tempfile::tempdir_in(cluster.cluster().layout().dir())?;
    let mut image = ImageBuilder::new(dir.path())?;
    image.copy(&program, PROGRAM, root(0o755))?;
    for dir in ["dev", "etc", "proc", "sys", "tmp"] {
        image.dir(dir, root(0o755))?;
    }
    image.config("Entrypoint", json!([format!("/{PROGRAM}")]));
    image.config("Cmd", json!(null));
    let archive = dir.path().join("image.tar");
    image.finish(IMAGE, &archive)?;
    cluster.cluster().import(&archive)
}
