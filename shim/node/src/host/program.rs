//! Finds the other programs of Caisson.

use std::path::PathBuf;

/// Returns the path of a program beside this one, or else its name, to be found in `PATH`.
pub fn beside(name: &str) -> PathBuf {
    let beside = std::env::current_exe().map(|own| own.with_file_name(name));
    beside
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| name.into())
}
