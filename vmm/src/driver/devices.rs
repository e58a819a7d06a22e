//! The table of a VM's attached devices, with the daemons behind them.

use std::collections::HashMap;

use tokio::task::JoinHandle;

use super::{end::End, process::Child};
use crate::{DeviceId, Error, Result};

/// The attached devices by id. `P` is what the driver needs to unplug one.
#[derive(Debug)]
pub(crate) struct Devices<P>(HashMap<String, Attached<P>>);

/// An attached device.
#[derive(Debug)]
pub(crate) struct Attached<P> {
    pub plug: P,
    daemon: Option<Daemon>,
}

/// The process behind a device. If it ends before the device is unplugged, the VM ends too.
#[derive(Debug)]
struct Daemon {
    child: Child,
    watch: JoinHandle<()>,
}

impl<P> Devices<P> {
    pub(crate) fn new() -> Devices<P> {
        Devices(HashMap::new())
    }

    /// Refuses an id that is taken, and names that a VMM or the guest would misinterpret.
    pub(crate) fn check(&self, id: &str, name: &str, longest: usize) -> Result<()> {
        let rule = if name.is_empty() || name.len() > longest {
            "its name is empty or too long"
        } else if !name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            "its name has other characters than letters, digits, `-`, `_` and `.`"
        } else if self.has(id) {
            "the VM has it already"
        } else {
            return Ok(());
        };
        Err(Error::InvalidDevice {
            id: id.to_owned(),
            rule,
        })
    }

    pub(crate) fn has(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }

    /// Adds a device that is plugged in. From now on the end of its daemon is that of the VM.
    pub(crate) fn add(&mut self, id: &str, plug: P, daemon: Option<Child>, end: &End) -> DeviceId {
        let daemon = daemon.map(|child| Daemon {
            watch: end.comes_with(&child),
            child,
        });
        self.0.insert(id.to_owned(), Attached { plug, daemon });
        DeviceId(id.to_owned())
    }

    /// Takes a device out of the table to unplug it. Its daemon, which ends when the VMM closes the
    /// connection, may end from now on.
    pub(crate) fn take(&mut self, id: &DeviceId) -> Result<Attached<P>> {
        let device = self.0.remove(&id.0);
        let device = device.ok_or_else(|| Error::UnknownDevice(id.0.clone()))?;
        if let Some(daemon) = &device.daemon {
            daemon.watch.abort();
        }
        Ok(device)
    }

    /// Puts a device back that could not be unplugged.
    pub(crate) fn put_back(&mut self, id: DeviceId, mut device: Attached<P>, end: &End) {
        if let Some(daemon) = &mut device.daemon {
            daemon.watch = end.comes_with(&daemon.child);
        }
        self.0.insert(id.0, device);
    }

    /// Forgets all devices, with the VM.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The plugs of the devices, by id.
    pub(crate) fn plugs(&self) -> impl Iterator<Item = (&str, &P)> {
        let devices = self.0.iter();
        devices.map(|(id, device)| (id.as_str(), &device.plug))
    }

    /// The daemons behind the devices.
    pub(crate) fn daemons(&self) -> impl Iterator<Item = &Child> {
        let daemons = self.0.values().filter_map(|device| device.daemon.as_ref());
        daemons.map(|daemon| &daemon.child)
    }
}

impl<P> Attached<P> {
    /// Ends the daemon of a device that is unplugged.
    pub(crate) async fn end_daemon(self) -> Result<()> {
        match self.daemon {
            Some(daemon) => daemon.child.stop().await,
            None => Ok(()),
        }
    }
}
