//! The contract of hypervisors: [`Vmm`] boots a [`Vm`].

use std::time::Duration;

use async_trait::async_trait;
use tokio::net::UnixStream;

use crate::{Device, DeviceId, EndReason, Result, VmSpec};

/// A kind of hypervisor: QEMU, or the fake for tests.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// Starts a bare VM and returns once it runs. The guest is then still booting.
    ///
    /// If this is cancelled or fails, no process is left, and no file outside `spec.dir`.
    async fn boot(&self, spec: VmSpec) -> Result<Box<dyn Vm>>;
}

/// A running VM. Dropping it kills its processes; [`Vm::stop`] does so and waits for it.
#[async_trait]
pub trait Vm: Send {
    /// Connects to a vsock port in the guest and sends [`VmSpec::secret`]. Retries until the guest
    /// listens or `within` is over.
    ///
    /// Returns a future that does not borrow the VM, so that a slow guest blocks nobody else.
    fn connect(&self, port: u32, within: Duration) -> Connecting;

    /// Plugs in a device. The guest may need some time to see it; its agent waits for that.
    async fn attach(&mut self, device: Device) -> Result<DeviceId>;

    /// Unplugs a device and ends its daemon. The guest must have let go of it.
    async fn detach(&mut self, id: DeviceId) -> Result<()>;

    /// Resolves with the reason when the VM has ended. Any number of callers may wait, also after
    /// the end.
    fn wait(&self) -> Ended;

    /// Ends the VM and its daemons at once and waits until they are gone. Idempotent.
    async fn stop(&mut self) -> Result<()>;

    /// Gives the VM's present and future processes another [`Placement::oom_score_adj`].
    fn set_oom_score_adj(&mut self, score: i32);

    /// The host's processes of this VM by role, the VMM first: `qemu`, `vsock`, `virtiofsd-<tag>`.
    fn pids(&self) -> Vec<(String, u32)>;

    /// The ability to write this VM to a template, if the hypervisor supports that.
    fn snapshot(&mut self) -> Option<&mut dyn Snapshot> {
        None
    }
}

/// Writes a bare VM's state, so that clones can start from it. (The QEMU driver will implement it
/// with templates.)
#[async_trait]
pub trait Snapshot: Send {
    /// Stops the VM and saves its memory and device state in `dir`.
    async fn save(&mut self, dir: &std::path::Path) -> Result<()>;
}

/// A connection being made, see [`Vm::connect`].
pub type Connecting =
    std::pin::Pin<Box<dyn std::future::Future<Output = Result<UnixStream>> + Send>>;

/// Resolves with the reason when a VM has ended, see [`Vm::wait`].
pub type Ended = std::pin::Pin<Box<dyn std::future::Future<Output = EndReason> + Send>>;
