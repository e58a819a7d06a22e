//! The ttrpc service: one method a request, each a few lines; the work is done elsewhere.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use caisson_protocol::{
    agent::{self, attach_request, detach_request, ConfigureResponse, Empty},
    agent_ttrpc, port,
};
use futures_util::stream;
use tokio_vsock::{VsockAddr, VsockListener, VsockStream, VMADDR_CID_ANY, VMADDR_CID_HOST};
use ttrpc::r#async::{transport::Listener, Server, TtrpcContext};

use crate::{devices, identity, machine::Machine, Error, Result};

/// Serves the host on this machine, for ever.
pub fn serve(machine: Machine) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::system("start the event loop"))?;
    runtime.block_on(async {
        let control = listen(&machine, port::AGENT)?;
        let service = Arc::new(Service { machine });
        let mut server = Server::new()
            .add_listener(control)
            .register_service(methods(service));
        server.start().await.map_err(|error| {
            Error::system("start the service")(std::io::Error::other(error.to_string()))
        })?;
        log::info!(version = env!("CARGO_PKG_VERSION"); "serving");
        std::future::pending().await
    })
}

fn methods(service: Arc<Service>) -> HashMap<String, ttrpc::r#async::Service> {
    agent_ttrpc::create_agent(service)
}

/// Listens for the host alone.
fn listen(machine: &Machine, port: u32) -> Result<Listener> {
    match machine {
        Machine::Guest => {
            let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
                .map_err(Error::system("listen on vsock"))?;
            Ok(Listener::new(stream::unfold(listener, |listener| async {
                Some((Ok(accept(&listener).await), listener))
            })))
        }
        Machine::Fake { dir } => {
            let path = dir.join(format!("{port}.sock"));
            let listener =
                tokio::net::UnixListener::bind(&path).map_err(Error::file("listen on", path))?;
            Ok(Listener::new(stream::unfold(listener, |listener| async {
                Some((listener.accept().await.map(|(stream, _)| stream), listener))
            })))
        }
    }
}

/// The next connection of the host; others of the vsock (loopback: containers) are closed.
async fn accept(listener: &VsockListener) -> VsockStream {
    loop {
        match listener.accept().await {
            Ok((stream, from)) if from.cid() == VMADDR_CID_HOST => return stream,
            Ok((_, from)) => log::warn!(cid = from.cid(); "connection that is not the host's"),
            Err(error) => {
                log::warn!(error:%; "accept on vsock");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

/// Runs blocking work beside the event loop, to its end even if the caller goes away.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::system("run a task")(std::io::Error::other(error))),
    }
}

struct Service {
    machine: Machine,
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
        }
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_err(Error::file("read", "/proc/sys/kernel/osrelease"))?;
        Ok(ConfigureResponse {
            agent_version: env!("CARGO_PKG_VERSION").to_string(),
            kernel_release: release.trim().to_string(),
            ..Default::default()
        })
    }

    async fn attach(
        &self,
        _: &TtrpcContext,
        request: agent::AttachRequest,
    ) -> ttrpc::Result<Empty> {
        use attach_request::Device;
        blocking(move || match request.device {
            Some(Device::Share(share)) => devices::attach_share(&share),
            Some(Device::Disk(disk)) => devices::attach_disk(&disk),
            Some(Device::Cpus(total)) => devices::online_cpus(total),
            Some(Device::Network(network)) => devices::attach_network(&network),
            Some(Device::MemoryBytes(total)) => devices::online_memory(total),
            Some(_) | None => Ok(()),
        })
        .await?;
        Ok(Empty::new())
    }

    async fn detach(
        &self,
        _: &TtrpcContext,
        request: agent::DetachRequest,
    ) -> ttrpc::Result<Empty> {
        use detach_request::Device;
        blocking(move || match request.device {
            Some(Device::Share(share)) => devices::detach_share(&share),
            Some(Device::Disk(disk)) => devices::detach_disk(&disk),
            Some(_) | None => Ok(()),
        })
        .await?;
        Ok(Empty::new())
    }
}
