//! The ttrpc service: one short method for each request. The work is done in other modules.

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use caisson_protocol::{
    agent::{
        self, attach_request, detach_request, event, ConfigureResponse, Empty, Event,
        ListProcessesResponse, ProcessResponse, StatsResponse, WaitResponse,
    },
    agent_ttrpc,
    path::{DISKS, SHARES},
    port,
};
use tokio::signal::unix::{signal, SignalKind};
use ttrpc::r#async::{Server, TtrpcContext};

#[cfg(feature = "hostile")]
use crate::hostile;
use crate::{
    clock::Clock,
    containers::{files, oom::Oom, room::Room, streams::Streams, Containers},
    devices::{disk, network, share, size, target, wanted::Wanted},
    door::Door,
    forward, identity,
    kernel::{modules, mounts},
    launch,
    listen::{say_ready, serve_each, Port},
    machine::Machine,
    reaper::Reaper,
    secret::Secret,
    Error, Result,
};

/// Serves the host, which knows the secret, on this machine for ever.
///
/// `secret` asks for it, and blocks. Everything that takes time comes before it, since a machine
/// that waits there can be saved and started as another one, which is told another secret.
pub fn serve(machine: Machine, secret: impl FnOnce() -> Result<Secret>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::system("start the event loop"))?;
    runtime.block_on(async {
        let reaper = Reaper::start()?;
        let streams = Streams::new();
        let oom = Oom::start()?;
        let containers = Arc::new(Containers::new(
            machine.clone(),
            reaper.clone(),
            streams.clone(),
            oom.clone(),
        ));
        let service = Arc::new(Service {
            machine: machine.clone(),
            reaper: reaper.clone(),
            oom,
            wanted: Wanted::listen(&machine.wishes())?,
            room: Room::watch()?,
            containers: containers.clone(),
            clock: Clock::default(),
        });
        let control = Port::open(&machine, port::AGENT)?;
        let processes = Port::open(&machine, port::STREAMS)?;
        let servers = Port::open(&machine, port::FORWARD)?;
        launch::prepare(&reaper)?;
        let door = Door::new(secret()?);
        let control = control.behind(&door);
        let processes = processes.behind(&door);
        let servers = servers.behind(&door);
        #[cfg(feature = "hostile")]
        let (control, processes) = (hostile::service(control), hostile::processes(processes));
        let mut server = Server::new()
            .add_listener(control)
            .register_service(agent_ttrpc::create_agent(service));
        server.start().await.map_err(|error| {
            Error::system("start the service")(std::io::Error::other(error.to_string()))
        })?;
        log::info!(version = env!("CARGO_PKG_VERSION"); "serving");
        let streams = move |connection| {
            let streams = streams.clone();
            async move { streams.serve(connection).await }
        };
        let accepting = async {
            tokio::join!(
                serve_each(processes, streams),
                serve_each(servers, forward::serve)
            )
        };
        match machine {
            Machine::Guest => {
                tokio::spawn(say_ready());
                accepting.await;
            }
            Machine::Fake { .. } => {
                let mut asked =
                    signal(SignalKind::terminate()).map_err(Error::system("listen for SIGTERM"))?;
                tokio::select! {
                    _ = accepting => {}
                    _ = asked.recv() => containers.remove_all().await,
                }
            }
        }
        Ok(())
    })
}

/// Runs blocking work beside the event loop. The work is finished even if the caller goes away.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::system("run a task")(std::io::Error::other(error))),
    }
}

/// Finishes work even if the caller goes away: ttrpc drops the futures of a connection that closes.
async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::system("run a task")(std::io::Error::other(error))),
    }
}

struct Service {
    machine: Machine,
    reaper: Reaper,
    oom: Oom,
    wanted: Wanted,
    room: Room,
    containers: Arc<Containers>,
    clock: Clock,
}

#[async_trait]
impl agent_ttrpc::Agent for Service {
    async fn configure(
        &self,
        _: &TtrpcContext,
        request: agent::ConfigureRequest,
    ) -> ttrpc::Result<ConfigureResponse> {
        if let Machine::Guest = self.machine {
            identity::apply(&request)?;
            self.clock
                .set(Duration::from_nanos(request.realtime_nanos))?;
        }
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_err(Error::file("read", "/proc/sys/kernel/osrelease"))?;
        Ok(ConfigureResponse {
            agent_version: env!("CARGO_PKG_VERSION").to_string(),
            kernel_release: release.trim().to_string(),
            ..Default::default()
        })
    }

    async fn set_sysctls(
        &self,
        _: &TtrpcContext,
        request: agent::SetSysctlsRequest,
    ) -> ttrpc::Result<Empty> {
        if let Machine::Guest = self.machine {
            identity::set_sysctls(&request.sysctls)?;
        }
        Ok(Empty::new())
    }

    async fn attach(
        &self,
        _: &TtrpcContext,
        request: agent::AttachRequest,
    ) -> ttrpc::Result<Empty> {
        use attach_request::Device;
        match (&self.machine, request.device) {
            (_, Some(Device::Files(put))) => blocking(move || files::put(&put)).await?,
            (Machine::Guest, device) => {
                let room = self.room.clone();
                blocking(move || match device {
                    Some(Device::Share(share)) => share::attach(&share),
                    Some(Device::Disk(disk)) => disk::attach(&disk),
                    Some(Device::Cpus(total)) => size::online_cpus(total),
                    Some(Device::Memory(memory)) => {
                        size::online_memory(memory.bytes)?;
                        room.set(&memory)
                    }
                    Some(Device::Network(network)) => network::attach(&network),
                    Some(Device::FreePageReporting(_)) => {
                        modules::load(modules::FREE_PAGE_REPORTING)
                    }
                    Some(_) | None => Err(no_device()),
                })
                .await?;
            }
            (fake, Some(Device::Share(share))) => {
                let to = target::share(&share.tag)?;
                fake.graft(&self.reaper, &share.tag, to, share.read_only)
                    .await?
            }
            (fake, Some(Device::Disk(disk))) if !disk.fs_type.is_empty() => {
                let to = target::disk(&disk.serial)?;
                fake.graft(&self.reaper, &disk.serial, to, disk.read_only)
                    .await?
            }
            (_, Some(_)) => {}
            (_, None) => return Err(no_device().into()),
        }
        Ok(Empty::new())
    }

    async fn detach(
        &self,
        _: &TtrpcContext,
        request: agent::DetachRequest,
    ) -> ttrpc::Result<Empty> {
        use detach_request::Device;
        blocking(move || match request.device {
            Some(Device::Share(share)) => share::detach(&share),
            Some(Device::Disk(disk)) => disk::detach(&disk),
            Some(Device::Files(put)) => files::remove(&put),
            Some(_) | None => Err(no_device()),
        })
        .await?;
        Ok(Empty::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: agent::CreateContainerRequest,
    ) -> ttrpc::Result<ProcessResponse> {
        let containers = self.containers.clone();
        let pid = finish(async move { containers.create(request).await }).await?;
        Ok(process_response(pid))
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: agent::ContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let containers = self.containers.clone();
        finish(async move { containers.start(&request.container_id).await }).await?;
        Ok(Empty::new())
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        request: agent::ContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let containers = self.containers.clone();
        finish(async move { containers.delete(&request.container_id).await }).await?;
        Ok(Empty::new())
    }

    async fn exec(
        &self,
        _: &TtrpcContext,
        request: agent::ExecRequest,
    ) -> ttrpc::Result<ProcessResponse> {
        let containers = self.containers.clone();
        let pid = finish(async move { containers.exec(request).await }).await?;
        Ok(process_response(pid))
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: agent::ProcessRequest,
    ) -> ttrpc::Result<WaitResponse> {
        let waited = self
            .containers
            .wait(&request.container_id, &request.exec_id)
            .await?;
        Ok(WaitResponse {
            exit_status: waited,
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: agent::KillRequest) -> ttrpc::Result<Empty> {
        self.containers.kill(&request)?;
        Ok(Empty::new())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: agent::ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        self.containers.resize(&request)?;
        Ok(Empty::new())
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: agent::ContainerRequest,
    ) -> ttrpc::Result<ListProcessesResponse> {
        Ok(ListProcessesResponse {
            pids: self.containers.pids(&request.container_id)?,
            ..Default::default()
        })
    }

    async fn pause(
        &self,
        _: &TtrpcContext,
        request: agent::ContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let containers = self.containers.clone();
        finish(async move { containers.pause(&request.container_id).await }).await?;
        Ok(Empty::new())
    }

    async fn resume(
        &self,
        _: &TtrpcContext,
        request: agent::ContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let containers = self.containers.clone();
        finish(async move { containers.resume(&request.container_id).await }).await?;
        Ok(Empty::new())
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: agent::UpdateRequest,
    ) -> ttrpc::Result<Empty> {
        let containers = self.containers.clone();
        finish(async move { containers.update(request).await }).await?;
        Ok(Empty::new())
    }

    async fn show(&self, _: &TtrpcContext, request: agent::ShowRequest) -> ttrpc::Result<Empty> {
        let containers = self.containers.clone();
        finish(async move { containers.show(request).await }).await?;
        Ok(Empty::new())
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: agent::ContainerRequest,
    ) -> ttrpc::Result<StatsResponse> {
        Ok(self.containers.stats(&request.container_id)?)
    }

    async fn ping(&self, _: &TtrpcContext, request: agent::PingRequest) -> ttrpc::Result<Empty> {
        if let Machine::Guest = self.machine {
            let host = Duration::from_nanos(request.realtime_nanos);
            self.clock.follow(host, request.stepped)?;
        }
        Ok(Empty::new())
    }

    async fn next_event(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Event> {
        let event = tokio::select! {
            container_id = self.oom.next() => event::Event::Oom(agent::Oom {
                container_id,
                ..Default::default()
            }),
            () = self.wanted.modules() => event::Event::ModulesWanted(Default::default()),
            () = self.room.wanted() => event::Event::MemoryWanted(Default::default()),
        };
        Ok(Event {
            event: Some(event),
            ..Default::default()
        })
    }

    async fn forget_files(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        if let Machine::Guest = self.machine {
            blocking(share::forget_files).await?;
        }
        Ok(Empty::new())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.containers.kill_all();
        blocking(|| {
            for dir in [SHARES, DISKS] {
                mounts::unmount_below(Path::new(dir));
            }
            nix::unistd::sync();
            Ok(())
        })
        .await?;
        Ok(Empty::new())
    }
}

fn process_response(pid: u32) -> ProcessResponse {
    ProcessResponse {
        pid,
        ..Default::default()
    }
}

fn no_device() -> Error {
    Error::Argument {
        field: "device",
        value: String::new(),
        why: "is missing",
    }
}
