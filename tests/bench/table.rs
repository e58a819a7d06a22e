//! Prints figures on the terminal.

use std::time::Duration;

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
