//! Finds out which of a kernel's modules the initramfs needs and in which order, from the kernel's
//! own tables (`modules.dep` and `modules.builtin`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{bail, Result};

use crate::files;

/// A module to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The name with underscores, as the kernel writes it.
    pub name: String,
    /// The path below `lib/modules/<release>`.
    pub path: String,
}

/// The tables of one kernel.
pub struct Tables {
    /// Maps each module's path to the paths of the modules that it needs.
    depends: BTreeMap<String, Vec<String>>,
    by_name: BTreeMap<String, String>,
    builtin: BTreeSet<String>,
}

impl Tables {
    /// Reads the tables of `lib/modules/<release>`.
    pub fn read(dir: &Path) -> Result<Self> {
        let dep = files::read_text(&dir.join("modules.dep"))?;
        let builtin = files::read_text(&dir.join("modules.builtin"))?;
        Ok(Self::parse(&dep, &builtin))
    }

    fn parse(dep: &str, builtin: &str) -> Self {
        let depends: BTreeMap<String, Vec<String>> = dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| {
                let needs = needs.split_whitespace().map(str::to_owned).collect();
                (path.to_owned(), needs)
            })
            .collect();
        Self {
            by_name: depends
                .keys()
                .map(|path| (name_of(path), path.clone()))
                .collect(),
            builtin: builtin.lines().map(name_of).collect(),
            depends,
        }
    }

    /// Returns the wanted modules in load order: each after what it needs, each once, without those
    /// that are built in.
    pub fn load_order(&self, wanted: &[String]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        for name in wanted {
            match self.by_name.get(name) {
                Some(path) => self.add(path, &mut order),
                None if self.builtin.contains(name) => {}
                None => bail!("this kernel has no module {name}"),
            }
        }
        Ok(order)
    }

    /// Returns the names of the modules that are not among these, sorted.
    pub fn others(&self, modules: &[Module]) -> Vec<&str> {
        let names = self.by_name.keys().map(String::as_str);
        names
            .filter(|name| modules.iter().all(|module| module.name != **name))
            .collect()
    }

    fn add(&self, path: &str, order: &mut Vec<Module>) {
        if order.iter().any(|module| module.path == path) {
            return;
        }
        // modules.dep has no cycles: depmod refuses them.
        for need in self.depends.get(path).into_iter().flatten() {
            self.add(need, order);
        }
        order.push(Module {
            name: name_of(path),
            path: path.to_owned(),
        });
    }
}

/// Returns a module's name: `kernel/net/9p/9pnet-virtio.ko` is `9pnet_virtio`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Returns a module without the signature that its distribution appended (struct module_signature,
/// scripts/sign-file.c).
///
/// The initramfs is as trusted as the kernel beside it, and checking nineteen RSA signatures costs
/// an emulated guest 55 ms of a start that takes 1.4 s. The price is the taint flag E.
pub fn without_signature(module: &[u8]) -> &[u8] {
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    // Six bytes that say how it was signed, two of padding, and the signature's length, big-endian.
    const TRAILER: usize = 12;
    let unsigned = || {
        let signed = module.strip_suffix(MAGIC)?;
        let (rest, trailer) = signed.split_at_checked(signed.len().checked_sub(TRAILER)?)?;
        let length = u32::from_be_bytes(trailer[8..].try_into().ok()?);
        rest.get(..rest.len().checked_sub(length as usize)?)
    };
    unsigned().unwrap_or(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/a/ring.ko:\n\
                       kernel/a/vio.ko: kernel/a/ring.ko\n\
                       kernel/b/vio-blk.ko: kernel/a/vio.ko kernel/a/ring.ko\n\
                       kernel/c/fs.ko.xz:\n";
    const BUILTIN: &str = "kernel/d/pci-core.ko\n";

    fn names(wanted: &[&str]) -> Result<Vec<String>> {
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        let order = Tables::parse(DEP, BUILTIN).load_order(&wanted)?;
        Ok(order.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn load_order_puts_each_after_what_it_needs_and_once() {
        let order = names(&["fs", "vio_blk", "vio"]).unwrap();
        assert_eq!(order, ["fs", "ring", "vio", "vio_blk"]);
    }

    #[test]
    fn others_are_neither_in_the_order_nor_built_in() {
        let tables = Tables::parse(DEP, BUILTIN);
        let order = tables.load_order(&["vio".to_owned()]).unwrap();
        assert_eq!(tables.others(&order), ["fs", "vio_blk"]);
    }

    #[test]
    fn load_order_leaves_out_what_is_built_in() {
        assert_eq!(names(&["pci_core", "ring"]).unwrap(), ["ring"]);
    }

    #[test]
    fn load_order_of_an_unknown_module_fails_with_its_name() {
        let error = names(&["nonsense"]).unwrap_err();
        assert!(error.to_string().contains("nonsense"));
    }

    #[test]
    fn without_signature_takes_off_the_signature_alone() {
        let trailer = [0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 5];
        let magic = &b"~Module signature appended~\n"[..];
        let signed = [&b"\x7fELF..."[..], b"12345", &trailer, magic].concat();
        assert_eq!(without_signature(&signed), b"\x7fELF...");
        assert_eq!(without_signature(b"\x7fELF..."), b"\x7fELF...");
        assert_eq!(without_signature(magic), magic);
    }
}
