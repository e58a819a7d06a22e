//! Collects the events that containerd publishes for tasks, beside a test.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result};
use containerd_client::{
    events::{
        TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOom, TaskPaused,
        TaskResumed, TaskStart,
    },
    services::v1::SubscribeRequest,
    tonic::Request,
    types::Envelope,
    Client,
};
use prost::Message;

use crate::{command, Node};

/// An event, with the fields that tests compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// For example `/tasks/create`.
    pub topic: String,
    pub container_id: String,
    /// The id of the exec that the event is about. Empty for the init.
    pub exec_id: String,
    pub pid: u32,
    pub exit_status: u32,
}

/// A subscription. Dropping it ends it.
pub struct Events {
    seen: Arc<Mutex<Vec<Event>>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Events {
    /// Collects all task events of a node from now on.
    pub fn subscribe(node: &Node) -> Result<Self> {
        Self::subscribe_in(node, node.tag())
    }

    /// Like [`Events::subscribe`], in another of containerd's namespaces.
    pub fn subscribe_in(node: &Node, namespace: &str) -> Result<Self> {
        let socket = node.socket();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let collected = seen.clone();
        let mut stream = node.runtime().block_on(async {
            let client = Client::from_path(socket).await?;
            let filters = vec![format!("namespace=={namespace},topic~=^/tasks/")];
            // containerd sends the response headers only with the first event, so the call itself
            // is not waited for here.
            let mut events = client.events();
            let request = Request::new(SubscribeRequest { filters });
            anyhow::Ok(tokio::spawn(async move { events.subscribe(request).await }))
        })?;
        // The subscription exists once the server has taken the request.
        std::thread::sleep(Duration::from_millis(200));
        let reader = node.runtime().spawn(async move {
            let Ok(Ok(answer)) = (&mut stream).await else {
                return;
            };
            let mut stream = answer.into_inner();
            while let Ok(Some(envelope)) = stream.message().await {
                if let (Ok(event), Ok(mut seen)) = (decode(&envelope), collected.lock()) {
                    seen.push(event);
                }
            }
        });
        Ok(Self { seen, reader })
    }

    /// Returns the events of one container so far, in order.
    pub fn of(&self, id: &str) -> Vec<Event> {
        let seen = self
            .seen
            .lock()
            .map(|seen| seen.clone())
            .unwrap_or_default();
        seen.into_iter()
            .filter(|event| event.container_id == id)
            .collect()
    }

    /// Waits for an event of a container. Returns all its events until then.
    pub fn wait_for(&self, id: &str, topic: &str) -> Result<Vec<Event>> {
        command::poll(
            &format!("event {topic} of {id}"),
            Duration::from_secs(10),
            || {
                let events = self.of(id);
                events
                    .iter()
                    .any(|event| event.topic == topic)
                    .then_some(events)
            },
        )
        .with_context(|| format!("{:?}", self.of(id)))
    }
}

impl Events {
    /// Waits until the init was deleted. Returns all events of the container.
    pub fn wait_for_last_delete(&self, id: &str) -> Result<Vec<Event>> {
        command::poll(
            &format!("delete event of {id}"),
            Duration::from_secs(10),
            || {
                let events = self.of(id);
                let deleted = events
                    .iter()
                    .any(|e| e.topic == "/tasks/delete" && e.exec_id.is_empty());
                deleted.then_some(events)
            },
        )
        .with_context(|| format!("{:?}", self.of(id)))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn decode(envelope: &Envelope) -> Result<Event> {
    let bytes = envelope
        .event
        .as_ref()
        .map(|any| any.value.as_slice())
        .unwrap_or_default();
    let mut event = Event {
        topic: envelope.topic.clone(),
        container_id: String::new(),
        exec_id: String::new(),
        pid: 0,
        exit_status: 0,
    };
    match envelope.topic.as_str() {
        "/tasks/create" => {
            let e = TaskCreate::decode(bytes)?;
            (event.container_id, event.pid) = (e.container_id, e.pid);
        }
        "/tasks/start" => {
            let e = TaskStart::decode(bytes)?;
            (event.container_id, event.pid) = (e.container_id, e.pid);
        }
        "/tasks/exit" => {
            let e = TaskExit::decode(bytes)?;
            (event.container_id, event.pid, event.exit_status) =
                (e.container_id, e.pid, e.exit_status);
            // For the init, containerd's shims put the container's id here.
            event.exec_id = if e.id == event.container_id {
                String::new()
            } else {
                e.id
            };
        }
        "/tasks/delete" => {
            let e = TaskDelete::decode(bytes)?;
            (event.container_id, event.pid, event.exit_status) =
                (e.container_id, e.pid, e.exit_status);
            event.exec_id = if e.id == event.container_id {
                String::new()
            } else {
                e.id
            };
        }
        "/tasks/exec-added" => {
            let e = TaskExecAdded::decode(bytes)?;
            (event.container_id, event.exec_id) = (e.container_id, e.exec_id);
        }
        "/tasks/exec-started" => {
            let e = TaskExecStarted::decode(bytes)?;
            (event.container_id, event.exec_id, event.pid) = (e.container_id, e.exec_id, e.pid);
        }
        "/tasks/oom" => event.container_id = TaskOom::decode(bytes)?.container_id,
        "/tasks/paused" => event.container_id = TaskPaused::decode(bytes)?.container_id,
        "/tasks/resumed" => event.container_id = TaskResumed::decode(bytes)?.container_id,
        other => anyhow::bail!("event of topic {other}"),
    }
    Ok(event)
}
