//! The secret that only a VM's guest and the processes that connect to it know.

use std::{fmt, io};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::random;

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

/// The guest's answer to the secret. A connection that ends without it has not been admitted and is
/// tried again.
pub const ADMITTED: u8 = b'+';

/// The secret of one VM, with which each connection to the guest begins. It is never in a log, a
/// file or an argument.
#[derive(Clone)]
pub struct Secret([u8; SECRET_LENGTH]);

impl Secret {
    /// Makes a new secret from the kernel's randomness.
    pub fn random() -> io::Result<Secret> {
        random::bytes().map(Secret)
    }

    /// Begins a connection to the guest with the secret, and waits for the guest's answer.
    pub(crate) async fn tell(&self, mut stream: UnixStream) -> io::Result<UnixStream> {
        stream.write_all(&self.0).await?;
        match stream.read_u8().await? {
            ADMITTED => Ok(stream),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
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
