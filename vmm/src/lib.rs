//! Boots VMs and plugs devices into them: plain data in, a running VM out.
//!
//! A [`Vmm`] boots a bare [`Vm`] (kernel, agent, control channel) from a [`VmSpec`]. Everything
//! that belongs to a pod is plugged into it afterwards by [`Vm::attach`], one [`Device`] at a time.
//! Nothing here knows what a container or an agent is.
//!
//! ```text
//!   VmSpec --boot--> running --stop--> ended
//!                      |  ^ \
//!               attach |  |  `- the VMM or a daemon dies, the guest panics or powers off --> ended
//!               detach `--'
//! ```
//!
//! Every host resource of a VM (processes, sockets, files) is in [`VmSpec::dir`] or is freed with
//! the value that holds it.

mod device;
mod driver;
mod end;
mod error;
pub mod fake;
pub mod qemu;
mod secret;
mod spec;
mod vm;

pub use device::{Device, DeviceId};
pub use driver::{
    confined,
    log_lines::{one_line, plain},
    user_namespace,
    virtiofsd::max_inodes,
    vsock::{READY_PORT, SERVICE_PORT},
};
pub use end::EndReason;
pub use error::{Error, Result};
pub use secret::{Secret, BY_DAEMON, BY_KERNEL, SECRET_LENGTH, SECRET_MARKER};
pub use spec::{Accelerator, Credentials, Guest, Placement, VmSpec};
pub use vm::{Connecting, Ended, Vm, Vmm};
