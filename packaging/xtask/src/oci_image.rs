//! Makes images of one layer, without Docker: an OCI image layout in a tar file (image-spec,
//! image-layout.md).

use std::{path::Path, process::Command};

use anyhow::{Context, Result};
use serde_json::{json, Value};

use crate::{archive::Archive, files, step};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Writes the image `NAME:TAG` with this layer, a tar file, and this configuration (`config` of the
/// image specification). The layer is removed.
pub fn write(log_dir: &Path, layer: &Path, config: Value, name: &str, to: &Path) -> Result<()> {
    let diff_id = files::sha256(layer)?;
    // -n leaves name and time out.
    let mut gzip = Command::new("gzip");
    step::run(log_dir, "image-layer", gzip.args(["-n", "-6"]).arg(layer))?;
    let layer = layer.with_extension("tar.gz");
    let layer_digest = files::sha256(&layer)?;
    let layer = files::read(&layer)?;

    let config = bytes(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
        "history": [{ "created_by": "cargo xtask" }],
    }));
    let config_digest = digest(&config)?;
    let manifest = bytes(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config_digest, config.len()),
        "layers": [descriptor(LAYER, &layer_digest, layer.len())],
    }));
    let manifest_digest = digest(&manifest)?;

    let mut image = Archive::create(to)?;
    let layout = bytes(&json!({ "imageLayoutVersion": "1.0.0" }));
    image.file("oci-layout", 0o644, &layout)?;
    let index = index(descriptor(MANIFEST, &manifest_digest, manifest.len()), name);
    image.file("index.json", 0o644, &bytes(&index))?;
    for (digest, content) in [
        (&config_digest, &config),
        (&manifest_digest, &manifest),
        (&layer_digest, &layer),
    ] {
        image.file(&format!("blobs/sha256/{digest}"), 0o644, content)?;
    }
    image.finish()
}

fn index(mut manifest: Value, name: &str) -> Value {
    let tag = name.rsplit_once(':').map_or(name, |(_, tag)| tag);
    manifest["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    manifest["annotations"] = json!({
        // containerd takes the first as the image's name, other tools the second as its tag.
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": tag,
    });
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest] })
}

fn descriptor(media_type: &str, digest: &str, size: usize) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size })
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn digest(content: &[u8]) -> Result<String> {
    let blob = tempfile::NamedTempFile::new().context("make a temporary file")?;
    std::fs::write(&blob, content).with_context(|| format!("write {}", blob.path().display()))?;
    files::sha256(blob.path())
}
