//! Tests that the workspace's crates depend on each other in one direction only (ARCHITECTURE.md):
//! `tests → deploy/node, shim, guest → vmm, oci, protocol`.
//! The last three do not depend on each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

/// The crates that each crate may depend on. A crate that is not listed fails the test, so that a
/// new crate is added here.
const MAY_SEE: &[(&str, &[&str])] = &[
    ("caisson-oci", &[]),
    ("caisson-vmm", &[]),
    ("caisson-protocol", &[]),
    ("caisson-guest", &["caisson-protocol"]),
    (
        "caisson-node",
        &["caisson-oci", "caisson-protocol", "caisson-vmm"],
    ),
    (
        "caisson-shim",
        &[
            "caisson-node",
            "caisson-oci",
            "caisson-protocol",
            "caisson-vmm",
        ],
    ),
    ("caisson", &["caisson-node", "caisson-oci", "caisson-vmm"]),
    ("caisson-remote", &["caisson-node", "caisson-oci"]),
    ("caisson-image", &[]),
    ("caisson-local", &["caisson-image"]),
    (
        "caisson-tests",
        &[
            "caisson",
            "caisson-image",
            "caisson-local",
            "caisson-shim",
            "caisson-node",
            "caisson-oci",
            "caisson-vmm",
            "caisson-protocol",
        ],
    ),
    ("xtask", &["caisson-image"]),
];

#[test]
fn crates_see_only_what_is_below_them() -> Result<()> {
    let allowed: BTreeMap<_, _> = MAY_SEE.iter().copied().collect();
    for (name, sees) in crates()? {
        let may = allowed
            .get(name.as_str())
            .with_context(|| format!("{name} has no place here"))?;
        for seen in sees {
            assert!(may.contains(&seen.as_str()), "{name} must not see {seen}");
        }
    }
    Ok(())
}

/// Returns the workspace's packages and the other workspace packages that each depends on,
/// including build and test dependencies.
fn crates() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(caisson_tests::paths::workspace())
        .output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let all: BTreeSet<_> = packages.iter().map(name).collect();
    let sees = |package: &Value| {
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        dependencies
            .map(name)
            .filter(|seen| all.contains(seen))
            .collect()
    };
    Ok(packages
        .iter()
        .map(|package| (name(package), sees(package)))
        .collect())
}
