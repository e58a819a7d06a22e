//! Keeps the guest's clock with the host's, which the shim tells with each ping.
//!
//! A message takes time. So a guest's clock is behind the host's by at least what it is behind when
//! the message comes. It may be ahead by less than it seems to be then: the smallest of several
//! messages counts.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::time::TimeSpec,
    time::{clock_settime, ClockId},
};

use crate::{Error, Result};

/// How far behind the clock may be.
const BEHIND: Duration = Duration::from_millis(5);
/// How far ahead the clock may be, and longer than most messages take.
const AHEAD: Duration = Duration::from_millis(20);
/// How many messages in a row have to find the clock ahead.
const MESSAGES: usize = 4;

/// The guest's clock.
#[derive(Debug, Default)]
pub struct Clock {
    /// By how much it seemed to be ahead, in the last messages.
    ahead: Mutex<Vec<Duration>>,
}

impl Clock {
    /// Sets the clock.
    pub fn set(&self, now: Duration) -> Result<()> {
        self.lock().clear();
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(now))
            .map_err(Error::system("set the clock"))
    }

    /// Corrects the clock by the host's time. `stepped` says that the host's clock was just set.
    pub fn follow(&self, host: Duration, stepped: bool) -> Result<()> {
        let own = SystemTime::now().duration_since(UNIX_EPOCH);
        let own = own.unwrap_or_default();
        let now = match stepped {
            true => Some(host),
            false => correction(&mut self.lock(), own, host),
        };
        match now {
            Some(now) => {
                log::info!(from:? = own, to:? = now; "clock");
                self.set(now)
            }
            None => Ok(()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Duration>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what the clock, which says `own`, should say. `None` if it is right.
fn correction(messages: &mut Vec<Duration>, own: Duration, host: Duration) -> Option<Duration> {
    let Some(ahead) = own.checked_sub(host).filter(|ahead| *ahead > AHEAD) else {
        messages.clear();
        return (own + BEHIND < host).then_some(host);
    };
    messages.push(ahead);
    match messages.iter().min() {
        Some(least) if messages.len() >= MESSAGES => Some(own.saturating_sub(*least)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Duration = Duration::from_secs(1_000_000);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn clock_that_is_behind_is_set_at_once() {
        let mut messages = Vec::new();
        assert_eq!(correction(&mut messages, HOST - ms(100), HOST), Some(HOST));
        assert_eq!(correction(&mut messages, HOST - ms(2), HOST), None);
    }

    #[test]
    fn clock_that_seems_ahead_for_once_stays() {
        let mut messages = Vec::new();
        for _ in 0..10 {
            assert_eq!(correction(&mut messages, HOST + ms(900), HOST), None);
            assert_eq!(correction(&mut messages, HOST + ms(1), HOST), None);
        }
    }

    #[test]
    fn clock_that_is_ahead_goes_back_by_the_least_that_it_seemed() {
        let mut messages = Vec::new();
        for late in [700, 530, 600] {
            assert_eq!(correction(&mut messages, HOST + ms(late), HOST), None);
        }
        let set = correction(&mut messages, HOST + ms(650), HOST);
        assert_eq!(set, Some(HOST + ms(120)));
    }
}
