//! Makes the cluster's own images from programs that were built here, and imports images into its
//! containerd: there is no registry.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};
use caisson_image::{root, ImageBuilder};
use serde_json::json;

use crate::{components::PAUSE, layout::Layout, process, programs::Programs};

/// CoreDNS' image.
pub const COREDNS: &str = "registry.k8s.io/coredns/coredns:v1.12.1";

/// The metrics server's image.
pub const METRICS_SERVER: &str = "registry.k8s.io/metrics-server/metrics-server:v0.7.2";

/// Makes and imports the images that every cluster needs.
pub fn import_own(layout: &Layout, programs: &Programs) -> Result<()> {
    for (program, name) in [
        ("pause", PAUSE),
        ("coredns", COREDNS),
        ("metrics-server", METRICS_SERVER),
    ] {
        let dir = tempfile::tempdir_in(layout.dir()).context("make a folder for an image")?;
        let mut image = ImageBuilder::new(dir.path())?;
        image.copy(&programs.kubernetes(program), program, root(0o755))?;
        for dir in ["dev", "etc", "proc", "sys", "tmp"] {
            image.dir(dir, root(0o755))?;
        }
        image.config("Entrypoint", json!([format!("/{program}")]));
        image.config("Cmd", json!(null));
        let archive = dir.path().join("image.tar");
        image.finish(name, &archive)?;
        import(layout, programs, &archive)?;
    }
    Ok(())
}

/// Returns `ctr` for the images of the cluster's pods; the caller adds the arguments.
pub fn ctr(layout: &Layout, programs: &Programs) -> Command {
    let mut ctr = Command::new(programs.containerd("ctr"));
    ctr.arg("--address").arg(layout.containerd_socket());
    ctr.args(["--namespace", "k8s.io"]);
    ctr
}

/// Imports an OCI archive under the name that it gives itself, for the cluster's pods.
pub fn import(layout: &Layout, programs: &Programs, archive: &Path) -> Result<()> {
    let mut ctr = ctr(layout, programs);
    ctr.args(["images", "import", "--local"]).arg(archive);
    process::output(&mut ctr, "")
        .map(drop)
        .with_context(|| format!("import {}", archive.display()))
}

/// Gives an image of the cluster another name.
pub fn tag(layout: &Layout, programs: &Programs, from: &str, to: &str) -> Result<()> {
    let mut ctr = ctr(layout, programs);
    process::output(ctr.args(["images", "tag", "--force", from, to]), "").map(drop)
}

/// Checks whether containerd answers.
pub fn containerd_answers(layout: &Layout, programs: &Programs) -> Result<()> {
    fs::metadata(layout.containerd_socket()).context("containerd's socket")?;
    process::output(ctr(layout, programs).arg("version"), "").map(drop)
}
