//! Owns a pod's VM in a driver task, which everything else sends its requests to.
//!
//! No lock is held while a VM works: requests queue up at the task. Waiting for a connection or for
//! the VM's end does not hold up the queue. A stop does not queue either: it interrupts whatever
//! the VM is doing, which would never end if the guest does not run.

use std::{path::PathBuf, time::Duration};

use caisson_node::host::chain::chain;
use caisson_vmm::{Device, DeviceId, EndReason, Placement, Vm};
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
};

use crate::guest_text::shorten;

/// What can go wrong with a request to the VM.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The VM or one of its devices failed.
    #[error("the pod's VM")]
    Failed(#[from] caisson_vmm::Error),
    /// The VM ended during the request.
    #[error("the pod's VM has ended: {0}")]
    Ended(String),
}

type Result<T> = std::result::Result<T, VmError>;

/// The longest reason, in bytes. It includes the end of a guest's console.
const MAX_REASON: usize = 9 * 1024;

/// A handle to the driver task. Dropping the last one stops the VM.
#[derive(Clone)]
pub struct VmHandle {
    requests: mpsc::Sender<Request>,
    stops: mpsc::Sender<oneshot::Sender<caisson_vmm::Result<()>>>,
    ended: watch::Receiver<Option<EndReason>>,
}

enum Request {
    Attach(Device, oneshot::Sender<caisson_vmm::Result<DeviceId>>),
    Detach(DeviceId, oneshot::Sender<caisson_vmm::Result<()>>),
    Connect(u32, Duration, oneshot::Sender<caisson_vmm::Connecting>),
    OomScoreAdj(i32, oneshot::Sender<()>),
    Relocate(PathBuf, Placement, oneshot::Sender<caisson_vmm::Result<()>>),
    Pids(oneshot::Sender<Vec<(String, u32)>>),
    Devices(oneshot::Sender<Vec<(DeviceId, Option<String>)>>),
    OpenFiles(oneshot::Sender<u64>),
}

impl VmHandle {
    /// Hands the VM over to a task of its own.
    pub fn new(vm: Box<dyn Vm>) -> Self {
        let (requests, queue) = mpsc::channel(16);
        let (stops, stopping) = mpsc::channel(16);
        let (end, ended) = watch::channel(None);
        let waiting = vm.wait();
        tokio::spawn(async move {
            let reason = waiting.await;
            end.send_replace(Some(reason));
        });
        tokio::spawn(drive(vm, queue, stopping));
        Self {
            requests,
            stops,
            ended,
        }
    }

    /// Plugs a device into the VM: the VM's half of plugging it in.
    pub async fn attach(&self, device: Device) -> Result<DeviceId> {
        Ok(self.ask(|reply| Request::Attach(device, reply)).await??)
    }

    /// Unplugs a device from the VM: the VM's half of unplugging it. The guest must have let go of
    /// it.
    pub async fn detach(&self, id: DeviceId) -> Result<()> {
        Ok(self.ask(|reply| Request::Detach(id, reply)).await??)
    }

    /// Connects to a port of the guest, see [`Vm::connect`].
    pub async fn connect(&self, port: u32, within: Duration) -> Result<UnixStream> {
        let connecting = self
            .ask(|reply| Request::Connect(port, within, reply))
            .await?;
        let mut ended = self.clone();
        tokio::select! {
            connected = connecting => Ok(connected?),
            reason = ended.ended() => Err(VmError::Ended(describe(&reason))),
        }
    }

    /// Gives the VM's processes another score, see [`Vm::set_oom_score_adj`].
    pub async fn set_oom_score_adj(&self, score: i32) -> Result<()> {
        self.ask(|reply| Request::OomScoreAdj(score, reply)).await
    }

    /// Gives the VM another place on the host, see [`Vm::relocate`].
    pub async fn relocate(&self, dir: PathBuf, placement: Placement) -> Result<()> {
        let relocated = self.ask(|reply| Request::Relocate(dir, placement, reply));
        Ok(relocated.await??)
    }

    /// Returns the VM's processes on the host: role and pid.
    pub async fn pids(&self) -> Result<Vec<(String, u32)>> {
        self.ask(Request::Pids).await
    }

    /// Returns what is plugged in, each with its port, see [`Vm::devices`].
    pub async fn devices(&self) -> Result<Vec<(DeviceId, Option<String>)>> {
        self.ask(Request::Devices).await
    }

    /// Returns how many files a daemon of the VM has open, see [`Vm::open_files`].
    pub async fn open_files(&self) -> Result<u64> {
        self.ask(Request::OpenFiles).await
    }

    /// Ends the VM at once.
    pub async fn stop(&self) -> Result<()> {
        let (reply, stopped) = oneshot::channel();
        self.stops.send(reply).await.map_err(|_| gone())?;
        Ok(stopped.await.map_err(|_| gone())??)
    }

    /// Resolves when the VM has ended, with the reason.
    pub async fn ended(&mut self) -> EndReason {
        match self.ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(EndReason::Stopped),
            Err(_) => EndReason::Stopped,
        }
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(request(reply))
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

fn gone() -> VmError {
    VmError::Ended("it was stopped meanwhile".to_owned())
}

/// Describes a reason to users, in one line.
pub fn describe(reason: &EndReason) -> String {
    let text = match reason {
        EndReason::Stopped => "it was stopped".to_owned(),
        EndReason::GuestEnded(last) => format!("the guest ended: {last}"),
        EndReason::ProcessDied { role, how } => format!("{role} died: {how}"),
    };
    shorten(&text, MAX_REASON)
}

async fn drive(
    mut vm: Box<dyn Vm>,
    mut queue: mpsc::Receiver<Request>,
    mut stops: mpsc::Receiver<oneshot::Sender<caisson_vmm::Result<()>>>,
) {
    loop {
        tokio::select! {
            biased;
            // An answer that nobody waits for any more is dropped.
            Some(reply) = stops.recv() => drop(reply.send(vm.stop().await)),
            () = serve(vm.as_mut(), &mut queue) => break,
        }
    }
    if let Err(error) = vm.stop().await {
        log::warn!("stop the VM: {}", chain(&error));
    }
}

/// Serves requests until all handles have been dropped.
async fn serve(vm: &mut dyn Vm, queue: &mut mpsc::Receiver<Request>) {
    while let Some(request) = queue.recv().await {
        match request {
            Request::Attach(device, reply) => drop(reply.send(vm.attach(device).await)),
            Request::Detach(id, reply) => drop(reply.send(vm.detach(id).await)),
            Request::Connect(port, within, reply) => drop(reply.send(vm.connect(port, within))),
            Request::OomScoreAdj(score, reply) => {
                vm.set_oom_score_adj(score);
                let _ = reply.send(());
            }
            Request::Relocate(dir, placement, reply) => {
                drop(reply.send(vm.relocate(dir, placement).await));
            }
            Request::Pids(reply) => drop(reply.send(vm.pids())),
            Request::Devices(reply) => drop(reply.send(vm.devices())),
            Request::OpenFiles(reply) => drop(reply.send(vm.open_files())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use caisson_vmm::{Connecting, Ended};

    /// A VM that never finishes attaching a device.
    struct Stuck(watch::Sender<bool>);

    #[async_trait]
    impl Vm for Stuck {
        fn connect(&self, _: u32, _: Duration) -> Connecting {
            Box::pin(std::future::pending())
        }

        fn set_oom_score_adj(&mut self, _: i32) {}

        async fn attach(&mut self, _: Device) -> caisson_vmm::Result<DeviceId> {
            std::future::pending().await
        }

        async fn detach(&mut self, _: DeviceId) -> caisson_vmm::Result<()> {
            std::future::pending().await
        }

        fn wait(&self) -> Ended {
            let mut stopped = self.0.subscribe();
            Box::pin(async move {
                drop(stopped.wait_for(|stopped| *stopped).await);
                EndReason::Stopped
            })
        }

        async fn stop(&mut self) -> caisson_vmm::Result<()> {
            self.0.send_replace(true);
            Ok(())
        }

        fn pids(&self) -> Vec<(String, u32)> {
            Vec::new()
        }

        fn devices(&self) -> Vec<(DeviceId, Option<String>)> {
            Vec::new()
        }
    }

    #[tokio::test]
    async fn vm_that_is_stuck_in_a_request_is_stopped_at_once() {
        let vm = VmHandle::new(Box::new(Stuck(watch::Sender::new(false))));
        let asked = vm.clone();
        let attaching = tokio::spawn(async move { asked.attach(Device::FreePageReporting).await });
        tokio::task::yield_now().await;
        vm.stop().await.unwrap();
        assert!(matches!(attaching.await.unwrap(), Err(VmError::Ended(_))));
        assert_eq!(vm.clone().ended().await, EndReason::Stopped);
        assert!(vm.pids().await.unwrap().is_empty());
        vm.stop().await.unwrap();
    }
}
