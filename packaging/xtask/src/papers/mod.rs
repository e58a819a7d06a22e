//! `cargo xtask papers`: writes what the shipped things contain and under which licences: an SBOM
//! (CycloneDX) and all licence texts.

mod crates;
mod debian;
mod sbom;

use std::{collections::BTreeMap, fmt::Write, path::PathBuf};

use anyhow::Result;

use crate::{
    dirs::Dirs,
    files, helpers,
    inputs::Inputs,
    libraries,
    machine::{self, Machine},
    pins::Pins,
};
use crates::Crate;
use debian::Package;

const LICENCES: &str = "licences.txt";
const SBOM: &str = "sbom.cdx.json";

/// The workspace's crates that become binaries.
const ROOTS: [&str; 4] = ["caisson", "caisson-guest", "caisson-remote", "caisson-shim"];
/// The packages of the building machine that the agent is statically linked with.
const STATIC: [&str; 2] = ["libc6-dev", "libseccomp-dev"];

/// Returns the names of the papers in `target/dist`.
pub fn all(dirs: &Dirs) -> Vec<&'static str> {
    let mut all = vec!["LICENSE", LICENCES, SBOM];
    all.extend(helpers::PATCHES);
    if machine::installed(dirs) == Machine::Own {
        all.extend(machine::KERNEL_PAPERS);
        all.extend(machine::QEMU_PAPERS);
    }
    all
}

/// Writes the papers; the binaries have to be in `target/dist`.
pub fn build(dirs: &Dirs) -> Result<()> {
    let inputs = Inputs::read(&dirs.inputs())?;
    let mut crates = crates::of_workspace(dirs, &ROOTS)?;
    for (name, version) in &inputs.helpers {
        crates.extend(crates::of_helper(dirs, name, version)?);
    }
    crates.sort();
    crates.dedup();
    for name in helpers::PATCHES {
        files::copy(&helpers::patches(dirs).join(name), &dirs.dist.join(name))?;
    }

    let libraries = libraries::of(&dirs.dist.join("bin/caisson-remote"))?;
    let mut packages = debian::owners(&libraries)?;
    for name in STATIC {
        packages.push(debian::installed(name)?);
    }
    match machine::installed(dirs) {
        Machine::Debian => packages.push(debian::kernel(dirs)?),
        Machine::Own => {
            let (kernel, qemu) = (
                machine::kernel(dirs, Pins::Prefer)?,
                machine::qemu(dirs, Pins::Prefer)?,
            );
            for name in machine::LINKED {
                packages.push(debian::installed(name)?);
            }
            for source in kernel.sources.iter().chain(&qemu.sources) {
                packages.push(debian::source(source));
            }
            for (part, names) in [
                (&kernel, machine::KERNEL_PAPERS),
                (&qemu, machine::QEMU_PAPERS),
            ] {
                for name in names {
                    files::copy(&part.dir.join(name), &dirs.dist.join(name))?;
                }
            }
        }
    }
    packages.sort();
    packages.dedup();

    files::copy(&dirs.root.join("LICENSE"), &dirs.dist.join("LICENSE"))?;
    let mut sbom = serde_json::to_string_pretty(&sbom::document(&crates, &packages))?;
    sbom.push('\n');
    files::write(&dirs.dist.join(SBOM), sbom.as_bytes(), 0o644)?;
    let text = licences(&crates, &packages);
    files::write(&dirs.dist.join(LICENCES), text.as_bytes(), 0o644)
}

/// Returns the copyright files of the Debian packages that these files belong to, by package.
pub fn copyrights_of(files: &[PathBuf]) -> Result<BTreeMap<String, String>> {
    let packages = debian::owners(files)?;
    Ok(packages
        .into_iter()
        .map(|package| (package.name, package.copyright))
        .collect())
}

/// Returns each text once, below a list of everything that it applies to.
fn licences(crates: &[Crate], packages: &[Package]) -> String {
    let mut owners: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut without = Vec::new();
    for krate in crates {
        let licence = krate.licence.as_deref().unwrap_or("as follows");
        let owner = format!("{} {} ({licence})", krate.name, krate.version);
        if krate.texts.is_empty() {
            without.push(owner);
            continue;
        }
        for text in &krate.texts {
            owners.entry(text.trim()).or_default().push(owner.clone());
        }
    }
    for package in packages {
        let owner = format!("{} {} (Debian)", package.name, package.version);
        owners
            .entry(package.copyright.trim())
            .or_default()
            .push(owner);
    }
    let mut texts: Vec<_> = owners.into_iter().collect();
    texts.sort_by(|(one, owners), (two, others)| (owners, one).cmp(&(others, two)));

    let mut all = String::from(
        "What Caisson's programs and its guest image are made of besides Caisson, which is under the Apache License 2.0 (LICENSE).\n\
         Sources: of crates by their name and version from the Rust project's registry, of Debian's packages by theirs from Debian.\n\
         What is changed in a source is in a file beside this one (*.patch).\n",
    );
    if !without.is_empty() {
        all.push_str("\nUnder the licences named, without a text of their own:\n");
        for owner in without {
            let _ = writeln!(all, "  {owner}");
        }
    }
    for (text, owners) in texts {
        let line = "-".repeat(80);
        let _ = write!(all, "\n{line}\n");
        for owner in owners {
            let _ = writeln!(all, "{owner}");
        }
        let _ = write!(all, "\n{text}\n");
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn krate(name: &str, texts: &[&str]) -> Crate {
        Crate {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            licence: Some("MIT".to_owned()),
            texts: texts.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    #[test]
    fn licence_that_two_crates_share_is_printed_once() {
        let crates = [krate("a", &["the text"]), krate("b", &["the text\n"])];
        let all = licences(&crates, &[]);
        assert_eq!(all.matches("the text").count(), 1);
        assert!(
            all.contains("a 1.0.0 (MIT)\nb 1.0.0 (MIT)\n\nthe text\n"),
            "{all}"
        );
    }

    #[test]
    fn crate_without_a_text_is_named_with_its_licence() {
        let all = licences(&[krate("bare", &[])], &[]);
        assert!(all.contains("\n  bare 1.0.0 (MIT)\n"), "{all}");
    }
}
