//! `cargo xtask node-image`: the image of the chart's pods, an OCI layout in a tar file, made without Docker.
//!
//! One layer: what a node gets, in `/usr/lib/caisson`, and the shared libraries that `caisson` itself is linked with. No shell, no package
//! manager: whatever else runs, runs on the node.

use std::{path::Path, process::Command};

use anyhow::{bail, Context, Result};
use serde_json::{json, Value};

use crate::{
    archive::Archive,
    dirs::Dirs,
    files, papers,
    payload::{self, Entry},
    step,
};

/// The repository and, with the version, the name that the chart's default values have.
pub const REPOSITORY: &str = "caisson.dev/node";
/// The file in `target/dist`.
pub const FILE: &str = "node-image.tar";

const ENTRYPOINT: &str = "/usr/lib/caisson/bin/caisson";
/// Mount points that the chart has, and what runc needs.
const FOLDERS: [&str; 7] = [
    "dev",
    "etc/caisson/settings",
    "proc",
    "run/caisson",
    "sys",
    "tmp",
    "var",
];

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Puts the image together from what `target/dist` has.
pub fn build(dirs: &Dirs) -> Result<()> {
    let temp = tempfile::tempdir_in(&dirs.cache).context("make a folder in the cache")?;
    let layer = temp.path().join("layer.tar");
    write_layer(dirs, &layer)?;
    let diff_id = files::sha256(&layer)?;
    // -n: no name and no time in it.
    step::run(
        &dirs.log,
        "node-image",
        Command::new("gzip").args(["-n", "-6"]).arg(&layer),
    )?;
    let layer = temp.path().join("layer.tar.gz");
    let layer_digest = files::sha256(&layer)?;
    let layer = files::read(&layer)?;

    let config = config(&diff_id);
    let config_digest = digest(temp.path(), &config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config_digest, config.len()),
        "layers": [descriptor(LAYER, &layer_digest, layer.len())],
    });
    let manifest = bytes(&manifest);
    let manifest_digest = digest(temp.path(), &manifest)?;

    let built = temp.path().join(FILE);
    let mut image = Archive::create(&built)?;
    image.file(
        "oci-layout",
        0o644,
        &bytes(&json!({ "imageLayoutVersion": "1.0.0" })),
    )?;
    let index = index(descriptor(MANIFEST, &manifest_digest, manifest.len()));
    image.file("index.json", 0o644, &bytes(&index))?;
    for (digest, content) in [
        (&config_digest, &config),
        (&manifest_digest, &manifest),
        (&layer_digest, &layer),
    ] {
        image.file(&format!("blobs/sha256/{digest}"), 0o644, content)?;
    }
    image.finish()?;
    files::copy(&built, &dirs.dist.join(FILE))
}

fn write_layer(dirs: &Dirs, to: &Path) -> Result<()> {
    let mut layer = Archive::create(to)?;
    for folder in FOLDERS {
        layer.folder(folder)?;
    }
    for library in libraries(&dirs.dist.join("bin/caisson"))? {
        layer.entry(&library)?;
    }
    for entry in payload::entries(dirs)? {
        layer.entry(&entry)?;
    }
    for (package, text) in papers::copyrights_of(&libraries(&dirs.dist.join("bin/caisson"))?)? {
        layer.file(
            &format!("usr/share/doc/{package}/copyright"),
            0o644,
            text.as_bytes(),
        )?;
    }
    layer.finish()
}

/// The shared libraries of a program and the loader, where the loader looks for them.
pub fn libraries(program: &Path) -> Result<Vec<Entry>> {
    let said = step::output(Command::new("ldd").arg(program))?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let paths = library_paths(&said)?;
    paths
        .into_iter()
        .map(|path| payload::entry(Path::new(path), path.trim_start_matches('/').to_owned()))
        .collect()
}

/// The paths in what ldd says, sorted.
fn library_paths(said: &str) -> Result<Vec<&str>> {
    let mut paths = Vec::new();
    for line in said.lines() {
        if line.contains("not found") {
            bail!("ldd: {}", line.trim());
        }
        // `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)`; the kernel's own page has no path.
        paths.extend(line.split_whitespace().find(|word| word.starts_with('/')));
    }
    paths.sort_unstable();
    Ok(paths)
}

fn config(diff_id: &str) -> Vec<u8> {
    bytes(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": [ENTRYPOINT],
            "Env": ["PATH=/usr/lib/caisson/bin"],
            "Labels": {
                "org.opencontainers.image.title": "Caisson",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
        "history": [{ "created_by": "cargo xtask node-image" }],
    }))
}

fn index(mut manifest: Value) -> Value {
    let version = env!("CARGO_PKG_VERSION");
    manifest["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    manifest["annotations"] = json!({
        // containerd takes the first for the image's name, other tools the second for its tag.
        "io.containerd.image.name": format!("{REPOSITORY}:{version}"),
        "org.opencontainers.image.ref.name": version,
    });
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest] })
}

fn descriptor(media_type: &str, digest: &str, size: usize) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size })
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn digest(temp: &Path, content: &[u8]) -> Result<String> {
    let path = temp.join("blob");
    files::write(&path, content, 0o644)?;
    files::sha256(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_paths_are_those_that_ldd_found() {
        let said = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let expected = ["/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(library_paths(said).unwrap(), expected);
    }

    #[test]
    fn library_that_is_not_found_is_named() {
        let error = library_paths("\tlibx.so => not found\n").unwrap_err();
        assert!(error.to_string().contains("libx.so"));
    }
}
