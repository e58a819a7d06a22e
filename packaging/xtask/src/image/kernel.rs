//! Makes what is taken from a kernel: the ELF, the boot modules and the disk with all modules. They
//! are made once per kernel and kept in `target/cache/guest-MACHINE`.

use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{bail, Context, Result};

use super::{modules, origin::Origin};
use crate::{dirs::Dirs, files, step};

/// Identifies the recipe that the cached parts were made with.
const RECIPE: &str = concat!(
    include_str!("kernel.rs"),
    include_str!("modules.rs"),
    include_str!("origin.rs"),
    include_str!("vmlinux.rs")
);

/// The names of the initramfs' modules in their load order.
const ORDER: &str = "order";
/// The names of the modules that only the disk has.
const OTHERS: &str = "others";

/// A folder with `vmlinux`, `modules.squashfs`, `release` and `boot/`: modules, and the two lists.
pub struct Parts(PathBuf);

impl Parts {
    /// Returns the cached parts. Makes them anew if the kernel, the list of modules or the recipe
    /// has changed.
    pub fn cached(dirs: &Dirs, origin: &Origin, boot_modules: &[String]) -> Result<Self> {
        let stamp = format!("{}\n{boot_modules:?}\n{RECIPE}", origin.identity());
        let dir = dirs.cache.join(format!("guest-{}", origin.name()));
        let stamp_path = dir.join("stamp");
        if std::fs::read_to_string(&stamp_path).is_ok_and(|old| old == stamp) {
            return Ok(Self(dir));
        }
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        let parts = Self::make(dirs, origin, boot_modules, &dir)?;
        files::write(&stamp_path, stamp.as_bytes(), 0o644)?;
        Ok(parts)
    }

    /// Makes the parts in `dir`.
    pub fn make(dirs: &Dirs, origin: &Origin, wanted: &[String], dir: &Path) -> Result<Self> {
        files::make_dir(dir)?;
        let temp = tempfile::tempdir_in(&dirs.cache).context("make a folder in the cache")?;
        let root = origin.modules(dirs, temp.path())?;
        let tree = only_entry(&root.join("lib/modules"))?;
        let release = tree.file_name().context("the kernel has no release")?;
        let release = String::from_utf8_lossy(release.as_bytes()).into_owned();
        let elf = origin.vmlinux(&root, &release)?;
        files::write(&dir.join("vmlinux"), &elf, 0o644)?;
        files::write(&dir.join("release"), release.as_bytes(), 0o644)?;

        // Debian's package runs depmod only in its postinst.
        if !tree.join("modules.dep").exists() {
            let mut depmod = Command::new("depmod");
            depmod.arg("-b").arg(&root).arg(&release);
            step::run(&dirs.log, "depmod", &mut depmod)?;
        }
        copy_boot_modules(&tree, wanted, &dir.join("boot"))?;
        make_squashfs(dirs, &tree, &dir.join("modules.squashfs"))?;
        Ok(Self(dir.to_owned()))
    }

    pub fn vmlinux(&self) -> PathBuf {
        self.0.join("vmlinux")
    }

    pub fn squashfs(&self) -> PathBuf {
        self.0.join("modules.squashfs")
    }

    pub fn release(&self) -> Result<String> {
        files::read_text(&self.0.join("release"))
    }

    /// Returns name and content of the files for `/lib/modules` of the initramfs.
    pub fn boot_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let dir = self.0.join("boot");
        let order = files::read_text(&dir.join(ORDER))?;
        let others = files::read(&dir.join(OTHERS))?;
        let mut found = vec![
            (ORDER.to_owned(), order.clone().into_bytes()),
            (OTHERS.to_owned(), others),
        ];
        for name in order.lines() {
            let file = format!("{name}.ko");
            let content = files::read(&dir.join(&file))?;
            found.push((file, content));
        }
        Ok(found)
    }
}

fn copy_boot_modules(tree: &Path, wanted: &[String], to: &Path) -> Result<()> {
    let tables = modules::Tables::read(tree)?;
    let order = tables.load_order(wanted)?;
    let mut names = String::new();
    for module in &order {
        let from = tree.join(&module.path);
        let content = files::read(&from)?;
        // init_module(2) takes the ELF itself.
        if !content.starts_with(b"\x7fELF") {
            bail!("{} is compressed", from.display());
        }
        let content = modules::without_signature(&content);
        files::write(&to.join(format!("{}.ko", module.name)), content, 0o644)?;
        names.push_str(&module.name);
        names.push('\n');
    }
    files::write(&to.join(ORDER), names.as_bytes(), 0o644)?;
    let others = tables.others(&order).join("\n");
    files::write(&to.join(OTHERS), others.as_bytes(), 0o644)
}

fn make_squashfs(dirs: &Dirs, tree: &Path, to: &Path) -> Result<()> {
    let mut mksquashfs = Command::new("mksquashfs");
    mksquashfs
        .args([tree, to])
        .args("-noappend -no-progress -no-xattrs -all-root".split(' '))
        .args("-mkfs-time 0 -all-time 0".split(' '))
        // Level 9 takes a second; the default, 15, takes seven for 5 % less.
        .args("-comp zstd -Xcompression-level 9".split(' '))
        .env_remove("SOURCE_DATE_EPOCH");
    step::run(&dirs.log, "mksquashfs", &mut mksquashfs)
}

fn only_entry(dir: &Path) -> Result<PathBuf> {
    let entries: Vec<PathBuf> = std::fs::read_dir(dir)
        .with_context(|| format!("list {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    match &entries[..] {
        [one] => Ok(one.clone()),
        _ => bail!("{} entries in {}, not one", entries.len(), dir.display()),
    }
}
