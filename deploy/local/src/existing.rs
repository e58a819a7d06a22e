//! Uses an existing cluster: the one that kubectl points at, if it is of a kind that developers
//! have on their own machine. Caisson's chart is installed there, and nothing else is done to it.
//! Any other cluster is left alone, since it may be somebody's production.

use std::{path::Path, process::Command};

use anyhow::{ensure, Context, Result};
use serde_json::Value;

use crate::{
    caisson::{install_the_chart, NAMESPACE, RELEASE, ROLLOUT},
    process,
    programs::Programs,
};

/// A kind of cluster; it decides how images are imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Existing {
    DockerDesktop,
    /// A cluster of kind, with the name that kind gave it.
    Kind(String),
    K3s,
}

/// Returns the cluster of the user's kubeconfig, if it is one of [`Existing`] and answers.
pub fn find(programs: &Programs) -> Option<Existing> {
    let kubectl = |args: &[&str]| {
        process::output(Command::new(programs.kubernetes("kubectl")).args(args), "")
    };
    let config = kubectl(&["config", "view", "--minify", "--output", "json"]).ok()?;
    let config: Value = serde_json::from_str(&config).ok()?;
    let context = config["current-context"].as_str()?;
    let server = config["clusters"][0]["cluster"]["server"].as_str()?;
    let existing = recognise(context, server)?;
    kubectl(&["get", "--raw", "/readyz", "--request-timeout=5s"]).ok()?;
    Some(existing)
}

fn recognise(context: &str, server: &str) -> Option<Existing> {
    let loopback = [
        "https://127.0.0.1:",
        "https://localhost:",
        "https://kubernetes.docker.internal:",
    ];
    if !loopback.iter().any(|begin| server.starts_with(begin)) {
        return None;
    }
    match context {
        "docker-desktop" => Some(Existing::DockerDesktop),
        "default" if server == "https://127.0.0.1:6443" => Some(Existing::K3s),
        _ => context
            .strip_prefix("kind-")
            .map(|name| Existing::Kind(name.to_owned())),
    }
}

impl Existing {
    /// Imports the node image and installs the chart, or upgrades it.
    pub fn install(&self, programs: &Programs) -> Result<()> {
        let image = programs.dist().join("node-image.tar");
        ensure!(
            image.exists(),
            "no {}: cargo xtask node-image",
            image.display()
        );
        process::output(&mut self.import(&image), "").context("import the node image")?;
        let mut helm = Command::new(programs.kubernetes("helm"));
        helm.args(["upgrade", "--namespace", NAMESPACE]);
        install_the_chart(&mut helm);
        process::output(&mut helm, "")?;
        let mut kubectl = Command::new(programs.kubernetes("kubectl"));
        process::output(kubectl.args(ROLLOUT), "").map(drop)
    }

    /// Uninstalls the chart, if it is there.
    pub fn uninstall(&self, programs: &Programs) -> Result<()> {
        let mut helm = Command::new(programs.kubernetes("helm"));
        helm.args(["uninstall", "--ignore-not-found", "--wait", "--timeout=10m"])
            .args([RELEASE, "--namespace", NAMESPACE]);
        process::output(&mut helm, "").map(drop)
    }

    /// Returns the command that imports an OCI archive on the nodes.
    fn import(&self, archive: &Path) -> Command {
        let (program, args): (_, &[&str]) = match self {
            Self::DockerDesktop => ("docker", &["load", "--input"]),
            Self::Kind(name) => ("kind", &["load", "image-archive", "--name", name]),
            Self::K3s => ("k3s", &["ctr", "images", "import"]),
        };
        let mut command = Command::new(program);
        command.args(args).arg(archive);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_of_a_developers_own_machine_is_recognised() {
        let docker = recognise("docker-desktop", "https://kubernetes.docker.internal:6443");
        assert_eq!(docker, Some(Existing::DockerDesktop));
        let kind = recognise("kind-dev", "https://127.0.0.1:34567");
        assert_eq!(kind, Some(Existing::Kind("dev".into())));
        assert_eq!(
            recognise("default", "https://127.0.0.1:6443"),
            Some(Existing::K3s)
        );
    }

    #[test]
    fn any_other_cluster_is_left_alone() {
        for (context, server) in [
            ("docker-desktop", "https://10.0.0.1:6443"),
            ("kind-dev", "https://prod.example.com"),
            ("default", "https://10.0.0.1:6443"),
            ("prod", "https://127.0.0.1:6443"),
            ("cluster-caisson", "https://10.215.0.2:6443"),
        ] {
            assert_eq!(recognise(context, server), None, "{context} {server}");
        }
    }

    #[test]
    fn image_gets_into_each_by_its_own_tool() {
        let line = |existing: Existing| {
            let command = existing.import(Path::new("/image.tar"));
            let args = command
                .get_args()
                .map(|arg| arg.to_string_lossy().into_owned());
            [
                vec![command.get_program().to_string_lossy().into_owned()],
                args.collect(),
            ]
            .concat()
            .join(" ")
        };
        assert_eq!(
            line(Existing::DockerDesktop),
            "docker load --input /image.tar"
        );
        assert_eq!(
            line(Existing::Kind("dev".into())),
            "kind load image-archive --name dev /image.tar"
        );
        assert_eq!(line(Existing::K3s), "k3s ctr images import /image.tar");
    }
}
