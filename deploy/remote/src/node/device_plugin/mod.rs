//! Tells the kubelet of the node's extended resources by its device plugin API, v1beta1
//! (<https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/>).
//!
//! ```text
//! the kubelet answers at kubelet.sock ──▶ serve a socket beside it ──▶ Register
//!   ▲                                                                     │
//!   └──── ListAndWatch ends, since the kubelet has ended ◀── ListAndWatch ┘
//! ```
//!
//! Each resource has a socket and a registration of its own.

use std::{
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use futures::{stream::BoxStream, StreamExt};
use tokio::{net::UnixListener, sync::watch, time::timeout};
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{transport::Server, Request, Response, Status};

use self::api::{
    device_plugin_server::{DevicePlugin, DevicePluginServer},
    registration_client::RegistrationClient,
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, Device, DevicePluginOptions,
    Empty, ListAndWatchResponse, RegisterRequest,
};
use super::capacity::{Capacity, Resource};

/// The code that `build.rs` generates.
#[allow(clippy::all)]
mod api {
    tonic::include_proto!("v1beta1");
}

/// The kubelet's socket in the folder of device plugins.
const KUBELET: &str = "kubelet.sock";
const VERSION: &str = "v1beta1";
/// The time between two tries. A kubelet that starts looks at the pods that it had before, so it
/// should soon know what there is.
const PAUSE: Duration = Duration::from_millis(200);
/// The limit for an answer of the kubelet.
const LIMIT: Duration = Duration::from_secs(10);

/// Offers what `capacity` has to the kubelet whose folder of device plugins is `dir`, for ever. A
/// problem is printed once, until there is another one.
pub async fn serve(dir: &Path, capacity: &watch::Receiver<Capacity>) -> Infallible {
    let [first, second] = Resource::ALL.map(|resource| serve_one(resource, dir, capacity));
    tokio::join!(first, second).0
}

async fn serve_one(
    resource: Resource,
    dir: &Path,
    capacity: &watch::Receiver<Capacity>,
) -> Infallible {
    let mut shown = None;
    loop {
        let ended = offer(resource, dir, capacity).await;
        let said = ended.err().map(|error| format!("{error:#}"));
        if let Some(said) = said.as_ref().filter(|_| said != shown) {
            eprintln!("offer {} to the kubelet: {said}", resource.name());
        }
        shown = said;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Offers a resource until the kubelet does not listen any more.
async fn offer(resource: Resource, dir: &Path, capacity: &watch::Receiver<Capacity>) -> Result<()> {
    let kubelet = dir.join(KUBELET);
    // A kubelet that starts removes all other sockets before it listens at its own.
    let channel = timeout(LIMIT, containerd_client::connect(&kubelet)).await;
    let channel = channel
        .map_err(anyhow::Error::new)
        .and_then(|connected| Ok(connected?))
        .with_context(|| {
            format!(
                "no kubelet answers at {}: capacity.devicePluginDir of the chart's values names its folder",
                kubelet.display()
            )
        })?;
    let socket = Socket::bind(dir, resource)?;
    let (listing, mut heard) = watch::channel(Listing::NotAsked);
    let plugin = Plugin {
        resource,
        capacity: capacity.clone(),
        listing,
    };
    let server = Server::builder().serve_with_incoming(
        DevicePluginServer::new(plugin),
        UnixListenerStream::new(socket.listener),
    );
    let registered = async {
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: socket.name.clone(),
            resource_name: resource.name().to_owned(),
        };
        let mut client = RegistrationClient::new(channel);
        timeout(LIMIT, client.register(request))
            .await
            .context("the kubelet does not answer")?
            .context("the kubelet refuses it")?;
        let asked = heard.wait_for(|listing| *listing != Listing::NotAsked);
        timeout(LIMIT, asked)
            .await
            .context("the kubelet does not ask how many there are")?
            .context("the plugin has ended")?;
        let ended = heard.wait_for(|listing| *listing == Listing::Ended);
        ended.await.context("the plugin has ended")?;
        anyhow::Ok(())
    };
    tokio::select! {
        served = server => served.context("serve the plugin"),
        ended = registered => ended,
    }
}

/// The plugin's socket. The file goes with the value.
struct Socket {
    name: String,
    listener: UnixListener,
    _file: File,
}

struct File(PathBuf);

impl Socket {
    fn bind(dir: &Path, resource: Resource) -> Result<Self> {
        let name = format!("{}.sock", resource.name().replace('/', "-"));
        let path = dir.join(&name);
        let bind = || {
            // What a killed process left.
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            UnixListener::bind(&path)
        };
        let listener = bind().with_context(|| format!("make the socket {}", path.display()))?;
        Ok(Self {
            name,
            listener,
            _file: File(path),
        })
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// How far the kubelet has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listing {
    NotAsked,
    /// It gets each change.
    Asked,
    Ended,
}

struct Plugin {
    resource: Resource,
    capacity: watch::Receiver<Capacity>,
    listing: watch::Sender<Listing>,
}

/// One call of ListAndWatch. Its end is the value's.
struct Call {
    resource: Resource,
    listing: watch::Sender<Listing>,
}

impl Call {
    fn answer(&self, capacity: &Capacity) -> ListAndWatchResponse {
        let health = if capacity.is_healthy() {
            "Healthy"
        } else {
            "Unhealthy"
        };
        let devices = (0..capacity.count(self.resource)).map(|number| Device {
            id: number.to_string(),
            health: health.to_owned(),
        });
        ListAndWatchResponse {
            devices: devices.collect(),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.listing.send_replace(Listing::Ended);
    }
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    type ListAndWatchStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions {}))
    }

    async fn list_and_watch(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let call = Call {
            resource: self.resource,
            listing: self.listing.clone(),
        };
        self.listing.send_replace(Listing::Asked);
        let changes = WatchStream::new(self.capacity.clone());
        let answers = changes.map(move |capacity| Ok(call.answer(&capacity)));
        Ok(Response::new(answers.boxed()))
    }

    /// A container that asks for a resource itself gets nothing of the node: VMs are the shim's.
    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let containers = request.into_inner().container_requests;
        let response = containers.iter().map(|_| ContainerAllocateResponse {});
        Ok(Response::new(AllocateResponse {
            container_responses: response.collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::mpsc;

    use super::{
        api::{
            device_plugin_client::DevicePluginClient,
            registration_server::{Registration, RegistrationServer},
        },
        *,
    };
    use crate::node::standing::Standing;

    /// The registering side of a kubelet.
    struct Kubelet(mpsc::UnboundedSender<RegisterRequest>);

    #[tonic::async_trait]
    impl Registration for Kubelet {
        async fn register(
            &self,
            request: Request<RegisterRequest>,
        ) -> Result<Response<Empty>, Status> {
            let sent = self.0.send(request.into_inner());
            sent.map_err(|_| Status::unavailable("ended"))?;
            Ok(Response::new(Empty {}))
        }
    }

    /// Starts a kubelet as a real one starts, and returns what plugins say to it.
    fn kubelet(
        dir: &Path,
    ) -> (
        tokio::task::JoinHandle<()>,
        mpsc::UnboundedReceiver<RegisterRequest>,
    ) {
        for entry in fs::read_dir(dir).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let (sender, requests) = mpsc::unbounded_channel();
        let listener = UnixListener::bind(dir.join(KUBELET)).unwrap();
        let server = Server::builder().serve_with_incoming(
            RegistrationServer::new(Kubelet(sender)),
            UnixListenerStream::new(listener),
        );
        let task = tokio::spawn(async move { server.await.unwrap() });
        (task, requests)
    }

    /// Returns the plugin's list of devices, and each change of it.
    async fn list(
        dir: &Path,
        requests: &mut mpsc::UnboundedReceiver<RegisterRequest>,
        resource: Resource,
    ) -> tonic::Streaming<ListAndWatchResponse> {
        let request = loop {
            let request = requests.recv().await.unwrap();
            assert_eq!(request.version, "v1beta1");
            if request.resource_name == resource.name() {
                break request;
            }
        };
        let channel = containerd_client::connect(dir.join(request.endpoint));
        let mut client = DevicePluginClient::new(channel.await.unwrap());
        client.list_and_watch(Empty {}).await.unwrap().into_inner()
    }

    async fn next(list: &mut tonic::Streaming<ListAndWatchResponse>) -> (usize, usize) {
        let devices = list.message().await.unwrap().unwrap().devices;
        let healthy = devices.iter().filter(|device| device.health == "Healthy");
        (devices.len(), healthy.count())
    }

    fn ready() -> Capacity {
        let standing = Standing::Ready {
            accelerator: Some("tcg".to_owned()),
        };
        Capacity::default().after(&standing, 3)
    }

    #[tokio::test]
    async fn kubelet_hears_of_each_change() {
        let dir = tempfile::tempdir().unwrap();
        let (_kubelet, mut requests) = kubelet(dir.path());
        let (tell, capacity) = watch::channel(ready());
        let path: Arc<Path> = dir.path().into();
        tokio::spawn(async move { serve(&path, &capacity).await });
        let mut slots = list(dir.path(), &mut requests, Resource::VmSlot).await;
        assert_eq!(next(&mut slots).await, (3, 3));
        tell.send_modify(|now| *now = now.after(&Standing::Removing, 3));
        assert_eq!(next(&mut slots).await, (3, 0));
        tell.send_modify(|now| *now = now.after(&Standing::Removed, 3));
        assert_eq!(next(&mut slots).await, (0, 0));
    }

    #[tokio::test]
    async fn node_without_kvm_offers_none() {
        let dir = tempfile::tempdir().unwrap();
        let (_kubelet, mut requests) = kubelet(dir.path());
        let (_tell, capacity) = watch::channel(ready());
        let path: Arc<Path> = dir.path().into();
        tokio::spawn(async move { serve(&path, &capacity).await });
        let mut kvm = list(dir.path(), &mut requests, Resource::Kvm).await;
        assert_eq!(next(&mut kvm).await, (0, 0));
    }

    #[tokio::test]
    async fn kubelet_that_starts_again_is_told_again() {
        let dir = tempfile::tempdir().unwrap();
        let (first, mut requests) = kubelet(dir.path());
        let (_tell, capacity) = watch::channel(ready());
        let path: Arc<Path> = dir.path().into();
        tokio::spawn(async move { serve(&path, &capacity).await });
        let mut slots = list(dir.path(), &mut requests, Resource::VmSlot).await;
        assert_eq!(next(&mut slots).await, (3, 3));
        first.abort();
        let _ = first.await;
        drop(slots);
        let (_second, mut requests) = kubelet(dir.path());
        let mut slots = list(dir.path(), &mut requests, Resource::VmSlot).await;
        assert_eq!(next(&mut slots).await, (3, 3));
    }

    #[tokio::test]
    async fn container_that_asks_itself_gets_nothing_of_the_node() {
        let plugin = Plugin {
            resource: Resource::Kvm,
            capacity: watch::channel(ready()).1,
            listing: watch::channel(Listing::NotAsked).0,
        };
        let request = AllocateRequest {
            container_requests: vec![Default::default(); 2],
        };
        let given = plugin.allocate(Request::new(request)).await.unwrap();
        let given = given.into_inner().container_responses;
        assert_eq!(given, vec![ContainerAllocateResponse {}; 2]);
    }
}
