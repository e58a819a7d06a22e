//! Translates a further process of a container (an exec): adds what the container's annotations
//! give to it. Containerd's description of the process does not have that, since containerd knows
//! the container as it was before [`crate::translate`].

use oci_spec::runtime::Process;

use crate::{
    guest_devices::{self, GuestDevice},
    secrets::{self, Descriptor},
    Error, Result,
};

/// What every process of a container gets because of the container's annotations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// Devices of the guest.
    pub devices: Vec<GuestDevice>,
    /// Files that the process has open.
    pub descriptors: Vec<Descriptor>,
}

impl Grants {
    /// Translates the OCI `process` object of an exec, in JSON.
    pub fn translate(&self, json: Vec<u8>) -> Result<Vec<u8>> {
        if *self == Self::default() {
            return Ok(json);
        }
        let mut process: Process =
            serde_json::from_slice(&json).map_err(|error| Error::Exec(error.into()))?;
        guest_devices::grant_exec(&mut process, &self.devices);
        secrets::set_environment(&mut process, &self.descriptors);
        serde_json::to_vec(&process).map_err(|error| Error::Exec(error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_without_grants_is_left_alone() {
        let json = b"not even JSON".to_vec();
        assert_eq!(Grants::default().translate(json.clone()).unwrap(), json);
    }

    #[test]
    fn exec_that_is_no_process_is_refused() {
        let grants = Grants {
            devices: vec![GuestDevice::Fuse],
            ..Grants::default()
        };
        grants.translate(b"[]".to_vec()).unwrap_err();
    }
}
