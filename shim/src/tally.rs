//! Counts what the shim does in the counters of the node ([`caisson_node::counters`]), beside the
//! work: nothing waits for it.

use std::{path::PathBuf, time::Duration};

use caisson_node::{
    counters::{self, Event, Stage},
    host::chain::chain,
};
use tokio::sync::{mpsc, oneshot};

use crate::trace;

/// The most events that wait for being counted. More than that are not counted.
const MOST: usize = 256;
/// The longest time that a flush waits.
const FLUSH: Duration = Duration::from_secs(3);

enum Message {
    Event(Event),
    Flush(oneshot::Sender<()>),
}

/// Takes the events of one shim.
#[derive(Debug, Clone)]
pub struct Tally(mpsc::Sender<Message>);

impl Tally {
    /// Counts in the file of the node with this folder of state.
    pub fn new(state_dir: PathBuf) -> Self {
        let (sender, queue) = mpsc::channel(MOST);
        tokio::spawn(work(state_dir, queue));
        Self(sender)
    }

    /// Counts an event, soon.
    pub fn count(&self, event: Event) {
        if self.0.try_send(Message::Event(event)).is_err() {
            log::debug!("not counted: {event:?}");
        }
    }

    /// Counts the stages of the start that have ended since the last call.
    pub fn count_stages(&self) {
        for stage in trace::take_new() {
            if let Some(known) = Stage::of(&stage.name) {
                let ms = (stage.end - stage.begin).max(0.0);
                let took = Duration::from_secs_f64(ms / 1000.0);
                self.count(Event::Stage(known, took));
            }
        }
    }

    /// Waits until everything so far has been counted. Gives up after a while.
    pub async fn flush(&self) {
        let flushed = async {
            let (done, flushed) = oneshot::channel();
            if self.0.send(Message::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        };
        if tokio::time::timeout(FLUSH, flushed).await.is_err() {
            log::info!("events are still not counted after {FLUSH:?}");
        }
    }
}

/// Counts whatever has come, all that there is at once.
async fn work(state_dir: PathBuf, mut queue: mpsc::Receiver<Message>) {
    let mut messages = Vec::new();
    while queue.recv_many(&mut messages, MOST).await > 0 {
        let (mut events, mut waiting) = (Vec::new(), Vec::new());
        for message in messages.drain(..) {
            match message {
                Message::Event(event) => events.push(event),
                Message::Flush(done) => waiting.push(done),
            }
        }
        if !events.is_empty() {
            if let Err(error) = counters::add(&state_dir, &events).await {
                log::info!("{} events are not counted: {}", events.len(), chain(&error));
            }
        }
        for done in waiting {
            // Whoever waits may have given up.
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use caisson_node::counters::{SkillRequest, Task};

    use super::*;

    #[tokio::test]
    async fn event_is_counted_when_the_flush_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let tally = Tally::new(dir.path().to_owned());
        tally.count(Event::Skill(SkillRequest::Hit));
        tally.count(Event::StartFailed(Task::Pod, counters::Reason::Vm));
        tally.flush().await;
        let counted = counters::read(dir.path()).unwrap();
        assert_eq!(counted.skill_requests(SkillRequest::Hit), 1);
        assert_eq!(counted.start_failures(Task::Pod, counters::Reason::Vm), 1);
    }

    #[tokio::test]
    async fn flush_ends_where_nothing_can_be_counted() {
        let tally = Tally::new("/nowhere".into());
        tally.count(Event::Skill(SkillRequest::Hit));
        tally.flush().await;
    }
}
