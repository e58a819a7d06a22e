//! `cargo xtask node-image`: makes the image of the chart's pods, an OCI layout in a tar file,
//! without Docker.
//!
//! Its one layer has what a node gets, in `/usr/lib/caisson`, and the shared libraries that
//! `caisson` itself is linked with. It has no shell and no package manager: everything else runs on
//! the node.

use std::{path::Path, process::Command};

use anyhow::{bail, Context, Result};
use serde_json::json;

use crate::{
    archive::Archive,
    dirs::Dirs,
    files, oci_image, papers,
    payload::{self, Entry},
    step,
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
    for library in libraries(&dirs.dist.join("bin/caisson-remote"))? {
        layer.entry(&library)?;
    }
    for entry in payload::entries(dirs)? {
        layer.entry(&entry)?;
    }
    for (package, text) in
        papers::copyrights_of(&libraries(&dirs.dist.join("bin/caisson-remote"))?)?
    {
        layer.file(
            &format!("usr/share/doc/{package}/copyright"),
            0o644,
            text.as_bytes(),
        )?;
    }
    layer.finish()
}

/// Returns a program's shared libraries and the loader, at the places where the loader looks for
/// them.
pub fn libraries(program: &Path) -> Result<Vec<Entry>> {
    let said = step::output(Command::new("ldd").arg(program))?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let paths = library_paths(&said)?;
    paths
        .into_iter()
        .map(|path| payload::entry(Path::new(path), path.trim_start_matches('/').to_owned()))
        .collect()
}

/// Returns the paths in ldd's output, sorted.
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
