//! `cargo xtask machine`: builds the machine that a pod runs in, QEMU and the guest's kernel, from
//! Debian 13's source packages and the configurations in `packaging/machine`.
//!
//! That takes minutes, so the results are kept outside the checkout, in `~/.cache/caisson/machine`
//! (or below `XDG_CACHE_HOME`), in a folder each that is named by a digest of all that went in.

mod kernel;
mod part;
mod qemu;

use std::fs;

use anyhow::{Context, Result};

pub use kernel::PAPERS as KERNEL_PAPERS;
pub use part::{apply, Part, Source};
pub use qemu::{LINKED, PAPERS as QEMU_PAPERS};
use qemu::{PROGRAM, ROMS};

use crate::{dirs::Dirs, files, inputs::Inputs, pins::Pins};

/// Which QEMU and which kernel a node gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// Those of this checkout.
    Own,
    /// Debian 12's: the kernel from its package, QEMU as it is installed on the node.
    Debian,
}

/// Builds QEMU and the kernel, unless they are in the cache, and prints where they are.
pub fn build(dirs: &Dirs, pins: Pins) -> Result<()> {
    for part in [qemu(dirs, pins)?, kernel(dirs, pins)?] {
        println!("{}", part.dir.display());
    }
    Ok(())
}

/// Returns our own machine if it has been built, otherwise Debian's.
pub fn built(dirs: &Dirs) -> Result<Machine> {
    let inputs = Inputs::read(&dirs.inputs())?;
    let both = qemu::recipe(dirs, &inputs.machine)?.is_built()?
        && kernel::recipe(dirs, &inputs.machine)?.is_built()?;
    Ok(if both { Machine::Own } else { Machine::Debian })
}

/// Returns the part with QEMU: `qemu-system-x86_64`, the firmware in `roms`, and its papers.
pub fn qemu(dirs: &Dirs, pins: Pins) -> Result<Part> {
    let inputs = Inputs::read(&dirs.inputs())?;
    qemu::recipe(dirs, &inputs.machine)?.part(dirs, &inputs.machine.release, pins)
}

/// Returns the part with the kernel: `vmlinux`, `lib/modules` and its papers.
pub fn kernel(dirs: &Dirs, pins: Pins) -> Result<Part> {
    let inputs = Inputs::read(&dirs.inputs())?;
    kernel::recipe(dirs, &inputs.machine)?.part(dirs, &inputs.machine.release, pins)
}

/// Puts the QEMU of a machine into `libexec`, with its firmware, or takes ours away from there, so
/// that the node's own is used.
pub fn install(dirs: &Dirs, machine: Machine, pins: Pins) -> Result<()> {
    let to = dirs.dist.join("libexec");
    match machine {
        Machine::Own => {
            let part = qemu(dirs, pins)?;
            files::copy(&part.dir.join(PROGRAM), &to.join(PROGRAM))?;
            for name in qemu::FIRMWARE {
                files::copy(&part.dir.join(ROMS).join(name), &to.join(ROMS).join(name))?;
            }
        }
        Machine::Debian if to.join(PROGRAM).exists() => {
            let removed = fs::remove_file(to.join(PROGRAM));
            removed
                .and_then(|()| fs::remove_dir_all(to.join(ROMS)))
                .with_context(|| format!("remove QEMU from {}", to.display()))?;
        }
        Machine::Debian => {}
    }
    Ok(())
}

/// Returns the machine that `target/dist` has.
pub fn installed(dirs: &Dirs) -> Machine {
    match dirs.dist.join("libexec").join(PROGRAM).exists() {
        true => Machine::Own,
        false => Machine::Debian,
    }
}
