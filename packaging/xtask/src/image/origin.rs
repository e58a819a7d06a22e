//! Says which kernel an image is made of, and where it comes from.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{debian, vmlinux};
use crate::{
    apt::Package,
    dirs::Dirs,
    files,
    inputs::Inputs,
    machine::{self, Machine, Part},
    pins::Pins,
    step,
};

/// A kernel with its modules.
pub enum Origin {
    /// A package of Debian 12.
    Debian(debian::Package),
    /// The kernel of this checkout.
    Own(Part),
}

impl Origin {
    /// Gets or builds the kernel of a machine.
    pub fn find(dirs: &Dirs, machine: Machine, pins: Pins) -> Result<Self> {
        match machine {
            Machine::Own => Ok(Self::Own(machine::kernel(dirs, pins)?)),
            Machine::Debian => {
                let inputs = Inputs::read(&dirs.inputs())?;
                Ok(Self::Debian(debian::fetch(dirs, &inputs.kernel, pins)?))
            }
        }
    }

    /// A name for a folder.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Debian(_) => "debian",
            Self::Own(_) => "own",
        }
    }

    /// Returns the package that has the kernel or its source.
    pub fn package(&self) -> Package {
        match self {
            Self::Debian(package) => Package {
                package: package.kernel.package.clone(),
                version: package.kernel.version.clone(),
                sha256: package.kernel.sha256.clone(),
            },
            Self::Own(part) => part.sources[0].package.clone(),
        }
    }

    /// Returns what the kernel itself depends on, as a text that changes with it.
    pub fn identity(&self) -> String {
        match self {
            Self::Debian(package) => format!("{:?}", package.kernel),
            // The folder is named by a digest of all that went in.
            Self::Own(part) => part.dir.display().to_string(),
        }
    }

    /// Returns a folder with `lib/modules`, which may be below `temp`.
    pub fn modules(&self, dirs: &Dirs, temp: &Path) -> Result<PathBuf> {
        match self {
            Self::Own(part) => Ok(part.dir.clone()),
            Self::Debian(package) => {
                let mut unpack = Command::new("dpkg-deb");
                unpack.arg("-x").arg(&package.deb).arg(temp);
                step::run(&dirs.log, "kernel-unpack", &mut unpack)?;
                Ok(temp.to_owned())
            }
        }
    }

    /// Returns the ELF that QEMU boots. `root` is what [`Self::modules`] returned.
    pub fn vmlinux(&self, root: &Path, release: &str) -> Result<Vec<u8>> {
        match self {
            Self::Own(part) => files::read(&part.dir.join("vmlinux")),
            Self::Debian(_) => {
                let bzimage = root.join(format!("boot/vmlinuz-{release}"));
                vmlinux::extract(&files::read(&bzimage)?)
                    .with_context(|| format!("unpack {}", bzimage.display()))
            }
        }
    }
}
