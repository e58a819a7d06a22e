//! The vsock ports of the control channel.

/// A port of the host to which the guest may connect once it listens on its own port. Connections
/// that wait for the guest are then made at once.
pub const READY_PORT: u32 = 1023;

/// The port of the guest's service.
///
/// If the host's kernel carries connections, those to this port come from a reserved port, which an
/// unprivileged process of the host can't have. Those to other ports do not, since reserved ports
/// are few for all VMs of the host.
pub const SERVICE_PORT: u32 = 1024;
