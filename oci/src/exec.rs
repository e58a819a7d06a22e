//! Plans a further process of a container (an exec). It gets what the container's annotations give
//! to every process. Containerd's description of the process does not have that, since containerd
//! knows the container as it was before [`crate::plan()`].

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxCapabilities, Process};

use crate::{
    claim::{self, Claimed},
    guest_devices::{self, GuestDevice},
    runtime,
    secrets::{self, Descriptor},
    Error, Result,
};

/// What every process of a container gets because of the container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// The capabilities of the container's init, for a process that names none of its own.
    pub capabilities: Option<LinuxCapabilities>,
    /// Devices of the guest.
    pub devices: Vec<GuestDevice>,
    /// Files that the process has open.
    pub descriptors: Vec<Descriptor>,
    /// The variables that the pod was claimed with.
    pub env: BTreeMap<String, String>,
}

/// A further process of a container, as the guest runs it.
#[derive(Debug)]
pub struct Exec {
    pub process: Process,
    /// Files that the process has open.
    pub descriptors: Vec<Descriptor>,
}

impl Exec {
    /// Whether the process has a terminal.
    pub fn terminal(&self) -> bool {
        self.process.terminal() == Some(true)
    }
}

impl Grants {
    /// Adds what the pod of an existing container was claimed with.
    ///
    /// # Errors
    /// A process would have more descriptors than it can have.
    pub fn add(&mut self, claimed: &Claimed) -> Result<()> {
        let descriptors = self.descriptors.len() + claimed.descriptors.len();
        if descriptors > secrets::MAX {
            return Err(Error::Claim {
                what: "the secrets by descriptor".to_owned(),
                reason: format!(
                    "a process would have {descriptors}, at most {} are possible",
                    secrets::MAX
                ),
            });
        }
        self.descriptors.extend(claimed.descriptors.iter().cloned());
        self.env.clone_from(&claimed.env);
        Ok(())
    }

    /// Plans an exec of which containerd gave the OCI `process` object in JSON.
    pub fn plan(&self, json: &[u8]) -> Result<Exec> {
        let mut process: Process =
            serde_json::from_slice(json).map_err(|error| Error::Exec(error.into()))?;
        if process.capabilities().is_none() {
            process.set_capabilities(self.capabilities.clone());
        } else {
            guest_devices::grant_exec(&mut process, &self.devices);
        }
        runtime::adapt_process(&mut process)?;
        claim::set_environment(&mut process, &self.env);
        secrets::set_environment(&mut process, &self.descriptors);
        Ok(Exec {
            process,
            descriptors: self.descriptors.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{Capabilities, Capability};
    use serde_json::json;

    fn planned(grants: &Grants, capabilities: serde_json::Value) -> Process {
        let user = json!({"uid": 0, "gid": 0});
        let json =
            json!({"cwd": "/", "args": ["true"], "user": user, "capabilities": capabilities});
        grants.plan(json.to_string().as_bytes()).unwrap().process
    }

    fn bounding(process: &Process) -> Capabilities {
        let sets = process.capabilities().as_ref().unwrap();
        sets.bounding().clone().unwrap()
    }

    #[test]
    fn exec_without_capabilities_has_the_containers() {
        let mut capabilities = LinuxCapabilities::default();
        capabilities.set_bounding(Some([Capability::Chown].into()));
        let grants = Grants {
            capabilities: Some(capabilities),
            ..Grants::default()
        };
        let process = planned(&grants, json!(null));
        assert_eq!(bounding(&process), [Capability::Chown].into());
        let process = planned(&grants, json!({"bounding": ["CAP_KILL"]}));
        assert_eq!(bounding(&process), [Capability::Kill].into());
    }

    #[test]
    fn exec_has_the_capability_of_a_granted_device() {
        let grants = Grants {
            devices: vec![GuestDevice::Tun],
            ..Grants::default()
        };
        let process = planned(&grants, json!({"bounding": []}));
        assert_eq!(bounding(&process), [Capability::NetAdmin].into());
    }

    #[test]
    fn exec_that_is_no_process_is_refused() {
        for text in ["not even JSON", "[]"] {
            Grants::default().plan(text.as_bytes()).unwrap_err();
        }
    }
}
