//! Makes images of one layer, compressed, for whoever pulls or imports them.

use std::{path::Path, process::Command};

use anyhow::Result;
use caisson_image::Layer;
use serde_json::Value;

use crate::{files, step};

/// Writes the image `NAME:TAG` with this layer, a tar file, and this configuration (`config` of the
/// image specification). The layer is removed.
pub fn write(log_dir: &Path, layer: &Path, config: Value, name: &str, to: &Path) -> Result<()> {
    let diff_id = format!("sha256:{}", files::sha256(layer)?);
    // -n leaves name and time out.
    let mut gzip = Command::new("gzip");
    step::run(log_dir, "image-layer", gzip.args(["-n", "-6"]).arg(layer))?;
    let layer = Layer::gzip(&layer.with_extension("tar.gz"), diff_id)?;
    caisson_image::write(&layer, &config, name, to)
}
