//! `cargo xtask node-image`: makes the image of the chart's pods, an OCI layout in a tar file,
//! without Docker.
//!
//! Its one layer has what a node gets, in `/usr/lib/caisson`, and the shared libraries that
//! `caisson` itself is linked with. It has no shell and no package manager: everything else runs on
//! the node.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::{
    archive::Archive,
    dirs::Dirs,
    files, libraries, oci_image, papers,
    payload::{self, Entry},
};

/// The repository; with the version, it is the image name in the chart's default values.
pub const REPOSITORY: &str = "caisson.dev/node";
/// The file in `target/dist`.
pub const FILE: &str = "node-image.tar";

const ENTRYPOINT: &str = "/usr/lib/caisson/bin/caisson";
/// The chart's mount points, and the folders that runc needs.
const FOLDERS: [&str; 7] = [
    "dev",
    "etc/caisson/settings",
    "proc",
    "run/caisson",
    "sys",
    "tmp",
    "var",
];

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Makes the image from what `target/dist` has.
pub fn build(dirs: &Dirs) -> Result<()> {
    let temp = tempfile::tempdir_in(&dirs.cache).context("make a folder in the cache")?;
    let layer = temp.path().join("layer.tar");
    write_layer(dirs, &layer)?;
    let built = temp.path().join(FILE);
    let config = json!({
        "Entrypoint": [ENTRYPOINT],
        "Env": ["PATH=/usr/lib/caisson/bin"],
        "Labels": {
            "org.opencontainers.image.title": "Caisson",
            "org.opencontainers.image.version": VERSION,
            "org.opencontainers.image.licenses": "Apache-2.0",
        },
    });
    let name = format!("{REPOSITORY}:{VERSION}");
    oci_image::write(&dirs.log, &layer, config, &name, &built)?;
    files::copy(&built, &dirs.dist.join(FILE))
}

fn write_layer(dirs: &Dirs, to: &Path) -> Result<()> {
    let mut layer = Archive::create(to)?;
    for folder in FOLDERS {
        layer.folder(folder)?;
    }
    let libraries = libraries::of(&dirs.dist.join("bin/caisson-remote"))?;
    // The loader looks for them at these places.
    let entry = |path: &PathBuf| {
        let to = path.to_string_lossy();
        payload::entry(path, to.trim_start_matches('/').to_owned())
    };
    let mut entries: Vec<Entry> = libraries.iter().map(entry).collect::<Result<_>>()?;
    entries.extend(payload::entries(dirs)?);
    for entry in entries {
        layer.copy(&entry.to, entry.mode, &entry.from)?;
    }
    for (package, text) in papers::copyrights_of(&libraries)? {
        layer.file(
            &format!("usr/share/doc/{package}/copyright"),
            0o644,
            text.as_bytes(),
        )?;
    }
    layer.finish()
}
