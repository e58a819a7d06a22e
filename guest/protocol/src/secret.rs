//! The secret of a VM, by which the agent tells the shim from everything else on the host.
//!
//! The agent writes [`MARKER`] as a line on its console and reads the answer from the console's
//! input: one byte, [`BY_DAEMON`] or [`BY_KERNEL`], then the secret. Only the VMM reads the
//! console, and no container exists yet. From then on, each connection to a port of the agent
//! begins with the secret, which the agent answers with [`ADMITTED`]. A connection that does not is
//! closed before anything else is read from it.

/// The length of a secret in bytes.
pub const LENGTH: usize = 32;

/// The byte with which the agent answers the secret. A connection that ends without it was closed
/// for another one's sake, and the shim connects again.
pub const ADMITTED: u8 = b'+';

/// The line with which the agent asks. The host answers only the first one.
pub const MARKER: &str = "caisson: the agent waits for its secret";

/// The first byte of the answer if a daemon of the VM carries connections. Their source ports then
/// mean nothing.
pub const BY_DAEMON: u8 = b'd';

/// The first byte of the answer if the host's kernel carries connections. Those to
/// [`crate::port::AGENT`] then come from a port below [`RESERVED`], which only privileged processes
/// can use.
pub const BY_KERNEL: u8 = b'k';

/// The first port from which any process of the host may connect (Linux, `LAST_RESERVED_PORT` of
/// net/vmw_vsock/af_vsock.c).
pub const RESERVED: u32 = 1024;
