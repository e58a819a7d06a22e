//! Lists the crates that are linked into a binary, from `cargo metadata`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{ensure, Context, Result};
use serde::Deserialize;

use crate::{dirs::Dirs, files, helpers, step};

/// The platform of everything that is shipped.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// One crate with its licence texts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crate {
    pub name: String,
    pub version: String,
    /// An SPDX expression; `None` means that only the files tell.
    pub licence: Option<String>,
    /// The files that come with it.
    pub texts: Vec<String>,
}

/// The part of `cargo metadata` that is read.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<PackageMetadata>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct PackageMetadata {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    /// `None` for a crate of this workspace.
    source: Option<String>,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// `None` for a normal dependency.
    kind: Option<String>,
}

/// Returns the crates that are linked into the workspace's crates `roots`, without the workspace's
/// own.
pub fn of_workspace(dirs: &Dirs, roots: &[&str]) -> Result<Vec<Crate>> {
    let metadata = metadata(&dirs.root.join("Cargo.toml"))?;
    linked(&metadata, roots, |package| package.source.is_some())
}

/// Returns the crates that are linked into a daemon installed from its crate, that crate included.
pub fn of_helper(dirs: &Dirs, name: &str, version: &str) -> Result<Vec<Crate>> {
    let metadata = metadata(&helpers::source(dirs, name, version)?.join("Cargo.toml"))?;
    linked(&metadata, &[name], |_| true)
}

fn metadata(manifest: &Path) -> Result<Metadata> {
    let mut cargo = step::cargo();
    cargo
        .args(["metadata", "--quiet", "--locked", "--format-version=1"])
        .args(["--filter-platform", PLATFORM, "--manifest-path"])
        .arg(manifest);
    let said = step::output(&mut cargo)?;
    serde_json::from_slice(&said)
        .with_context(|| format!("understand cargo metadata of {}", manifest.display()))
}

/// Returns the packages that are reached from `roots` by normal dependencies. Macros run in the
/// compiler and are linked into nothing.
fn linked(
    metadata: &Metadata,
    roots: &[&str],
    wanted: impl Fn(&PackageMetadata) -> bool,
) -> Result<Vec<Crate>> {
    let by_id: BTreeMap<_, _> = metadata
        .packages
        .iter()
        .map(|package| (package.id.as_str(), package))
        .collect();
    let nodes = &metadata.resolve.nodes;
    let deps: BTreeMap<_, _> = nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let is_root = |package: &&PackageMetadata| roots.contains(&package.name.as_str());
    let mut todo: Vec<_> = metadata.packages.iter().filter(is_root).collect();
    let mut seen = BTreeSet::new();
    let mut crates = Vec::new();
    while let Some(package) = todo.pop() {
        let is_macro = |target: &Target| target.kind.iter().any(|kind| kind == "proc-macro");
        if package.targets.iter().any(is_macro) || !seen.insert(package.id.as_str()) {
            continue;
        }
        if wanted(package) {
            crates.push(describe(package)?);
        }
        let node = deps.get(package.id.as_str());
        for dependency in node.into_iter().flat_map(|node| &node.deps) {
            if dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()) {
                todo.extend(by_id.get(dependency.pkg.as_str()));
            }
        }
    }
    crates.sort();
    Ok(crates)
}

fn describe(package: &PackageMetadata) -> Result<Crate> {
    let folder = package.manifest_path.parent().unwrap_or(Path::new("."));
    let mut paths = Vec::new();
    for found in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = found
            .with_context(|| format!("read {}", folder.display()))?
            .path();
        let name = files::name(&path).to_ascii_uppercase();
        let begins = [
            "LICENSE",
            "LICENCE",
            "COPYING",
            "COPYRIGHT",
            "NOTICE",
            "UNLICENSE",
        ];
        if path.is_file() && begins.iter().any(|begin| name.starts_with(begin)) {
            paths.push(path);
        }
    }
    paths.sort();
    let text = |path: &PathBuf| Ok(String::from_utf8_lossy(&files::read(path)?).into_owned());
    let texts: Vec<_> = paths.iter().map(text).collect::<Result<_>>()?;
    ensure!(
        package.license.is_some() || !texts.is_empty(),
        "{} {} says no licence and has no file with one",
        package.name,
        package.version
    );
    Ok(Crate {
        name: package.name.clone(),
        version: package.version.clone(),
        // Before SPDX expressions, `OR` was written as a slash.
        licence: package
            .license
            .as_ref()
            .map(|licence| licence.replace('/', " OR ")),
        texts,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{json, Value};

    use super::*;

    fn package(id: &str, kind: &str) -> Value {
        // This crate's own folder, which has no licence file.
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        json!({
            "id": id, "name": id, "version": "1.0.0", "license": "MIT/Apache-2.0", "source": "registry",
            "manifest_path": manifest, "targets": [{ "kind": [kind] }],
        })
    }

    fn node(id: &str, deps: &[(&str, Option<&str>)]) -> Value {
        let dep = |(id, kind): &(&str, Option<&str>)| json!({ "pkg": id, "dep_kinds": [{ "kind": kind }] });
        json!({ "id": id, "deps": deps.iter().map(dep).collect::<Vec<_>>() })
    }

    #[test]
    fn linked_crates_are_those_of_normal_dependencies_without_macros() {
        let metadata = json!({
            "packages": [
                package("root", "bin"), package("near", "lib"), package("far", "lib"),
                package("built", "lib"), package("tested", "lib"), package("macro", "proc-macro"),
                package("of_macro", "lib"), package("other", "bin"),
            ],
            "resolve": { "nodes": [
                node("root", &[("near", None), ("built", Some("build")), ("tested", Some("dev")), ("macro", None)]),
                node("near", &[("far", None), ("root", None)]),
                node("macro", &[("of_macro", None)]),
            ]},
        });
        let metadata = serde_json::from_value(metadata).unwrap();
        let crates = linked(&metadata, &["root"], |_| true).unwrap();
        let names: Vec<_> = crates.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["far", "near", "root"]);
        assert_eq!(crates[0].licence.as_deref(), Some("MIT OR Apache-2.0"));
    }
}
