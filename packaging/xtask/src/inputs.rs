//! Reads `packaging/guest/inputs.toml`, which pins everything from outside that goes into what is
//! shipped.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{apt::Package, files};

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    pub kernel: Kernel,
    pub machine: Machine,
    pub initramfs: Initramfs,
    /// Maps a crate's name to its version.
    pub helpers: BTreeMap<String, String>,
    pub checks: Checks,
}

/// A kernel package of Debian.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// The meta package that depends on the newest `package`.
    pub meta_package: String,
    pub package: String,
    pub version: String,
    /// The sha256 of the .deb.
    pub sha256: String,
}

/// The sources of our own machine.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The Debian release that has them.
    pub release: String,
    /// QEMU's source package; the digest is that of its .dsc.
    pub qemu: Package,
    /// The package with the kernel's source.
    pub linux: Package,
    pub seabios: Package,
}

/// What the initramfs holds beside the agent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Initramfs {
    /// Module names with underscores, in load order.
    pub boot_modules: Vec<String>,
}

/// Versions of the tools that check the tree.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checks {
    pub cargo_deny: String,
}

impl Inputs {
    /// Reads and checks the file.
    pub fn read(path: &Path) -> Result<Self> {
        toml::from_str(&files::read_text(path)?)
            .with_context(|| format!("understand {}", path.display()))
    }
}

/// Rewrites the values of `[kernel]` and leaves every other line as it is.
pub fn replace_kernel(text: &str, kernel: &Kernel) -> String {
    let mut section = "";
    let mut result = String::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line;
        }
        let key = line.split('=').next().unwrap_or_default().trim();
        let value = match (section, key) {
            ("[kernel]", "package") => Some(&kernel.package),
            ("[kernel]", "version") => Some(&kernel.version),
            ("[kernel]", "sha256") => Some(&kernel.sha256),
            _ => None,
        };
        match value {
            Some(value) => result.push_str(&format!("{key} = \"{value}\"")),
            None => result.push_str(line),
        }
        result.push('\n');
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# a comment\n[kernel]\nmeta_package = \"m\"\npackage = \"p\"\nversion = \"1\"\n\
                        sha256 = \"0\"\n\n[machine]\nrelease = \"r\"\nqemu = { package = \"q\", version = \"1\", sha256 = \"0\" }\n\
                        linux = { package = \"l\", version = \"1\", sha256 = \"0\" }\n\
                        seabios = { package = \"s\", version = \"1\", sha256 = \"0\" }\n[initramfs]\nboot_modules = []\n[helpers]\nversion = \"kept\"\n\
                        [checks]\ncargo_deny = \"1\"\n";

    #[test]
    fn replace_kernel_changes_the_pin_and_nothing_else() {
        let kernel = Kernel {
            meta_package: "m".into(),
            package: "p2".into(),
            version: "2".into(),
            sha256: "ff".into(),
        };
        let text = replace_kernel(TEXT, &kernel);
        let inputs: Inputs = toml::from_str(&text).unwrap();
        assert_eq!(inputs.kernel, kernel);
        assert_eq!(inputs.helpers["version"], "kept");
        assert!(text.starts_with("# a comment\n"));
    }

    #[test]
    fn inputs_with_an_unknown_key_are_refused() {
        let text = TEXT.replace("boot_modules", "modules");
        assert!(toml::from_str::<Inputs>(&text).is_err());
    }
}
