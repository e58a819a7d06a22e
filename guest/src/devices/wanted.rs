//! Hears what the kernel wants and only the host has: the disk with all modules. Most pods never
//! need it, and each device that is plugged in costs their start time and their host memory.

use std::{fs, path::Path};

use tokio::net::UnixDatagram;

use crate::{Error, Result};

/// The wishes of this machine's kernel.
pub struct Wanted(UnixDatagram);

impl Wanted {
    /// Listens at a path, on the event loop that this is called from.
    pub fn listen(path: &Path) -> Result<Self> {
        // A test may start an agent where one was killed.
        let _ = fs::remove_file(path);
        let socket = UnixDatagram::bind(path).map_err(Error::file("listen on", path))?;
        Ok(Self(socket))
    }

    /// Waits until something asks for a module that only the disk can have, while there is no disk.
    pub async fn modules(&self) {
        if let Err(error) = self.0.recv(&mut []).await {
            log::warn!(error:%; "modules that the kernel wants are not found any more");
            std::future::pending().await
        }
    }
}
