//! `cargo xtask timings`: tells which crates the programs of the demo take their time to build for.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::{dirs::Dirs, dist, files, image, pins::Pins, profile::Profile, step};

/// The report that cargo writes, below its target folder.
const REPORT: &str = "cargo-timings/cargo-timing.html";
/// What stands before the list of what was compiled: an array in JSON.
const UNITS: &str = "const UNIT_DATA = ";
/// How many crates are shown.
const SHOWN: usize = 30;

/// What cargo compiled or ran, as far as it is read.
#[derive(Deserialize)]
struct Unit {
    name: String,
    version: String,
    /// In seconds.
    duration: f64,
}

/// Builds the programs from nothing, one crate at a time, and prints what each crate took.
pub fn print(dirs: &Dirs) -> Result<()> {
    let target = dirs.target.join("timings");
    files::remove_dir(&target)?;
    let fresh = Dirs {
        target: target.clone(),
        ..dirs.clone()
    };
    let programs = dist::cargo_for_demo(&fresh, Pins::Prefer, Profile::Dev);
    let agent = image::cargo_of_agent(&fresh, Pins::Prefer, Profile::Dev);
    for (name, mut cargo) in [("shim and command", programs), ("agent", agent)] {
        // Alone, a crate has a whole cpu: its seconds are seconds of CPU time.
        step::run(&dirs.log, name, cargo.args(["--timings", "--jobs=1"]))?;
        let crates = by_crate(&files::read_text(&target.join(REPORT))?)?;
        let all: f64 = crates.iter().map(|(_, seconds)| seconds).sum();
        println!("{name}: {all:.0} s, {} crates", crates.len());
        for (krate, seconds) in crates.iter().take(SHOWN) {
            println!("{seconds:>8.1} s  {krate}");
        }
    }
    files::remove_dir(&target)
}

/// Returns the seconds of each crate, those with the most first. A crate that is compiled for
/// several purposes is counted once, with all its seconds.
fn by_crate(report: &str) -> Result<Vec<(String, f64)>> {
    let (_, after) = report
        .split_once(UNITS)
        .with_context(|| format!("cargo's report of its times has no {UNITS:?}"))?;
    let units = serde_json::Deserializer::from_str(after)
        .into_iter::<Vec<Unit>>()
        .next()
        .context("cargo's report of its times ends too soon")?
        .context("understand cargo's report of its times")?;
    let mut seconds = BTreeMap::<String, f64>::new();
    for unit in units {
        *seconds
            .entry(format!("{} {}", unit.name, unit.version))
            .or_default() += unit.duration;
    }
    let mut seconds: Vec<_> = seconds.into_iter().collect();
    seconds.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_of_a_crate_are_those_of_its_library_and_its_build_script() {
        let report = r#"<script>const UNIT_DATA = [
            {"i": 0, "name": "a", "version": "1", "target": " build-script", "duration": 1.5},
            {"i": 1, "name": "b", "version": "1", "target": "", "duration": 2},
            {"i": 2, "name": "a", "version": "1", "target": "", "duration": 0.75}];
            const CONCURRENCY_DATA = [];</script>"#;
        let expected = [("a 1".to_owned(), 2.25), ("b 1".to_owned(), 2.0)];
        assert_eq!(by_crate(report).unwrap(), expected[..].to_vec());
    }

    #[test]
    fn report_without_units_is_refused() {
        assert!(by_crate("<script></script>").is_err());
    }
}
