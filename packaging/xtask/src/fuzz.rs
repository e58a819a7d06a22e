//! `cargo xtask fuzz`: runs the targets under `tests/fuzz` one after the other.
//! `tests/fuzz/instrument` instruments them.
//!
//! ```text
//! tests/fuzz/corpus/TARGET       the seeds
//! tests/fuzz/dictionaries/TARGET words that libFuzzer puts into inputs
//! tests/fuzz/artifacts/TARGET    inputs that something was found by
//! target/fuzz/corpus/TARGET      what runs have found to reach more code
//! ```

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{bail, Context, Result};
use nix::fcntl::Flock;

use crate::{dirs::Dirs, files, step};

/// Given to cargo so that it tells what is for the build itself from what is instrumented.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Runs of fewer seconds than this are short: they are the same each time, as far as time allows.
const SHORT: i64 = 60;
/// The time limit for one input, in seconds. A busy machine may let a run wait for longer than any
/// input takes; what an input takes, the log says (`slowest_unit_time_sec`).
const INPUT_LIMIT: u32 = 100;
/// The most memory that a target may have, with its corpus.
const MEMORY_LIMIT_MIB: u32 = 1024;
/// The largest input, in bytes.
const MAX_INPUT: u32 = 16 << 10;
/// How many lines of a finding are shown.
const TAIL: usize = 40;

/// Builds the targets and runs each of them, or only the named ones, for this many seconds of CPU
/// time.
pub fn run(dirs: &Dirs, lock: Flock<File>, seconds: i64, wanted: &[&str]) -> Result<()> {
    let all = targets(dirs)?;
    let names: Vec<_> = all.iter().map(|target| target.name.as_str()).collect();
    if let Some(unknown) = wanted.iter().find(|name| !names.contains(name)) {
        bail!(
            "there is no target {unknown:?}; there are {}",
            names.join(", ")
        );
    }
    let programs = build(dirs)?;
    // Let others build while this runs.
    drop(lock);
    let mut failed = Vec::new();
    for target in &all {
        if wanted.is_empty() || wanted.contains(&target.name.as_str()) {
            if let Err(error) = run_one(dirs, &programs, target, seconds) {
                eprintln!("xtask: {}: {error:#}", target.name);
                failed.push(target.name.as_str());
            }
        }
    }
    if !failed.is_empty() {
        bail!("something was found by {}", failed.join(", "));
    }
    Ok(())
}

/// A program under `tests/fuzz/targets`.
struct Target {
    name: String,
    /// A folder of further inputs, besides the target's own.
    seeds: Option<PathBuf>,
}

fn targets(dirs: &Dirs) -> Result<Vec<Target>> {
    let path = dirs.root.join("tests/fuzz/Cargo.toml");
    let manifest: toml::Table = toml::from_str(&files::read_text(&path)?)
        .with_context(|| format!("understand {}", path.display()))?;
    let seeds = |name: &str| {
        let metadata = manifest.get("package")?.get("metadata")?;
        let folder = metadata.get("seeds")?.get(name)?.as_str()?;
        Some(dirs.root.join(folder))
    };
    let programs = manifest.get("bin").and_then(|bins| bins.as_array());
    let names = programs
        .into_iter()
        .flatten()
        .filter_map(|bin| bin.get("name")?.as_str());
    let target = |name: &str| Target {
        name: name.to_owned(),
        seeds: seeds(name),
    };
    Ok(names.map(target).collect())
}

/// Builds all targets. Returns the folder that they are in.
fn build(dirs: &Dirs) -> Result<PathBuf> {
    let here = dirs.root.join("tests/fuzz");
    let target_dir = dirs.target.join("fuzz");
    // No sanitizer is used: almost nothing here is unsafe, and stable Rust has no sanitizers.
    let mut cargo = step::cargo();
    cargo
        .args(["build", "--release", "--bins", "--target", TRIPLE])
        .arg("--manifest-path")
        .arg(here.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTC_WRAPPER", here.join("instrument"))
        .current_dir(&dirs.root);
    step::run(&dirs.log, "fuzz-build", &mut cargo)?;
    Ok(target_dir.join(TRIPLE).join("release"))
}

fn run_one(dirs: &Dirs, programs: &Path, target: &Target, seconds: i64) -> Result<()> {
    let Target {
        name: target,
        seeds,
    } = target;
    let here = dirs.root.join("tests/fuzz");
    let (corpus, found) = (
        dirs.target.join("fuzz/corpus").join(target),
        here.join("artifacts").join(target),
    );
    files::make_dir(&corpus)?;
    files::make_dir(&found)?;
    let own = here.join("corpus").join(target);
    let folders: Vec<_> = [Some(&own), seeds.as_ref()]
        .into_iter()
        .flatten()
        .filter(|folder| folder.exists())
        .collect();
    let dictionary = here.join("dictionaries").join(target);
    let log_path = dirs.log.join(format!("fuzz-{target}.log"));
    let started = cpu_seconds()?;
    let mut executions = 0;
    loop {
        let left = seconds - (cpu_seconds()? - started);
        if left <= 0 {
            break;
        }
        let log =
            File::create(&log_path).with_context(|| format!("make {}", log_path.display()))?;
        let mut command = Command::new(programs.join(target));
        command
            .arg(&corpus)
            .args(&folders)
            .arg(format!("-max_total_time={left}"))
            .arg(format!("-timeout={INPUT_LIMIT}"))
            .arg(format!("-rss_limit_mb={MEMORY_LIMIT_MIB}"))
            .arg(format!("-max_len={MAX_INPUT}"))
            .arg(format!("-artifact_prefix={}/", found.display()))
            .args(["-print_final_stats=1", "-reload=0", "-len_control=20"])
            .current_dir(&dirs.root)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log);
        if dictionary.exists() {
            command.arg(format!("-dict={}", dictionary.display()));
        }
        if seconds < SHORT {
            command.arg("-seed=1");
        }
        let status = command
            .status()
            .with_context(|| format!("start {target}"))?;
        let text = String::from_utf8_lossy(&files::read(&log_path)?).into_owned();
        if !status.success() {
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(TAIL)..] {
                eprintln!("    {line}");
            }
            bail!(
                "{status}; the input is in {}, the whole log in {}",
                found.display(),
                log_path.display()
            );
        }
        executions += number_after(&text, "stat::number_of_executed_units:");
        if seconds < SHORT {
            // For a short run, the clock's seconds are enough.
            break;
        }
    }
    let text = String::from_utf8_lossy(&files::read(&log_path)?).into_owned();
    println!(
        "fuzz {target}: nothing found in {executions} executions and {} s of CPU time; {} edges, {} MiB",
        cpu_seconds()? - started,
        number_after(&text, " cov:"),
        number_after(&text, "stat::peak_rss_mb:"),
    );
    Ok(())
}

/// Returns the number after the last occurrence of a word, or 0.
fn number_after(text: &str, word: &str) -> u64 {
    let after = text.rsplit_once(word).map_or("", |(_, after)| after);
    let number = after.split_whitespace().next();
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_default()
}

/// Returns the CPU time of all programs that this one has waited for.
fn cpu_seconds() -> Result<i64> {
    Ok(step::cpu_time()?.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_number_after_a_word_is_read() {
        let text = "#1 INITED cov: 7 ft: 8\n#2 DONE   cov: 12 ft: 30\nstat::peak_rss_mb: 44";
        assert_eq!(number_after(text, " cov:"), 12);
        assert_eq!(number_after(text, "stat::peak_rss_mb:"), 44);
        assert_eq!(number_after("", " cov:"), 0);
    }
}
