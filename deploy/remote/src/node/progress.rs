//! Decides what `serve` does next, and how long it waits after a failure. It does no I/O.

use std::time::{Duration, Instant};

/// What is to be on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Installed,
    Removed,
}

/// How long to wait after a failure: first `first`, then twice as long each time, up to `most`.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    pub first: Duration,
    pub most: Duration,
}

/// The next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Reach what is wanted, now.
    Do,
    /// Try once more after this long.
    Wait(Duration),
    /// Nothing is left to do.
    Rest,
}

/// The progress of the node.
#[derive(Debug)]
pub struct Progress {
    retry: Retry,
    /// What was last tried.
    tried: Option<Wanted>,
    /// How often that has failed in a row.
    failures: u32,
    /// When the last try ended.
    ended: Option<Instant>,
}

impl Progress {
    pub fn new(retry: Retry) -> Self {
        Self {
            retry,
            tried: None,
            failures: 0,
            ended: None,
        }
    }

    /// Returns what to do at `now` to reach `wanted`.
    pub fn next(&self, wanted: Wanted, now: Instant) -> Step {
        let Some(ended) = self.ended.filter(|_| self.tried == Some(wanted)) else {
            return Step::Do;
        };
        if self.failures == 0 {
            return Step::Rest;
        }
        let doubled = 2u32.saturating_pow(self.failures - 1);
        let pause = self.retry.first.saturating_mul(doubled);
        let left = pause
            .min(self.retry.most)
            .saturating_sub(now.saturating_duration_since(ended));
        if left.is_zero() {
            Step::Do
        } else {
            Step::Wait(left)
        }
    }

    /// Records that a try ended at `now`, and whether it went well.
    pub fn ended(&mut self, tried: Wanted, well: bool, now: Instant) {
        if self.tried != Some(tried) {
            self.failures = 0;
        }
        self.tried = Some(tried);
        self.failures = if well {
            0
        } else {
            self.failures.saturating_add(1)
        };
        self.ended = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn progress() -> (Progress, Instant) {
        let retry = Retry {
            first: 10 * SECOND,
            most: 60 * SECOND,
        };
        (Progress::new(retry), Instant::now())
    }

    #[test]
    fn progress_that_has_reached_what_is_wanted_rests() {
        let (mut progress, now) = progress();
        assert_eq!(progress.next(Wanted::Installed, now), Step::Do);
        progress.ended(Wanted::Installed, true, now);
        assert_eq!(progress.next(Wanted::Installed, now), Step::Rest);
        assert_eq!(
            progress.next(Wanted::Installed, now + 999 * SECOND),
            Step::Rest
        );
    }

    #[test]
    fn failure_is_tried_again_after_twice_as_long_each_time() {
        let (mut progress, mut now) = progress();
        for seconds in [10, 20, 40, 60, 60] {
            progress.ended(Wanted::Installed, false, now);
            let pause = seconds * SECOND;
            assert_eq!(progress.next(Wanted::Installed, now), Step::Wait(pause));
            assert_eq!(
                progress.next(Wanted::Installed, now + SECOND),
                Step::Wait(pause - SECOND)
            );
            now += pause;
            assert_eq!(progress.next(Wanted::Installed, now), Step::Do);
        }
    }

    #[test]
    fn failures_without_end_wait_for_the_longest_time() {
        let (mut progress, now) = progress();
        for _ in 0..100 {
            progress.ended(Wanted::Installed, false, now);
        }
        assert_eq!(
            progress.next(Wanted::Installed, now),
            Step::Wait(60 * SECOND)
        );
    }

    #[test]
    fn removal_waits_for_no_failed_installation() {
        let (mut progress, now) = progress();
        for _ in 0..5 {
            progress.ended(Wanted::Installed, false, now);
        }
        assert_eq!(progress.next(Wanted::Removed, now), Step::Do);
        progress.ended(Wanted::Removed, false, now);
        assert_eq!(progress.next(Wanted::Removed, now), Step::Wait(10 * SECOND));
    }

    #[test]
    fn removal_that_is_called_off_installs_again() {
        let (mut progress, now) = progress();
        progress.ended(Wanted::Installed, true, now);
        progress.ended(Wanted::Removed, true, now);
        assert_eq!(progress.next(Wanted::Installed, now), Step::Do);
    }
}
