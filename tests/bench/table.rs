//! Prints figures on the terminal.

use std::time::Duration;

/// What is measured beside the build before may take at most this many times as much.
const BEFORE_LIMIT: f64 = 1.03;

/// The times of one measurement.
pub struct Series {
    name: &'static str,
    times: Vec<Duration>,
}

impl Series {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            times: Vec::new(),
        }
    }

    pub fn add(&mut self, time: Duration) {
        self.times.push(time);
        self.times.sort();
    }

    /// Returns the median; of two, the longer.
    pub fn median(&self) -> Duration {
        self.times
            .get(self.times.len() / 2)
            .copied()
            .unwrap_or_default()
    }

    /// Returns how many times as long as `other` this takes, by the medians.
    pub fn ratio_to(&self, other: &Series) -> f64 {
        self.median().as_secs_f64() / other.median().as_secs_f64()
    }

    /// Prints the times of the build before, and how many times as long this one takes, if there
    /// are any. Returns whether that is within the limit.
    pub fn print_beside(&self, before: &Series) -> bool {
        if before.times.is_empty() {
            return true;
        }
        before.print();
        print_ratio_to_before(self.ratio_to(before))
    }

    pub fn print(&self) {
        self.print_in("ms", Duration::as_millis);
    }

    pub fn print_microseconds(&self) {
        self.print_in("µs", Duration::as_micros);
    }

    fn print_in(&self, unit: &str, number: fn(&Duration) -> u128) {
        println!(
            "  {:<56} median {:>6} {unit}   {:>6} to {:>6}",
            self.name,
            number(&self.median()),
            self.times.first().map_or(0, number),
            self.times.last().map_or(0, number),
        );
    }
}

/// Prints how many times as much something takes as with the build before. Returns whether that is
/// within the limit.
pub fn print_ratio_to_before(ratio: f64) -> bool {
    let kept = ratio <= BEFORE_LIMIT;
    println!(
        "  ratio to the build before {ratio:.3}, at most {BEFORE_LIMIT}: {}",
        verdict(kept)
    );
    kept
}

pub fn heading(text: &str) {
    println!("{text}");
}

pub fn verdict(kept: bool) -> &'static str {
    if kept {
        "kept"
    } else {
        "NOT KEPT"
    }
}

/// Formats bytes as MiB.
pub fn mib(bytes: u64) -> String {
    format!("{:>7.1} MiB", bytes as f64 / (1 << 20) as f64)
}
