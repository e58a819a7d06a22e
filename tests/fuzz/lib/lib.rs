//! Code shared by the fuzz targets: bounds on memory, mutations of JSON, and those modules of
//! `caisson` that are not part of a library.
//!
//! A target is one file under `targets/`. It passes bytes to the code that reads them in the
//! product, and checks what must hold for everything that the code accepts.

// This module and `shim` are included by their source, since `caisson` as a dependency would bring
// in clients of Kubernetes, registries and object stores.
#[path = "../../../deploy/node/src/node/containerd_config/mod.rs"]
#[allow(dead_code)]
pub mod containerd_config;
pub mod json;
pub mod memory;
pub mod random;
pub mod run;
#[path = "../../../deploy/node/src/shim.rs"]
#[allow(dead_code)]
mod shim;

use std::path::{Component, Path};

/// Returns whether a name is that of one file in a folder and leads nowhere else.
pub fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(parts.next(), Some(Component::Normal(_)))
        && parts.next().is_none()
        && !name.contains('/')
}

/// Returns whether a path is absolute and has no `..`.
pub fn is_plain_path(path: &Path) -> bool {
    path.is_absolute()
        && path
            .components()
            .skip(1)
            .all(|part| matches!(part, Component::Normal(_)))
}

/// Formats an error with all its causes, as a user reads it.
pub fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text += &format!(": {source}");
        next = source.source();
    }
    text
}
