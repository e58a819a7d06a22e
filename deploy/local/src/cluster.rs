//! A cluster that runs: its folder, its programs, and `kubectl` as its administrator.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{images, layout::Layout, process, programs::Programs};

/// A cluster that runs.
#[derive(Debug, Clone)]
pub struct Cluster {
    layout: Layout,
    programs: Programs,
}

impl Cluster {
    pub(crate) fn new(layout: &Layout, programs: &Programs) -> Self {
        Self {
            layout: layout.clone(),
            programs: programs.clone(),
        }
    }

    /// The cluster's folder.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The programs that the cluster is made of.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Returns `kubectl` as the administrator; the caller adds the arguments.
    pub fn kubectl_command(&self) -> Command {
        let mut kubectl = Command::new(self.programs.kubernetes("kubectl"));
        kubectl
            .env("KUBECONFIG", self.layout.kubeconfig())
            // Otherwise kubectl would cache the API in the user's home.
            .env("KUBECACHEDIR", self.layout.path("kubectl-cache"));
        kubectl
    }

    /// Runs `kubectl` to its end and returns what it printed.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        process::output(self.kubectl_command().args(args), "")
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let mut kubectl = self.kubectl_command();
        kubectl.args(["apply", "--filename", "-"]);
        process::output(&mut kubectl, manifest).map(drop)
    }

    /// Imports an OCI archive under the name that it gives itself.
    pub fn import(&self, archive: &Path) -> Result<()> {
        images::import(&self.layout, &self.programs, archive)
    }
}
