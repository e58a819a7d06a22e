//! The lie that the pod asks for, and what the liars know about the pod.

use std::{
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The lie that this guest tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// The answer's frame claims 0xFFFFFFFF bytes, which then come without end.
    Huge,
    /// The answer's frame is longer than its contents.
    Long,
    /// The answer's frame is shorter than its contents.
    Short,
    /// The answer is not valid protobuf.
    Garbage,
    /// The answer belongs to another request.
    Swap,
    /// Each answer comes after a thousand that nobody asked for.
    Unasked,
    /// No answer comes.
    Never,
    /// The answer comes when nobody waits for it any more.
    Late,
    /// The connection closes instead of an answer.
    Hangup,
    /// The answer is an error made of control characters, or has such names.
    Text,
    /// Events come without end: about this pod, other pods, or nothing that exists.
    Events,
    /// The answer says that every process has ended.
    Exits,
    /// The statistics are as large as a frame may be.
    Stats,
    /// Signals and the shutdown are acknowledged, but nothing ends.
    Kill,
    /// After the first start, nothing is answered any more.
    Silent,
    /// After the first start, the guest connects to the host 10,000 times.
    Reconnect,
    /// After the first start, the console is flooded with control characters.
    Console,
    /// Streams carry more than the host accepts.
    Streams,
    /// Frames of streams claim 0xFFFFFFFF bytes.
    Frames,
    /// Streams report without end that frames were taken.
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

/// What is known about the pod so far.
#[derive(Debug, Default)]
pub struct Pod {
    pub lie: Option<(Lie, Option<String>)>,
    pub containers: Vec<String>,
    /// A container of another pod. `CAISSON_VICTIM` in the environment of one of this pod's
    /// containers names it.
    pub victim: String,
    /// Whether nothing is answered any more.
    pub silent: bool,
}

impl Pod {
    /// Reads the lie from the pod's hostname.
    pub fn named(&mut self, hostname: &str) {
        let mut words = hostname.split('-');
        let lie = match (words.next(), words.next()) {
            (Some("hostile"), Some(lie)) => lie.parse().ok(),
            _ => None,
        };
        self.lie = lie.map(|lie| (lie, words.next().map(str::to_owned)));
    }

    /// Returns the lie to tell in place of an answer of this method, if any.
    pub fn lie_about(&self, method: &str) -> Option<Lie> {
        let (lie, only) = self.lie.as_ref()?;
        let told = only.as_ref().is_none_or(|only| *only == method);
        told.then_some(*lie)
    }
}

static POD: Mutex<Option<Pod>> = Mutex::new(None);

/// Reads or changes what is known about the pod.
pub fn pod<T>(work: impl FnOnce(&mut Pod) -> T) -> T {
    let mut pod: MutexGuard<'_, _> = POD.lock().unwrap_or_else(PoisonError::into_inner);
    work(pod.get_or_insert_default())
}
