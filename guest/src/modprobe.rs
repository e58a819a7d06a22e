//! The guest's `/sbin/modprobe`: loads a module of the initramfs, or else one of the disk with all
//! modules ([`crate::kernel::module_disk`]).
//!
//! The kernel calls it as `modprobe -q -- NAME`.

use std::{ffi::OsString, process::ExitCode};

use crate::{
    kernel::{module_disk, module_files, sysctls},
    Result,
};

/// Runs the program. It is quiet, since the kernel asks for many modules that need not exist.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let names = args
        .filter_map(|word| word.into_string().ok())
        .filter(|word| !word.starts_with('-'));
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match probe(&name) {
            // The module may have brought parameters. It is there, even if they stay as they are.
            Ok(true) => drop(sysctls::raise()),
            _ => code = ExitCode::FAILURE,
        }
    }
    code
}

fn probe(name: &str) -> Result<bool> {
    let name = name.replace('-', "_");
    // `mount -t squashfs` asks for `fs-squashfs`.
    let plain = name.strip_prefix("fs_").unwrap_or(&name);
    let order = module_files::order();
    if order.iter().any(|known| known == plain) {
        for module in module_files::of_fs(plain) {
            module_files::insert_if_there(module)?;
        }
        return Ok(true);
    }
    module_disk::load(&name)
}
