//! Events to containerd, in the order in which they happened, also across a restart of containerd.
//!
//! (The publisher of `containerd-shim` sends again later what failed, which changes the order, and can't be waited for.)

use std::{collections::VecDeque, time::Duration};

use containerd_shim::{
    event::Event,
    protos::{
        protobuf::MessageDyn,
        shim::{event::Envelope, events::ForwardRequest},
        shim_async::{Client, EventsClient},
        ttrpc::context,
    },
    util::{convert_to_any, timestamp},
};
use tokio::sync::{mpsc, oneshot};

use crate::error::chain;

/// How long containerd has to take one event.
const LIMIT: Duration = Duration::from_secs(5);
/// Between attempts while containerd is away.
const PAUSE: Duration = Duration::from_secs(1);
/// While containerd is away no more are kept; the oldest goes first.
const MOST_KEPT: usize = 1024;

enum Message {
    Event(Box<ForwardRequest>),
    Flush(oneshot::Sender<()>),
}

/// Takes the events of one pod. Clones share one order.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::UnboundedSender<Message>,
    namespace: String,
}

impl Events {
    /// Publishes to containerd's ttrpc socket at `address`, in `namespace`.
    pub fn new(address: String, namespace: String) -> Self {
        let (queue, messages) = mpsc::unbounded_channel();
        tokio::spawn(publish(address, messages));
        Self { queue, namespace }
    }

    /// Queues an event.
    pub fn send(&self, event: impl Event) {
        let topic = event.topic();
        match self.envelope(&topic, Box::new(event)) {
            Ok(request) => self.push(Message::Event(Box::new(request))),
            Err(error) => log::error!(topic; "encode event: {}", chain(&error)),
        }
    }

    /// Waits until everything queued so far is published, at most `within`.
    pub async fn flush(&self, within: Duration) {
        let (done, flushed) = oneshot::channel();
        self.push(Message::Flush(done));
        if tokio::time::timeout(within, flushed).await.is_err() {
            log::warn!("events are still unpublished after {within:?}");
        }
    }

    fn envelope(
        &self,
        topic: &str,
        event: Box<dyn MessageDyn>,
    ) -> containerd_shim::Result<ForwardRequest> {
        let mut envelope = Envelope::new();
        envelope.set_topic(topic.to_owned());
        envelope.set_namespace(self.namespace.clone());
        envelope.set_timestamp(timestamp()?);
        envelope.set_event(convert_to_any(event)?);
        let mut request = ForwardRequest::new();
        request.set_envelope(envelope);
        Ok(request)
    }

    fn push(&self, message: Message) {
        if self.queue.send(message).is_err() {
            log::warn!("an event came after the publisher's end");
        }
    }
}

async fn publish(address: String, mut messages: mpsc::UnboundedReceiver<Message>) {
    let mut client = None;
    let mut kept = VecDeque::new();
    loop {
        // While something is kept, new messages only join the queue.
        let message = if kept.is_empty() {
            messages.recv().await
        } else {
            match tokio::time::timeout(PAUSE, messages.recv()).await {
                Ok(message) => message,
                Err(_) => {
                    deliver(&address, &mut client, &mut kept).await;
                    continue;
                }
            }
        };
        let Some(message) = message else {
            return;
        };
        let was_idle = kept.is_empty();
        kept.push_back(message);
        if kept.len() > MOST_KEPT {
            kept.pop_front();
            log::warn!("containerd is away: the oldest event is dropped");
        }
        if was_idle {
            deliver(&address, &mut client, &mut kept).await;
        }
    }
}

/// Publishes from the front until the queue is empty or something fails.
async fn deliver(address: &str, client: &mut Option<EventsClient>, kept: &mut VecDeque<Message>) {
    while let Some(message) = kept.pop_front() {
        let request = match message {
            Message::Flush(done) => {
                // Nobody may be waiting any more.
                let _ = done.send(());
                continue;
            }
            Message::Event(request) => request,
        };
        if client.is_none() {
            *client = connect(address).await;
        }
        let Some(events) = client.as_ref() else {
            kept.push_front(Message::Event(request));
            return;
        };
        let limit = context::with_timeout(LIMIT.as_nanos() as i64);
        if let Err(error) = events.forward(limit, &request).await {
            log::warn!(topic = request.envelope().topic(); "publish event, will try again: {error}");
            *client = None;
            kept.push_front(Message::Event(request));
            return;
        }
    }
}

async fn connect(address: &str) -> Option<EventsClient> {
    let url = match address.contains("://") {
        true => address.to_owned(),
        false => format!("unix://{address}"),
    };
    match Client::connect(&url).await {
        Ok(client) => Some(EventsClient::new(client)),
        Err(error) => {
            log::debug!("connect to containerd's events: {error}");
            None
        }
    }
}
