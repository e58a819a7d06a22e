//! Reads the bundle that containerd makes for a container.

use std::{fs::File, io::Read, path::Path};

use caisson_node::host::error::OnFile;

use crate::error::{Error, Result};

/// The largest `config.json` that is read, in bytes.
const MAX_SPEC: u64 = 16 << 20;

/// Returns the text of a bundle's `config.json`.
pub fn read_config(bundle: &Path) -> Result<Vec<u8>> {
    let path = bundle.join("config.json");
    let mut json = Vec::new();
    let file = File::open(&path).map_err(Error::file("open", &path))?;
    file.take(MAX_SPEC)
        .read_to_end(&mut json)
        .map_err(Error::file("read", &path))?;
    Ok(json)
}
