//! The one owner of a pod's VM: a driver task that everything else talks to.
//!
//! So no lock is held while a VM works: requests queue up at the task, and connecting or waiting never queues at all.

use std::time::Duration;

use caisson_vmm::{Device, DeviceId, EndReason, Vm};
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
};

use crate::error::{Error, Result};

/// A handle to the driver task; dropping the last one stops the VM.
#[derive(Clone)]
pub struct VmHandle {
    requests: mpsc::Sender<Request>,
    ended: watch::Receiver<Option<EndReason>>,
}

enum Request {
    Attach(Device, oneshot::Sender<caisson_vmm::Result<DeviceId>>),
    Detach(DeviceId, oneshot::Sender<caisson_vmm::Result<()>>),
    Connect(u32, Duration, oneshot::Sender<caisson_vmm::Connecting>),
    OomScoreAdj(i32, oneshot::Sender<()>),
    Pids(oneshot::Sender<Vec<(String, u32)>>),
    Stop(oneshot::Sender<caisson_vmm::Result<()>>),
}

impl VmHandle {
    /// Hands the VM over to a task of its own.
    pub fn new(vm: Box<dyn Vm>) -> Self {
        let (requests, queue) = mpsc::channel(16);
        let (end, ended) = watch::channel(None);
        let waiting = vm.wait();
        tokio::spawn(async move {
            let reason = waiting.await;
            end.send_replace(Some(reason));
        });
        tokio::spawn(drive(vm, queue));
        Self { requests, ended }
    }

    /// Plugs a device in, the VM's half.
    pub async fn attach(&self, device: Device) -> Result<DeviceId> {
        Ok(self.ask(|reply| Request::Attach(device, reply)).await??)
    }

    /// Unplugs a device, the VM's half. The guest must have let go of it.
    pub async fn detach(&self, id: DeviceId) -> Result<()> {
        Ok(self.ask(|reply| Request::Detach(id, reply)).await??)
    }

    /// A connection to a port of the guest, see [`Vm::connect`].
    pub async fn connect(&self, port: u32, within: Duration) -> Result<UnixStream> {
        let connecting = self
            .ask(|reply| Request::Connect(port, within, reply))
            .await?;
        let mut ended = self.clone();
        tokio::select! {
            connected = connecting => Ok(connected?),
            reason = ended.ended() => Err(Error::VmEnded(describe(&reason))),
        }
    }

    /// Gives the VM's processes another score, see [`Vm::set_oom_score_adj`].
    pub async fn set_oom_score_adj(&self, score: i32) -> Result<()> {
        self.ask(|reply| Request::OomScoreAdj(score, reply)).await
    }

    /// The VM's host processes, by role.
    pub async fn pids(&self) -> Result<Vec<(String, u32)>> {
        self.ask(Request::Pids).await
    }

    /// Ends the VM at once.
    pub async fn stop(&self) -> Result<()> {
        Ok(self.ask(Request::Stop).await??)
    }

    /// Resolves when the VM has ended, with why.
    pub async fn ended(&mut self) -> EndReason {
        match self.ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(EndReason::Stopped),
            Err(_) => EndReason::Stopped,
        }
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::VmEnded("its driver is gone".to_owned());
        self.requests
            .send(request(reply))
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

/// A reason as users read it.
pub fn describe(reason: &EndReason) -> String {
    match reason {
        EndReason::Stopped => "it was stopped".to_owned(),
        EndReason::GuestEnded(last) => format!("the guest ended: {last}"),
        EndReason::ProcessDied { role, how } => format!("{role} died: {how}"),
    }
}

async fn drive(mut vm: Box<dyn Vm>, mut queue: mpsc::Receiver<Request>) {
    // An answer that nobody waits for any more is dropped.
    while let Some(request) = queue.recv().await {
        match request {
            Request::Attach(device, reply) => drop(reply.send(vm.attach(device).await)),
            Request::Detach(id, reply) => drop(reply.send(vm.detach(id).await)),
            Request::Connect(port, within, reply) => drop(reply.send(vm.connect(port, within))),
            Request::OomScoreAdj(score, reply) => {
                vm.set_oom_score_adj(score);
                let _ = reply.send(());
            }
            Request::Pids(reply) => drop(reply.send(vm.pids())),
            Request::Stop(reply) => drop(reply.send(vm.stop().await)),
        }
    }
    if let Err(error) = vm.stop().await {
        log::warn!("stop the VM: {}", crate::error::chain(&error));
    }
}
