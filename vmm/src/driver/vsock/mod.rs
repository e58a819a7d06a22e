//! The control channel to the guest: connections to its vsock ports.
//!
//! If the host has `/dev/vhost-vsock`, the kernel carries them. Otherwise the daemon
//! `vhost-device-vsock` does, on a unix socket. There a connection starts with `CONNECT <port>\n`
//! and is answered by `OK <port>\n`.
//!
//! - this module chooses the [`Carrier`] and starts it;
//! - `dialer` makes the connections;
//! - `daemon` and `kernel` are the two carriers, `seccomp` the daemon's system calls;
//! - `address` draws the guest's address, and `ports` are the port numbers that host and guest
//!   agree on.

mod address;
mod daemon;
mod dialer;
mod kernel;
mod ports;
mod seccomp;

use std::{os::fd::OwnedFd, path::Path};

use tokio::sync::watch;

use super::process::Child;
use crate::{Result, VmSpec, BY_DAEMON, BY_KERNEL};
pub(crate) use dialer::{Dialer, Readiness};
pub use ports::{READY_PORT, SERVICE_PORT};

/// A VM's control channel before the VMM has it.
#[derive(Debug)]
pub(crate) struct Vsock {
    /// None if the kernel carries connections.
    pub daemon: Option<(Child, Readiness)>,
    pub device: VsockDevice,
    pub dialer: Dialer,
}

/// The part from which the VMM makes the guest's device.
#[derive(Debug)]
pub(crate) enum VsockDevice {
    /// A vhost-user connection.
    Daemon(OwnedFd),
    /// `/dev/vhost-vsock`, with the guest's address set.
    Kernel(OwnedFd, u32),
}

/// The carrier of connections.
#[derive(Debug)]
pub(crate) enum Carrier {
    /// The host's kernel, to the guest that has this address.
    Kernel(OwnedFd, u32),
    Daemon,
}

impl Carrier {
    /// The kernel if it has vsock, else a daemon.
    pub(crate) fn find() -> Carrier {
        match kernel::reserve() {
            Ok((device, cid)) => Carrier::Kernel(device, cid),
            Err(error) => {
                log::debug!(error = error.to_string().as_str(); "no vsock in the kernel, a daemon does it");
                Carrier::Daemon
            }
        }
    }

    /// The carrier as the guest is told it.
    pub(crate) fn name(&self) -> u8 {
        match self {
            Carrier::Kernel(..) => BY_KERNEL,
            Carrier::Daemon => BY_DAEMON,
        }
    }

    /// Starts a control channel. A daemon's is in a directory of its own below the VM's.
    pub(crate) async fn start(self, daemon: &Path, spec: &VmSpec) -> Result<Vsock> {
        match self {
            Carrier::Kernel(device, cid) => Ok(Vsock {
                daemon: None,
                device: VsockDevice::Kernel(device, cid),
                dialer: Dialer::Kernel(cid),
            }),
            Carrier::Daemon => {
                let started = daemon::start(daemon, spec).await?;
                let (ready, is_ready) = watch::channel(false);
                let readiness = Readiness {
                    listener: started.listener,
                    ready,
                };
                Ok(Vsock {
                    daemon: Some((started.child, readiness)),
                    device: VsockDevice::Daemon(started.vhost),
                    dialer: Dialer::Daemon(started.dir, is_ready),
                })
            }
        }
    }
}
