//! Sets up dm-verity for a disk: the kernel checks each block that is read against a tree of
//! hashes. The host gives the root of the tree (kernel,
//! Documentation/admin-guide/device-mapper/verity.rst).
//!
//! The tree begins where the data ends, and has no superblock.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use caisson_protocol::agent::Verity;

use crate::{
    kernel::{modules, sysfs},
    Error, Result,
};

const CONTROL: &str = "/dev/mapper/control";
const MODULES: &[&str] = &["dm_mod", "dm_verity"];
/// The size of a block of data and of hashes, in bytes.
const BLOCK: u64 = 4096;
const SECTOR: u64 = 512;

/// Makes the checked device of a disk. Its name in the kernel is the disk's serial.
pub fn open(serial: &str, disk: &Path, verity: &Verity) -> Result<PathBuf> {
    let table = table(disk, verity)?;
    modules::load(MODULES)?;
    let control = control()?;
    let failed = |call| move |source| Error::System { call, source };
    let mut create = Command::new(serial);
    call(&control, &mut create, ioctl::create).map_err(failed("make the verity device"))?;
    let loaded = (|| {
        let mut load = Command::new(serial);
        load.header.flags = READ_ONLY;
        load.header.target_count = 1;
        load.target.length = verity.data_blocks * (BLOCK / SECTOR);
        load.target.kind[..6].copy_from_slice(b"verity");
        load.parameters[..table.len()].copy_from_slice(table.as_bytes());
        call(&control, &mut load, ioctl::load)?;
        // Without the suspend flag the call resumes the device, which puts the table into effect.
        call(&control, &mut Command::new(serial), ioctl::suspend)
    })();
    if let Err(error) = loaded {
        close(serial)?;
        return Err(failed("set the verity device up")(error));
    }
    let path = PathBuf::from(format!("/dev/dm-{}", minor(create.header.dev)));
    sysfs::wait_for("block", &format!("verity device of {serial}"), || {
        Ok(path.exists().then(|| path.clone()))
    })
}

/// Removes the checked device of a disk. One that does not exist counts as a success.
pub fn close(serial: &str) -> Result<()> {
    if !Path::new(CONTROL).exists() {
        return Ok(());
    }
    match call(&control()?, &mut Command::new(serial), ioctl::remove) {
        Err(error) if error.raw_os_error() != Some(libc::ENXIO) => Err(Error::System {
            call: "remove the verity device",
            source: error,
        }),
        _ => Ok(()),
    }
}

fn control() -> Result<File> {
    let file = File::options().read(true).write(true).open(CONTROL);
    file.map_err(Error::file("open", CONTROL))
}

/// Returns the parameters of the target: no salt, and data and hashes on the same disk.
fn table(disk: &Path, verity: &Verity) -> Result<String> {
    let (root, blocks) = (&verity.root_hash, verity.data_blocks);
    if root.len() != 64 || !root.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Error::Argument {
            field: "disk.verity.root_hash",
            value: root.chars().take(80).collect(),
            why: "is not 64 hex digits",
        });
    }
    if blocks == 0 || blocks > u64::MAX / BLOCK {
        return Err(Error::Argument {
            field: "disk.verity.data_blocks",
            value: blocks.to_string(),
            why: "is no size of a disk",
        });
    }
    let disk = disk.display();
    Ok(format!(
        "1 {disk} {disk} {BLOCK} {BLOCK} {blocks} {blocks} sha256 {root} -"
    ))
}

/// Returns the minor number of a `dev_t` as the kernel gives it to 64-bit programs
/// (`huge_encode_dev`).
fn minor(dev: u64) -> u64 {
    (dev & 0xff) | ((dev >> 12) & 0xf_ff00)
}

/// `DM_READONLY_FLAG`.
const READ_ONLY: u32 = 1;

/// `struct dm_ioctl` (kernel, include/uapi/linux/dm-ioctl.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// `struct dm_target_spec`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Target {
    sector_start: u64,
    length: u64,
    status: i32,
    next: u32,
    kind: [u8; 16],
}

/// The argument of each call: the header, and for a table one target with its parameters.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Command {
    header: Header,
    target: Target,
    parameters: [u8; 512],
}

impl Command {
    fn new(name: &str) -> Self {
        let mut command = Self {
            header: Header {
                // The first version of the interface with a stable layout.
                version: [4, 0, 0],
                data_size: size_of::<Self>() as u32,
                data_start: size_of::<Header>() as u32,
                target_count: 0,
                open_count: 0,
                flags: 0,
                event_nr: 0,
                padding: 0,
                dev: 0,
                name: [0; 128],
                uuid: [0; 129],
                data: [0; 7],
            },
            target: Target {
                sector_start: 0,
                length: 0,
                status: 0,
                next: 0,
                kind: [0; 16],
            },
            parameters: [0; 512],
        };
        // Fits, since a serial is shorter.
        command.header.name[..name.len()].copy_from_slice(name.as_bytes());
        command
    }
}

mod ioctl {
    use super::{Command, Header};

    // The kernel derives the call's number from the header's size only; `data_size` gives the size
    // of what follows.
    const fn number(call: u8) -> u64 {
        nix::request_code_readwrite!(0xfd, call, size_of::<Header>())
    }
    nix::ioctl_readwrite_bad!(create, number(3), Command);
    nix::ioctl_readwrite_bad!(remove, number(4), Command);
    nix::ioctl_readwrite_bad!(suspend, number(6), Command);
    nix::ioctl_readwrite_bad!(load, number(9), Command);
}

type Ioctl = unsafe fn(libc::c_int, *mut Command) -> nix::Result<libc::c_int>;

fn call(control: &File, command: &mut Command, ioctl: Ioctl) -> io::Result<()> {
    // SAFETY: the device mapper reads and writes no more than `data_size` bytes, which is the size
    // of the value that the pointer points to.
    unsafe { ioctl(control.as_raw_fd(), command) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_kernels() {
        assert_eq!(size_of::<Header>(), 312);
        assert_eq!(size_of::<Target>(), 40);
        assert_eq!(std::mem::offset_of!(Command, parameters), 352);
    }

    #[test]
    fn root_hash_that_could_be_another_parameter_is_refused() {
        let verity = |root: &str, data_blocks| Verity {
            root_hash: root.to_owned(),
            data_blocks,
            ..Default::default()
        };
        let good = "0a".repeat(32);
        let disk = Path::new("/dev/vdb");
        let expected = format!("1 /dev/vdb /dev/vdb 4096 4096 8 8 sha256 {good} -");
        assert_eq!(table(disk, &verity(&good, 8)).unwrap(), expected);
        for root in ["", "-", &good[1..], &format!("{} x", &good[2..])] {
            assert!(table(disk, &verity(root, 8)).is_err(), "{root}");
        }
        assert!(table(disk, &verity(&good, 0)).is_err());
        assert!(table(disk, &verity(&good, u64::MAX)).is_err());
    }

    #[test]
    fn minor_number_is_taken_from_both_its_places() {
        assert_eq!(minor(0xfd05), 5);
        assert_eq!(minor((1 << 20) | (253 << 8) | 2), 0x102);
    }
}
