//! The slots into which a VM's devices are plugged.

use crate::{Error, Result};

/// How many devices a VM can have at a time.
pub(crate) const PORTS: usize = 24;

/// Which ports are free.
#[derive(Debug)]
pub(crate) struct Ports {
    taken: [bool; PORTS],
}

impl Ports {
    pub(crate) fn new() -> Ports {
        Ports {
            taken: [false; PORTS],
        }
    }

    /// QEMU's arguments that make the ports.
    pub(crate) fn arguments() -> Vec<String> {
        (0..PORTS)
            .flat_map(|port| {
                let (device, function) = (8 + port / 8, port % 8);
                let id = Port(port).id();
                let options = format!(
                    "pcie-root-port,id={id},bus=pcie.0,chassis={},addr={device:x}.{function},multifunction=on",
                    port + 1,
                );
                ["-device".to_owned(), options]
            })
            .collect()
    }

    /// Takes a free port for the device `id`.
    pub(crate) fn take(&mut self, id: &str) -> Result<Port> {
        let free = self.taken.iter().position(|taken| !taken);
        let free = free.ok_or_else(|| Error::NoFreePort {
            id: id.to_owned(),
            ports: PORTS,
        })?;
        self.taken[free] = true;
        Ok(Port(free))
    }

    pub(crate) fn give_back(&mut self, port: Port) {
        self.taken[port.0] = false;
    }
}

/// A port that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Port(usize);

impl Port {
    /// The port's name as a bus.
    pub(crate) fn id(&self) -> String {
        format!("port{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_run_out_and_come_back() {
        let mut ports = Ports::new();
        let taken: Vec<Port> = (0..PORTS).map(|_| ports.take("x").unwrap()).collect();
        assert!(matches!(
            ports.take("late"),
            Err(Error::NoFreePort { id, .. }) if id == "late"
        ));
        ports.give_back(taken[3]);
        assert_eq!(ports.take("late").unwrap(), taken[3]);
    }
}
