//! Tests that no file of a crate imports, directly or not, a file that imports it.
//!
//! A file imports another when its code names something of the other's module: in a `use`, in a
//! path, or in a macro's arguments. A path through a re-export (`crate::Error`, where `lib.rs` says
//! `pub use error::Error`) imports the file that defines the thing. `mod x;` alone imports nothing,
//! and tests inside a file do not count.

#[path = "circles/code.rs"]
mod code;
#[path = "circles/modules.rs"]
mod modules;
#[path = "circles/tests.rs"]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use modules::{imports_below, Imports};
use serde_json::Value;

/// The rule is for the product and its build; the crate of the tests is left out.
const LEFT_OUT: &str = "caisson-tests";

/// Crates whose circles are still to be opened.
const NOT_YET: &[&str] = &["caisson-guest", "caisson-vmm"];

#[test]
fn files_import_each_other_in_one_direction_only() -> Result<()> {
    let mut found = String::new();
    for (package, roots) in packages()? {
        if package == LEFT_OUT || NOT_YET.contains(&package.as_str()) {
            continue;
        }
        let mut imports = Imports::default();
        for root in roots {
            let read = |path: &Path| fs::read_to_string(path).ok();
            imports.extend(imports_below(&root, &read)?);
        }
        for circle in circles(&imports) {
            let _ = writeln!(found, "{package}: {} files in a circle", circle.len());
            found.push_str(&drawing(&imports, &circle));
        }
    }
    assert!(found.is_empty(), "files that import each other:\n{found}");
    Ok(())
}

/// Returns the workspace's packages with the roots of their library and their programs.
fn packages() -> Result<BTreeMap<String, Vec<PathBuf>>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(caisson_tests::paths::workspace())
        .output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let is_product = |target: &&Value| target["kind"][0] == "lib" || target["kind"][0] == "bin";
    let mut packages = BTreeMap::new();
    for package in metadata["packages"].as_array().context("packages")? {
        let name = package["name"].as_str().context("name")?;
        let targets = package["targets"].as_array().context("targets")?;
        let roots = targets.iter().filter(is_product);
        let roots = roots.filter_map(|target| target["src_path"].as_str().map(PathBuf::from));
        packages.insert(name.to_owned(), roots.collect());
    }
    Ok(packages)
}

/// Returns the files that import each other, each circle sorted.
fn circles(imports: &Imports) -> BTreeSet<Vec<&Path>> {
    let files = imports.keys().map(|(from, _)| from.as_path());
    let reached: BTreeMap<_, _> = files.map(|file| (file, reached(imports, file))).collect();
    let circles = reached.iter().map(|(file, to)| {
        let back = |other: &&&Path| reached.get(*other).is_some_and(|to| to.contains(file));
        to.iter().filter(back).copied().collect()
    });
    circles
        .filter(|circle: &Vec<_>| !circle.is_empty())
        .collect()
}

/// Returns the files that a file imports, directly or not.
fn reached<'a>(imports: &'a Imports, start: &'a Path) -> BTreeSet<&'a Path> {
    let mut seen = BTreeSet::new();
    let mut todo = vec![start];
    while let Some(file) = todo.pop() {
        let arrows = imports.keys().filter(|(from, _)| from == file);
        todo.extend(
            arrows
                .map(|(_, to)| to.as_path())
                .filter(|to| seen.insert(*to)),
        );
    }
    seen
}

/// Returns the arrows inside a circle, each in a line.
fn drawing(imports: &Imports, circle: &[&Path]) -> String {
    let workspace = caisson_tests::paths::workspace();
    let short = |path: &Path| {
        path.strip_prefix(&workspace)
            .unwrap_or(path)
            .display()
            .to_string()
    };
    let mut text = String::new();
    for ((from, to), names) in imports {
        if circle.contains(&from.as_path()) && circle.contains(&to.as_path()) {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let names = names.join(", ");
            let _ = writeln!(text, "  {} → {}: {names}", short(from), short(to));
        }
    }
    text
}
