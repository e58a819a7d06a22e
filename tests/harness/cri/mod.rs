//! Drives a node as a kubelet does, with pods and containers over Kubernetes' CRI.
//!
//! ```no_run
//! use caisson_tests::{cri::CriNode, Runtime};
//!
//! let node = CriNode::shared();
//! let pod = node.pod().runtime(Runtime::Caisson).start()?;
//! let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
//! assert_eq!(container.sh("echo $((1+1))")?, "2");
//! container.stop(std::time::Duration::ZERO)?;
//! # anyhow::Ok(())
//! ```
//!
//! - [`pod`]: a sandbox; [`container`]: a container in it; [`log`]: its output, in CRI's log
//!   format;
//! - [`first_namespace`]: programs beside the guest's agent;
//! - [`stream`]: exec and attach over the streaming server; [`forward`]: its port-forward;
//! - [`network`]: the CNI network of a node; [`registry`]: images to be pulled under their public
//!   names.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        atomic::{AtomicU32, Ordering},
        Mutex, OnceLock, PoisonError,
    },
};

use anyhow::{Context, Result};
use serde_json::Value;
use tonic::{transport::Channel, Response, Status};

use crate::{command, node::LIMIT, paths::Containerd, Node, Runtime};

/// The generated messages and services of CRI v1.
#[allow(clippy::all, rustdoc::all)]
pub mod api {
    tonic::include_proto!("runtime.v1");
}

pub mod container;
pub mod first_namespace;
pub mod forward;
pub mod log;
pub mod network;
pub mod pod;
pub mod registry;
pub mod stream;

use api::{
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
    ImageSpec, ImageStatusRequest, PullImageRequest, VersionRequest,
};
pub use container::{Container, ContainerBuilder};
pub use pod::{Pod, PodBuilder};

/// containerd's namespace for everything that comes through CRI.
pub const NAMESPACE: &str = "k8s.io";

/// Caisson's runtime handler with containerd's own sandboxer.
pub const HANDLER: &str = "sandbox";
/// Caisson's runtime handler with `sandboxer = "shim"`, on containerd 2.x.
pub const HANDLER_OF_SHIM: &str = "sandbox-shim";

/// A containerd with its CRI plugin, a CNI network and the pods on it.
pub struct CriNode {
    node: Node,
    channel: Channel,
    pods: AtomicU32,
    shared_pods: Mutex<HashMap<Runtime, &'static Pod<'static>>>,
}

static SHARED: OnceLock<CriNode> = OnceLock::new();

impl Runtime {
    /// Returns the runtime handler, as a RuntimeClass names it. Caisson has two; the environment
    /// variable `CAISSON_TEST_SANDBOXER` selects one.
    pub fn handler(self) -> &'static str {
        let sandboxer = std::env::var("CAISSON_TEST_SANDBOXER");
        match self {
            Self::Caisson if sandboxer.is_ok_and(|name| name == "shim") => HANDLER_OF_SHIM,
            Self::Caisson => HANDLER,
            Self::Runc => "runc",
            Self::Gvisor => "gvisor",
        }
    }
}

impl CriNode {
    /// Returns the one node of this test binary, which is removed when the process exits.
    ///
    /// Panics if the node can't be started, since no test can go on without it.
    pub fn shared() -> &'static CriNode {
        let mut first = false;
        let shared = SHARED.get_or_init(|| {
            first = true;
            Self::start().unwrap_or_else(|error| panic!("no test node: {error:#}"))
        });
        if first {
            Node::end_at_exit(&shared.node);
        }
        shared
    }

    /// Starts a node of the containerd version that the environment names.
    pub fn start() -> Result<Self> {
        Self::start_with(|_| {})
    }

    /// Starts a node whose Caisson configuration was changed by `edit`.
    pub fn start_with(edit: impl FnOnce(&mut Value)) -> Result<Self> {
        Self::over(Node::start_cri(Containerd::from_environment()?, edit)?)
    }

    /// Starts a node of a given containerd version.
    pub fn start_version(version: Containerd) -> Result<Self> {
        Self::start_version_with(version, |_| {})
    }

    /// Starts a node of a given containerd version whose Caisson configuration was changed by
    /// `edit`.
    pub fn start_version_with(version: Containerd, edit: impl FnOnce(&mut Value)) -> Result<Self> {
        Self::over(Node::start_cri(version, edit)?)
    }

    fn over(node: Node) -> Result<Self> {
        let connect = containerd_client::connect(node.socket());
        let channel = node.runtime().block_on(connect).context("connect CRI")?;
        let node = Self {
            node,
            channel,
            pods: AtomicU32::new(1),
            shared_pods: Mutex::default(),
        };
        command::poll("CRI to answer", LIMIT, || {
            let version = |mut cri: RuntimeServiceClient<Channel>| async move {
                cri.version(VersionRequest::default()).await
            };
            node.runtime_call("Version", version).ok()
        })
        .with_context(|| node.log())?;
        node.image("pause")?;
        Ok(node)
    }

    /// Begins building a pod.
    pub fn pod(&self) -> PodBuilder<'_> {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        PodBuilder::new(self, format!("pod{number}"))
    }

    /// Returns a pod shared by tests that only need a place for their containers. It stays until
    /// the process exits.
    pub fn shared_pod(&'static self, runtime: Runtime) -> Result<&'static Pod<'static>> {
        let mut pods = self
            .shared_pods
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(pod) = pods.get(&runtime) {
            return Ok(pod);
        }
        let pod: &'static Pod = Box::leak(Box::new(self.pod().runtime(runtime).start()?));
        pods.insert(runtime, pod);
        Ok(pod)
    }

    /// Makes an image of [`crate::fixture`] known to CRI. Returns its full name.
    pub fn image(&self, name: &str) -> Result<String> {
        let full = self.node.image_in(NAMESPACE, name)?;
        // An event tells CRI of the import.
        command::poll(&format!("image {full}"), LIMIT, || {
            self.image_id(&full).ok().flatten()
        })?;
        Ok(full)
    }

    /// Returns the id of an image, if the node has it.
    pub fn image_id(&self, name: &str) -> Result<Option<String>> {
        let request = ImageStatusRequest {
            image: Some(image_spec(name)),
            verbose: false,
        };
        let answer = self.image_call("ImageStatus", |mut cri| async move {
            cri.image_status(request).await
        })?;
        Ok(answer.image.map(|image| image.id))
    }

    /// Pulls an image by the name that a pod gives it. Returns its id.
    pub fn pull(&self, name: &str) -> Result<String> {
        let request = PullImageRequest {
            image: Some(image_spec(name)),
            ..Default::default()
        };
        let answer = self.image_call("PullImage", |mut cri| async move {
            cri.pull_image(request).await
        })?;
        Ok(answer.image_ref)
    }

    /// Calls CRI's RuntimeService. The error names the call and has the [`Status`] as its cause.
    pub fn runtime_call<T, F>(
        &self,
        what: &str,
        work: impl FnOnce(RuntimeServiceClient<Channel>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let client = RuntimeServiceClient::new(self.channel.clone());
        self.answer(what, work(client.max_decoding_message_size(64 << 20)))
    }

    /// Like [`CriNode::runtime_call`], for the ImageService.
    pub fn image_call<T, F>(
        &self,
        what: &str,
        work: impl FnOnce(ImageServiceClient<Channel>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.answer(what, work(ImageServiceClient::new(self.channel.clone())))
    }

    fn answer<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T> {
        let answer = self
            .node
            .runtime()
            .block_on(async { tokio::time::timeout(LIMIT, call).await })
            .with_context(|| format!("{what}: no answer within {LIMIT:?}"))?;
        Ok(answer.with_context(|| what.to_owned())?.into_inner())
    }
}

impl std::ops::Deref for CriNode {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

pub(crate) fn image_spec(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.to_owned(),
        ..Default::default()
    }
}
