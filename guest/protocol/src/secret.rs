//! The secret of a VM, by which the agent knows the shim from everybody else on the host.
//!
//! The agent writes [`MARKER`] as a line on its console and reads the answer from the console's input: one byte, [`BY_DAEMON`] or
//! [`BY_KERNEL`], then the secret. The console is read by the VMM alone, and no container is there yet. From then on each connection
//! to a port of the agent begins with the secret, and one that does not is closed before anything else of it is read.

/// Bytes of a secret.
pub const LENGTH: usize = 32;

/// The line by which the agent asks. The host answers the first one only.
pub const MARKER: &str = "caisson: the agent waits for its secret";

/// The answer's first byte where a daemon of the VM's own carries connections, whose source ports mean nothing.
pub const BY_DAEMON: u8 = b'd';

/// The answer's first byte where the host's kernel carries connections: those to [`crate::port::AGENT`] come from a port below
/// [`RESERVED`], which is for privileged processes.
pub const BY_KERNEL: u8 = b'k';

/// The first port that any process of the host may connect from (Linux, `LAST_RESERVED_PORT` of net/vmw_vsock/af_vsock.c).
pub const RESERVED: u32 = 1024;
