//! An agent that lies, for the tests under `tests/hostile`: it stands between the host and the
//! honest service and changes what the guest says. Built with the feature `hostile`, never shipped.
//!
//! The pod's hostname, which comes with `Configure`, says which lie is told: `hostile-LIE` in every
//! answer, or `hostile-LIE-METHOD` (in lower case) in those of one method. In a pod of any other
//! name it is honest.
//!
//! ```text
//!   host <--> lies <--pipe--> service
//! ```

mod lies;
mod streams;

use std::{
    io,
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures_util::StreamExt;
use tokio::io::DuplexStream;
use ttrpc::r#async::transport::{Listener, Socket};

/// What a pipe to the honest service holds.
const PIPE: usize = 64 << 10;

/// What this guest lies about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// The answer's frame claims 0xFFFFFFFF bytes, which then come without end.
    Huge,
    /// The answer's frame is longer than its contents.
    Long,
    /// The answer's frame is shorter than its contents.
    Short,
    /// The answer is no protobuf.
    Garbage,
    /// The answer is one to another request.
    Swap,
    /// Each answer comes amid a thousand that nobody asked for.
    Unasked,
    /// No answer comes.
    Never,
    /// The answer comes when nobody waits any more.
    Late,
    /// The connection closes instead of an answer.
    Hangup,
    /// The answer is an error, or has names, of control characters.
    Text,
    /// Events come without end: of this pod, of others, of nobody.
    Events,
    /// Every process has ended, says the answer.
    Exits,
    /// The statistics are as large as a frame may be.
    Stats,
    /// Signals and the end are acknowledged, and nothing ends.
    Kill,
    /// After the first start nothing is answered any more.
    Silent,
    /// After the first start the guest connects to the host 10,000 times.
    Reconnect,
    /// After the first start the console is flooded with control characters.
    Console,
    /// Streams carry more than the host takes.
    Streams,
    /// Frames of streams claim 0xFFFFFFFF bytes.
    Frames,
    /// Streams say without end that frames were taken.
    Taken,
}

impl FromStr for Lie {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Ok(match name {
            "huge" => Self::Huge,
            "long" => Self::Long,
            "short" => Self::Short,
            "garbage" => Self::Garbage,
            "swap" => Self::Swap,
            "unasked" => Self::Unasked,
            "never" => Self::Never,
            "late" => Self::Late,
            "hangup" => Self::Hangup,
            "text" => Self::Text,
            "events" => Self::Events,
            "exits" => Self::Exits,
            "stats" => Self::Stats,
            "kill" => Self::Kill,
            "silent" => Self::Silent,
            "reconnect" => Self::Reconnect,
            "console" => Self::Console,
            "streams" => Self::Streams,
            "frames" => Self::Frames,
            "taken" => Self::Taken,
            _ => return Err(()),
        })
    }
}

/// What is known of the pod so far.
#[derive(Debug, Default)]
struct Pod {
    lie: Option<(Lie, Option<String>)>,
    containers: Vec<String>,
    /// A container of another pod, as `CAISSON_VICTIM` in the environment of one of this pod's
    /// names it.
    victim: String,
    /// Nothing is answered any more.
    silent: bool,
}

impl Pod {
    /// Takes the lie out of the pod's hostname.
    fn named(&mut self, hostname: &str) {
        let mut words = hostname.split('-');
        let lie = match (words.next(), words.next()) {
            (Some("hostile"), Some(lie)) => lie.parse().ok(),
            _ => None,
        };
        self.lie = lie.map(|lie| (lie, words.next().map(str::to_owned)));
    }

    /// What is told in place of an answer of this method.
    fn lie_about(&self, method: &str) -> Option<Lie> {
        let (lie, only) = self.lie.as_ref()?;
        let told = only.as_ref().is_none_or(|only| *only == method);
        told.then_some(*lie)
    }
}

static POD: Mutex<Option<Pod>> = Mutex::new(None);

/// Changes or asks what is known of the pod.
fn pod<T>(work: impl FnOnce(&mut Pod) -> T) -> T {
    let mut pod: MutexGuard<'_, _> = POD.lock().unwrap_or_else(PoisonError::into_inner);
    work(pod.get_or_insert_default())
}

/// The listener of the service, with the lies before it.
pub fn service(host: Listener) -> Listener {
    between(host, |host, honest| {
        tokio::spawn(lies::between(host, honest));
    })
}

/// The listener of the streams, with the lies before it.
pub fn processes(host: Listener) -> Listener {
    between(host, |host, honest| {
        tokio::spawn(streams::between(host, honest));
    })
}

fn between(host: Listener, lie: impl Fn(Socket, DuplexStream) + Send + 'static) -> Listener {
    Listener::new(host.map(move |connection: io::Result<Socket>| {
        let (ours, services) = tokio::io::duplex(PIPE);
        lie(connection?, ours);
        Ok(services)
    }))
}
