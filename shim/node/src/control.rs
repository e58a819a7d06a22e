//! Gives the operator access to a pod's shim by a socket in the pod's state folder. The commands
//! `caisson claim`, `caisson skill attach`, `caisson skill detach`, `caisson egress` and `caisson
//! trace` use it.
//!
//! A connection carries one request and one answer, each a line of JSON. Only root can connect,
//! since only the socket's owner may write to it.

use std::{
    fs,
    future::Future,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use caisson_oci::claim;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use crate::host::error::{FileError, OnFile};

/// The socket's name in the state folder.
pub const SOCKET: &str = "control";
/// The longest line, in bytes: a claim's variables and secrets ([`caisson_oci::claim::MAX_BYTES`])
/// as JSON.
const MAX_LINE: u64 = 8 << 20;

/// A request to the shim.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    AttachSkill {
        /// `sha256:HEX` or `SKILL@VERSION`.
        skill: String,
        /// The name that the skill is mounted under, if it is not the manifest's.
        name: Option<String>,
        /// The container's name or id. `None` means all running containers.
        container: Option<String>,
    },
    DetachSkill {
        skill: String,
        container: Option<String>,
    },
    /// Claims the pod.
    ClaimPod(claim::Claim),
    /// Asks for the stages of the pod's start.
    Trace,
    /// Asks what the pod may open connections to, and how often it tried something else.
    Egress,
    /// Makes a member of the pool the shim of a pod.
    Claim(Claim),
}

/// What a member of the pool has to know to be the shim of a pod. The fields are named as in
/// containerd's command line for shims.
#[derive(Debug, Serialize, Deserialize)]
pub struct Claim {
    pub id: String,
    pub namespace: String,
    pub bundle: PathBuf,
    /// The address to listen on.
    pub socket: String,
    /// The address of containerd's socket for events.
    pub ttrpc_address: String,
    pub debug: bool,
    /// The [`crate::pool::build`] that members of the node have now. A member with another one is
    /// stale.
    pub build: String,
    /// The same, as the pod's preset has it. A member with another one does not fit the pod.
    pub fits: String,
    /// The pod's preset, if it has one.
    pub preset: Option<String>,
}

/// The shim's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The path at which the skill or the claim is or was mounted, and the containers concerned.
    Done {
        target: PathBuf,
        containers: Vec<String>,
    },
    Trace(Vec<Stage>),
    /// As `[network] egress` has it, and the number of frames that were dropped.
    Egress {
        allows: String,
        denied: u64,
    },
    /// The shim serves the pod.
    Claimed,
    Failed(String),
}

/// A stage of a pod's start. Times are in milliseconds since the shim began, or since a pod claimed
/// it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    pub name: String,
    /// The id of the container or pod that it was for, if it was for one.
    pub of: Option<String>,
    pub begin: f64,
    pub end: f64,
}

/// Sends a request to the shim of a pod. Blocks, at most for `limit`.
pub fn ask(
    state_dir: &Path,
    id: &str,
    request: &Request,
    limit: Duration,
) -> Result<Answer, FileError> {
    let path = state_dir.join(id).join(SOCKET);
    let asked = || -> io::Result<Answer> {
        let mut stream = std::os::unix::net::UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(limit))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(stream.take(MAX_LINE)).read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    };
    asked().map_err(FileError::file("ask the shim by", &path))
}

/// Answers requests by `handle` until the shim ends. The socket is removed with the state folder.
pub fn serve<H, A>(state: &Path, handle: H) -> Result<(), FileError>
where
    H: Fn(Request) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let listener = listen(state)?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(answer(stream, handle.clone()))),
                Err(error) => {
                    log::warn!("the operator's requests can't be heard any more: {error}");
                    return;
                }
            }
        }
    });
    Ok(())
}

/// Makes the socket of a pod, or of a member of the pool.
pub fn listen(state: &Path) -> Result<UnixListener, FileError> {
    let path = state.join(SOCKET);
    let failed = || FileError::file("listen on", &path);
    let listener = UnixListener::bind(&path).map_err(failed())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed())?;
    Ok(listener)
}

/// Answers the one request of a connection by `handle`.
pub async fn answer<A>(stream: UnixStream, handle: impl FnOnce(Request) -> A)
where
    A: Future<Output = Answer> + Send + 'static,
{
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let mut read = tokio::io::BufReader::new(read.take(MAX_LINE));
    let answered = async {
        read.read_until(b'\n', &mut line).await?;
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => {
                // A request that has begun is finished even if the operator has disconnected.
                let done = tokio::spawn(handle(request)).await;
                done.unwrap_or_else(|panic| Answer::Failed(panic.to_string()))
            }
            Err(error) => Answer::Failed(format!("request: {error}")),
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        write.write_all(&text).await
    };
    if let Err(error) = answered.await {
        log::debug!("an operator's request: {error}");
    }
}
