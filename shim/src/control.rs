//! Gives the operator access to a pod's shim by a socket in the pod's state folder. The commands
//! `caisson skill attach` and `caisson skill detach` use it.
//!
//! A connection carries one request and one answer, each a line of JSON. Only root can connect,
//! since only the socket's owner may write to it.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use caisson_oci::annotations::{is_plain_name, SkillRef, SkillWish};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use crate::{
    error::{Error, Result},
    pod::Pod,
};

/// The socket's name in the state folder.
pub const SOCKET: &str = "control";
/// The longest line, in bytes.
const MAX_LINE: u64 = 64 << 10;

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
}

/// The shim's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The path at which the skill is or was mounted, and the containers concerned.
    Done {
        target: PathBuf,
        containers: Vec<String>,
    },
    Failed(String),
}

/// Sends a request to the shim of a pod. Blocks, at most for `limit`.
pub fn ask(state_dir: &Path, id: &str, request: &Request, limit: Duration) -> Result<Answer> {
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
    asked().map_err(Error::file("ask the shim by", &path))
}

/// Answers requests for a pod until its shim ends. The socket is removed with the state folder.
pub fn serve(pod: Arc<Pod>, state: &Path) -> Result<()> {
    let path = state.join(SOCKET);
    let failed = || Error::file("listen on", &path);
    let listener = UnixListener::bind(&path).map_err(failed())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed())?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(answer(pod.clone(), stream))),
                Err(error) => {
                    log::warn!("the operator's requests can't be heard any more: {error}");
                    return;
                }
            }
        }
    });
    Ok(())
}

async fn answer(pod: Arc<Pod>, stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let mut read = tokio::io::BufReader::new(read.take(MAX_LINE));
    let answered = async {
        read.read_until(b'\n', &mut line).await?;
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => {
                // A request that has begun is finished even if the operator has disconnected.
                let done = tokio::spawn(async move { handle(&pod, request).await }).await;
                match done {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(error)) => Answer::Failed(error.chain()),
                    Err(panic) => Answer::Failed(panic.to_string()),
                }
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

async fn handle(pod: &Pod, request: Request) -> Result<Answer> {
    let shown = match request {
        Request::AttachSkill {
            skill,
            name,
            container,
        } => {
            if name.as_ref().is_some_and(|name| !is_plain_name(name)) {
                return Err(Error::Request {
                    field: "name",
                    reason: "is no plain name".to_owned(),
                });
            }
            let wish = SkillWish {
                name,
                skill: parse(&skill)?,
            };
            log::info!(skill, container:?; "attach skill");
            pod.attach_skill(&wish, container.as_deref()).await?
        }
        Request::DetachSkill { skill, container } => {
            log::info!(skill, container:?; "detach skill");
            pod.detach_skill(&parse(&skill)?, container.as_deref())
                .await?
        }
    };
    Ok(Answer::Done {
        target: shown.target,
        containers: shown.containers,
    })
}

fn parse(skill: &str) -> Result<SkillRef> {
    SkillRef::parse(skill).ok_or_else(|| Error::Request {
        field: "skill",
        reason: "is not of the form sha256:HEX or SKILL@VERSION".to_owned(),
    })
}
