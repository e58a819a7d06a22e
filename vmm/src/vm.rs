//! The contract of hypervisors: [`Vmm`] boots a [`Vm`].
//!
//! `tests/contract.rs` holds every driver to it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use tokio::net::UnixStream;

use crate::{Device, DeviceId, EndReason, Error, Placement, Result, VmSpec};

/// A kind of hypervisor: QEMU, or the fake for tests.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// Starts a VM with these devices and returns once it runs. The guest is then still booting,
    /// or, with [`VmSpec::template`], about to read its secret.
    ///
    /// If this is cancelled or fails, no process is left, and no file outside `spec.dir`.
    async fn boot(&self, spec: VmSpec, devices: Vec<Device>) -> Result<Box<dyn Vm>>;

    /// Boots a VM until its guest asks for the secret, and writes it to the file `to`, for
    /// [`VmSpec::template`]. The file must exist, empty. `spec.secret` is not used.
    ///
    /// An optional ability: [`Error::NotPossible`] by default. If this is cancelled or fails, no
    /// process is left, and what is in the file is of no use.
    async fn make_template(&self, spec: VmSpec, to: &Path) -> Result<()> {
        let _ = (spec, to);
        Err(Error::NotPossible {
            what: "making templates of VMs",
        })
    }

    /// Starts a VM from what [`Vm::save`] wrote to `from`, and returns it paused. The files in
    /// `from` are only read, so any number of VMs can start from them. `spec` must have the saved
    /// VM's cpus, memory and guest.
    ///
    /// The guest goes on where it was saved, and knows the secret that it was booted with. So
    /// `spec.secret` must be that one, until the guest is given another.
    ///
    /// An optional ability: [`Error::NotPossible`] by default. If this is cancelled or fails, no
    /// process is left, and no file outside `spec.dir`.
    async fn restore(&self, spec: VmSpec, from: &Path) -> Result<Box<dyn Vm>> {
        let _ = (spec, from);
        Err(Error::NotPossible {
            what: "restoring a VM",
        })
    }
}

/// A VM that runs or is paused. Dropping it kills its processes; [`Vm::stop`] does so and waits for
/// it.
///
/// After the VM's end, whatever can fail fails with [`Error::Ended`], except [`Vm::stop`].
#[async_trait]
pub trait Vm: Send {
    /// Connects to a vsock port in the guest and sends [`VmSpec::secret`]. Retries until the guest
    /// listens or `within` is over; a paused VM is not tried before it is resumed.
    ///
    /// Returns a future that does not borrow the VM, so that a slow guest blocks nobody else.
    fn connect(&self, port: u32, within: Duration) -> Connecting;

    /// Plugs in a device. The guest may need some time to see it; its agent waits for that.
    ///
    /// A paused VM can be given devices too, which its guest sees when it runs again. Only
    /// [`Device::Memory`] needs a guest that runs, since the guest takes it itself.
    async fn attach(&mut self, device: Device) -> Result<DeviceId>;

    /// Unplugs a device and ends its daemon. The guest must run and have let go of it.
    ///
    /// Memory that is unplugged is what was added to that at boot. Cpus are never unplugged: for
    /// them, as for an id that is not known, this is [`Error::UnknownDevice`].
    async fn detach(&mut self, id: DeviceId) -> Result<()>;

    /// Stops the guest's cpus, until [`Vm::resume`]. Memory, devices and connections stay as they
    /// are. [`Error::State`] if the VM is paused already.
    ///
    /// Whoever has a connection must be quiet: from a moment before the pause until
    /// [`Vm::resume`] has returned, nothing may be sent on it, and it may not be closed. Where a
    /// daemon carries connections (`vsock` in [`Vm::pids`]), QEMU takes the guest's queues away
    /// from it while the guest does not run. If bytes or an end reach the daemon then, it carries
    /// no connection ever after (vhost-device-vsock 0.3.0).
    ///
    /// An optional ability, with [`Vm::resume`]: [`Error::NotPossible`] by default.
    async fn pause(&mut self) -> Result<()> {
        Err(Error::NotPossible {
            what: "pausing a VM",
        })
    }

    /// Lets a paused guest go on. [`Error::State`] if it runs.
    async fn resume(&mut self) -> Result<()> {
        Err(Error::NotPossible {
            what: "resuming a VM",
        })
    }

    /// Writes the VM's memory and the state of its cpus and devices to the existing, empty
    /// directory `dir`, for [`Vmm::restore`]. The VM stays paused, and may be resumed or stopped.
    ///
    /// What is on the host's side of a device can't be saved. So a VM with shared directories,
    /// disks or network cards is refused ([`Error::InvalidDevice`]), and one that runs too
    /// ([`Error::State`]). After a failure, `dir` may have files that are of no use.
    ///
    /// An optional ability: [`Error::NotPossible`] by default, as for QEMU so far.
    async fn save(&mut self, dir: &Path) -> Result<()> {
        let _ = dir;
        Err(Error::NotPossible {
            what: "saving a VM",
        })
    }

    /// What is plugged in, each with the hot-plug port that it is in, if it has one.
    fn devices(&self) -> Vec<(DeviceId, Option<String>)>;

    /// Resolves with the reason when the VM has ended. Any number of callers may wait, also after
    /// the end, and all get the same reason.
    fn wait(&self) -> Ended;

    /// Ends the VM and its daemons at once, paused or not, and waits until they are gone.
    /// Idempotent.
    async fn stop(&mut self) -> Result<()>;

    /// Gives the VM's present and future processes another [`crate::Placement::oom_score_adj`].
    fn set_oom_score_adj(&mut self, score: i32);

    /// Gives the VM another place on the host: its present and future processes get the placement,
    /// and its directory, which the caller has renamed, is `dir` from now on.
    ///
    /// What the processes have used before stays charged to where they were. After a failure, some
    /// of them may have moved.
    ///
    /// An optional ability: [`Error::NotPossible`] by default.
    async fn relocate(&mut self, dir: PathBuf, placement: Placement) -> Result<()> {
        let _ = (dir, placement);
        Err(Error::NotPossible {
            what: "moving a VM to another place on the host",
        })
    }

    /// The host's processes of this VM by role, the VMM first. The VMM's role is the driver's own
    /// name (`qemu`); daemons are `vsock` and `virtiofsd-<tag>`.
    fn pids(&self) -> Vec<(String, u32)>;

    /// Returns how many files the daemon of a shared directory has open on the host. If there are
    /// several, the one with the most counts. A daemon has each file open that the guest remembers,
    /// and at most [`crate::max_open_files`].
    ///
    /// 0 by default, as for a VM whose directories need no daemon.
    fn open_files(&self) -> u64 {
        0
    }
}

/// A connection being made, see [`Vm::connect`].
pub type Connecting =
    std::pin::Pin<Box<dyn std::future::Future<Output = Result<UnixStream>> + Send>>;

/// Resolves with the reason when a VM has ended, see [`Vm::wait`].
pub type Ended = std::pin::Pin<Box<dyn std::future::Future<Output = EndReason> + Send>>;
