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
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the times in the order in which they were measured.
    pub fn in_order(&self) -> impl Iterator<Item = Duration> + '_ {
        self.times.iter().copied()
    }

    /// Returns the median; of two, the longer.
    pub fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    /// Returns the time that this share of all times are below.
    pub fn quantile(&self, share: f64) -> Duration {
        quantile(self.times.clone(), share)
    }

    /// Returns [`Series::ratio_to`] and the interval in which it is with 95 % confidence, by the
    /// bootstrap: rounds are drawn again and again, each with both of its times.
    pub fn interval_of_ratio_to(&self, other: &Series, resamples: usize) -> (f64, f64, f64) {
        let rounds = self.times.len().min(other.times.len());
        let mut random = fastrand::Rng::with_seed(1);
        let mut ratios: Vec<f64> = (0..resamples)
            .map(|_| {
                let drawn: Vec<_> = (0..rounds).map(|_| random.usize(..rounds)).collect();
                let median = |series: &Series| {
                    let times = drawn.iter().map(|round| series.times[*round]);
                    quantile(times.collect(), 0.5).as_secs_f64()
                };
                median(self) / median(other)
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        let at = |share: f64| ratios[(share * (resamples - 1) as f64) as usize];
        (self.ratio_to(other), at(0.025), at(0.975))
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
            self.times.iter().min().map_or(0, number),
            self.times.iter().max().map_or(0, number),
        );
    }
}

/// Returns the time that this share of the times are below.
pub fn quantile(mut times: Vec<Duration>, share: f64) -> Duration {
    times.sort();
    let at = (share * times.len() as f64) as usize;
    let at = at.min(times.len().saturating_sub(1));
    times.get(at).copied().unwrap_or_default()
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

/// Returns a time in milliseconds.
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
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
