//! Skills of a node: trees packed, or files added as they are, with `caisson skill`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{
    command,
    node::{caisson, Node, LIMIT},
};

/// Packs a tree. Returns the digest as in an annotation.
pub fn pack(node: &Node, name: &str, tree: &Path) -> Result<String> {
    pack_with(node, name, tree, &[])
}

/// Packs a tree with further options of `caisson skill pack`.
pub fn pack_with(node: &Node, name: &str, tree: &Path, options: &[&str]) -> Result<String> {
    let mut pack = caisson(node)?;
    pack.args(["skill", "pack", "--name", name]);
    pack.args(options).arg(tree);
    Ok(command::run(&mut pack, None, LIMIT)?.ok()?.line())
}

/// Adds a file, whatever it contains. Returns the digest as in an annotation.
pub fn add(node: &Node, name: &str, file: &Path) -> Result<String> {
    let mut add = caisson(node)?;
    add.args(["skill", "add", "--name", name]).arg(file);
    Ok(command::run(&mut add, None, LIMIT)?.ok()?.line())
}

/// Returns the path of a skill in the store.
pub fn file(node: &Node, digest: &str) -> PathBuf {
    let name = digest.trim_start_matches("sha256:");
    node.store_dir().join("skills").join(name)
}

/// Makes a squashfs file of a tree with mksquashfs and these options.
pub fn squashfs(tree: &Path, options: &[&str], file: &Path) -> Result<()> {
    let mut make = Command::new("mksquashfs");
    make.arg(tree)
        .arg(file)
        .args(["-noappend", "-no-progress", "-quiet"]);
    command::run(make.args(options), None, LIMIT)?.ok()?;
    Ok(())
}

/// Creates an empty folder for a tree, below the node's own.
pub fn tree(node: &Node, name: &str) -> Result<PathBuf> {
    let tree = node.dir().join("trees").join(name);
    fs::create_dir_all(&tree)?;
    Ok(tree)
}
