//! The secret that only a VM's guest and the processes that connect to it know.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
};

/// The length of a secret in bytes.
pub const SECRET_LENGTH: usize = 32;

/// The line on the console by which the guest asks for the secret. The secret is sent once, through
/// the console's input.
pub const SECRET_MARKER: &str = "caisson: the agent waits for its secret";

/// Sent to the guest before the secret if a daemon of the VM's own carries connections.
pub const BY_DAEMON: u8 = b'd';

/// Sent to the guest before the secret if the host's kernel carries connections; those to
/// [`crate::SERVICE_PORT`] then come from a reserved port.
pub const BY_KERNEL: u8 = b'k';

/// The secret of one VM, with which each connection to the guest begins. It is never in a log, a
/// file or an argument.
#[derive(Clone)]
pub struct Secret([u8; SECRET_LENGTH]);

impl Secret {
    /// Makes a new secret from the kernel's randomness.
    pub fn random() -> io::Result<Secret> {
        let mut bytes = [0; SECRET_LENGTH];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Secret(bytes))
    }

    /// The bytes with which a connection begins.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The answer to [`SECRET_MARKER`].
    pub(crate) fn answer(&self, carrier: u8) -> Vec<u8> {
        [&[carrier], self.0.as_slice()].concat()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_is_another_each_time_and_not_shown() {
        let secret = Secret::random().unwrap();
        assert_ne!(secret.0, Secret::random().unwrap().0);
        assert_eq!(format!("{secret:?}"), "Secret");
    }
}
