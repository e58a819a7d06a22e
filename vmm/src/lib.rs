//! Boots VMs and plugs devices into them: plain data in, a running VM out.
//!
//! A [`Vmm`] boots a bare [`Vm`] (kernel, agent, control channel) from a [`VmSpec`]. Everything
//! else is plugged into it afterwards by [`Vm::attach`], one [`Device`] at a time: what belongs to
//! a pod, more cpus and more memory. Nothing here knows what a container or an agent is.
//!
//! ```text
//!   VmSpec --boot--> running <--resume-- paused <--restore-- a saved VM and its VmSpec
//!                    |  ^  `-----pause---^ |  ^
//!             attach |  |           attach |  |
//!             detach `--'             save `--'
//!
//!   running, paused --stop-----------------------------------------> ended: Stopped
//!   running, paused --the guest panics or powers off---------------> ended: GuestEnded
//!   running, paused --the VMM or a daemon dies---------------------> ended: ProcessDied
//! ```
//!
//! A transition that is not drawn is refused with [`Error::State`], and everything but a stop fails
//! with [`Error::Ended`] after the end. Pausing, saving and restoring are abilities that a
//! hypervisor need not have ([`Error::NotPossible`]):
//!
//! | | boot, attach, stop | pause, resume | save, restore |
//! |---|---|---|---|
//! | [`qemu`] | yes | yes, but see below | no, until it writes templates |
//! | [`fake`] | yes | yes | its size only |
//!
//! QEMU can lose the guest in a pause if the daemon carries the VM's vsock (no
//! `/dev/vhost-vsock`): the daemon (0.3.0) then carries no connection any more.
//!
//! Every host resource of a VM (processes, sockets, files) is in [`VmSpec::dir`] or is freed with
//! the value that holds it.
//!
//! # Layers
//!
//! A file uses those of its own layer, without circles, and of the layers below:
//!
//! ```text
//!   qemu/, fake                     the drivers: what only one hypervisor needs
//!   driver/                         what every driver needs: processes and their confinement, the
//!                                   end of a VM, the table of its devices, its daemons, logs
//!   vm                              the contract of drivers, held to by tests/contract.rs
//!   device, spec, secret, end, error   the data of that contract
//!   random                          random bytes of the host's kernel
//! ```
//!
//! Another hypervisor is another driver beside `qemu/`. It implements [`Vmm`] and [`Vm`], names its
//! own errors in [`Error::Driver`] and is added to the drivers of `tests/contract.rs`.

mod device;
mod driver;
mod end;
mod error;
pub mod fake;
pub mod qemu;
mod random;
mod secret;
mod spec;
mod vm;

pub use device::{Device, DeviceId, Exclusive};
pub use driver::{
    confined,
    log_lines::{one_line, plain},
    user_namespace,
    virtiofsd::max_open_files,
    vsock::{READY_PORT, SERVICE_PORT},
};
pub use end::EndReason;
pub use error::{Error, Result};
pub use secret::{Secret, ADMITTED, BY_DAEMON, BY_KERNEL, SECRET_LENGTH, SECRET_MARKER};
pub use spec::{Accelerator, Credentials, Guest, Placement, Template, Translations, VmSpec};
pub use vm::{Connecting, Ended, Vm, Vmm};
