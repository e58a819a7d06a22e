//! Publishes events to containerd, in the order in which they happened, even across a restart of
//! containerd.
//!
//! (The publisher of `containerd-shim` retries a failed event later, which changes the order, and
//! offers no way to wait for it.)

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use caisson_node::host::chain::chain;
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
use tokio::sync::{oneshot, Notify};

/// The time limit for containerd to take one event.
const LIMIT: Duration = Duration::from_secs(5);
/// The pause between attempts while containerd is away.
const PAUSE: Duration = Duration::from_secs(1);
/// The most events that are kept while containerd is away or slower than events arrive. The oldest
/// are dropped first.
const MOST_KEPT: usize = 1024;

enum Message {
    Event(Box<ForwardRequest>),
    Flush(oneshot::Sender<()>),
}

/// Takes the events of one pod. Clones share one queue and thus one order.
#[derive(Clone)]
pub struct Events {
    queue: Arc<Queue>,
    namespace: String,
}

#[derive(Default)]
struct Queue {
    messages: Mutex<VecDeque<Message>>,
    changed: Notify,
}

impl Queue {
    fn push(&self, message: Message) {
        let mut messages = self.lock();
        messages.push_back(message);
        if messages.len() > MOST_KEPT {
            messages.pop_front();
            log::warn!("containerd does not take events: the oldest is dropped");
        }
        self.changed.notify_one();
    }

    /// Waits for the next message and returns it.
    async fn next(&self) -> Message {
        loop {
            if let Some(message) = self.lock().pop_front() {
                return message;
            }
            self.changed.notified().await;
        }
    }

    /// Puts back an event that could not be published, unless the queue is full by now.
    fn put_back(&self, message: Message) {
        let mut messages = self.lock();
        if messages.len() < MOST_KEPT {
            messages.push_front(message);
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Events {
    /// Publishes to containerd's ttrpc socket at `address`, in the containerd namespace
    /// `namespace`.
    pub fn new(address: String, namespace: String) -> Self {
        let queue = Arc::<Queue>::default();
        tokio::spawn(publish(address, queue.clone()));
        Self { queue, namespace }
    }

    /// Queues an event.
    pub fn send(&self, event: impl Event) {
        let topic = event.topic();
        match self.envelope(&topic, Box::new(event)) {
            Ok(request) => self.queue.push(Message::Event(Box::new(request))),
            Err(error) => log::error!(topic; "encode event: {}", chain(&error)),
        }
    }

    /// Waits until everything queued so far has been published, at most for `within`.
    pub async fn flush(&self, within: Duration) {
        let (done, flushed) = oneshot::channel();
        self.queue.push(Message::Flush(done));
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
}

/// Publishes queued events for as long as the shim runs.
async fn publish(address: String, queue: Arc<Queue>) {
    let mut client = None;
    loop {
        let request = match queue.next().await {
            Message::Flush(done) => {
                // The waiting side may have given up.
                let _ = done.send(());
                continue;
            }
            Message::Event(request) => request,
        };
        if !deliver(&address, &mut client, &request).await {
            queue.put_back(Message::Event(request));
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Tries to publish an event. Returns whether containerd has taken it.
async fn deliver(
    address: &str,
    client: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> bool {
    if client.is_none() {
        *client = connect(address).await;
    }
    let Some(events) = client.as_ref() else {
        return false;
    };
    let limit = context::with_timeout(LIMIT.as_nanos() as i64);
    match events.forward(limit, request).await {
        Ok(_) => true,
        Err(error) => {
            log::warn!(topic = request.envelope().topic(); "publish event, will try again: {error}");
            *client = None;
            false
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_that_nobody_takes_are_bounded_and_the_oldest_go() {
        let queue = Queue::default();
        let mut flushes = Vec::new();
        for _ in 0..MOST_KEPT + 10 {
            let (done, flushed) = oneshot::channel();
            queue.push(Message::Flush(done));
            flushes.push(flushed);
        }
        assert_eq!(queue.lock().len(), MOST_KEPT);
        assert!(flushes[..10].iter_mut().all(|f| f.try_recv().is_err()));
        let Message::Flush(next) = queue.next().await else {
            panic!("no flush");
        };
        next.send(()).unwrap();
        flushes[10].try_recv().unwrap();
    }
}
