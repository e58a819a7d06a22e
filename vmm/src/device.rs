//! The devices that can be plugged into a VM.

use std::{os::fd::OwnedFd, path::PathBuf};

/// A device to be plugged in by [`crate::Vm::attach`].
#[derive(Debug)]
pub enum Device {
    /// A directory of the host as a virtiofs device. The device has a daemon of its own, which sees
    /// only that directory (and what is mounted below it, also later).
    SharedDir {
        /// The name by which the guest finds it: at most 36 bytes (virtio spec 5.11.4).
        tag: String,
        /// An existing directory.
        path: PathBuf,
        /// Enforced by the daemon.
        read_only: bool,
        /// What nobody else changes.
        exclusive: Exclusive,
        /// The user namespace in which the daemon is root. None means one in which every id is the
        /// host's own.
        user_namespace: Option<OwnedFd>,
    },
    /// A file or block device as a virtio-blk disk. This process opens it; the VMM gets the
    /// descriptor.
    Disk {
        /// The name by which the guest finds it: at most 20 bytes (virtio spec 5.2.6.2), unique in
        /// the VM.
        serial: String,
        /// A raw image.
        path: PathBuf,
        /// Enforced: the descriptor is opened read-only.
        read_only: bool,
    },
    /// A network card on a tap that the caller made.
    Network {
        /// The tap's queue, opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
        tap: OwnedFd,
        /// `/dev/vhost-net`, opened for this card, with which the host's kernel moves the packets.
        /// Not used under emulation.
        vhost: Option<OwnedFd>,
        /// The card's address.
        mac: [u8; 6],
        /// In bytes.
        mtu: u16,
    },
    /// A balloon that is never inflated. Through it the guest reports its free pages, and the VMM
    /// gives them back to the host (virtio spec 5.5.6.7, VIRTIO_BALLOON_F_PAGE_REPORTING).
    FreePageReporting,
    /// More cpus: the least number that the VM is to have. It keeps those that it has; the guest
    /// takes offline what it is not to use.
    Cpus(u32),
    /// More (or less) memory: the total for the VM, in bytes. Rounded up to what the VMM can plug.
    Memory(u64),
}

/// What only the guest changes of a directory that it shares with the host.
///
/// The guest keeps for good what it knows of that. Of anything else, it asks again after a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exclusive {
    /// The host changes anything.
    Nothing,
    /// The mounts in it whose names begin with this.
    Mounts(&'static str),
    /// All of it.
    Everything,
}

/// Names a device that was plugged in, for [`crate::Vm::detach`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeviceId(pub String);
