//! Runs one external command as a visible step. A command that takes longer than two seconds is
//! announced, with repeated signs of life. Its output goes to `target/log/<step>.log`, and the end
//! of the log is shown if the command fails.

use std::{
    fs::File,
    path::Path,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{bail, Context, Result};
use nix::sys::{
    resource::{getrusage, UsageWho},
    time::TimeValLike,
};

/// The time after which a step is announced.
const QUIET: Duration = Duration::from_secs(2);
/// The time between two signs of life after that.
const BEAT: Duration = Duration::from_secs(15);
/// How many lines of the log a failure shows.
const TAIL: usize = 25;

/// The announced steps that this process has run.
static TAKEN: Mutex<Vec<Taken>> = Mutex::new(Vec::new());

/// How long a step took.
struct Taken {
    name: String,
    elapsed: Duration,
    cpu: Duration,
}

/// Prints how long each announced step took, the longest first, unless there was none.
pub fn print_times() {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    taken.sort_by_key(|step| std::cmp::Reverse(step.cpu));
    for Taken { name, elapsed, cpu } in taken.drain(..) {
        let (elapsed, cpu) = (elapsed.as_secs_f32(), cpu.as_secs_f32());
        eprintln!("  {name:<28} {elapsed:>6.1} s, {cpu:>6.1} s of CPU time");
    }
}

/// Returns the CPU time that all ended children of this process took.
pub fn cpu_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
    let both = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(
        both.num_microseconds().unsigned_abs(),
    ))
}

/// Returns the cargo that runs this program, or else the one in the `PATH`.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs `command` to its end; its output goes to `<log_dir>/<name>.log`.
pub fn run(log_dir: &Path, name: &str, command: &mut Command) -> Result<()> {
    let log_path = log_dir.join(format!("{name}.log"));
    let log = File::create(&log_path).with_context(|| format!("make {}", log_path.display()))?;
    let both = log.try_clone().context("share the log")?;
    let (started, cpu_before) = (Instant::now(), cpu_time()?);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(both)
        .spawn()
        .with_context(|| format!("{name}: start {}", command.get_program().display()))?;

    let mut next_sign = QUIET;
    let mut announced = false;
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("{name}: wait"))? {
            break status;
        }
        let elapsed = started.elapsed();
        if elapsed >= next_sign {
            eprintln!("  {name}: {} s ...", elapsed.as_secs());
            next_sign = elapsed + BEAT;
            announced = true;
        }
        std::thread::sleep(Duration::from_millis(20));
    };

    if !status.success() {
        let text = std::fs::read_to_string(&log_path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(TAIL)..] {
            eprintln!("    {line}");
        }
        bail!("{name}: {status}; the whole log is {}", log_path.display());
    }
    if announced {
        let elapsed = started.elapsed();
        eprintln!("  {name}: done in {:.1} s", elapsed.as_secs_f32());
        let taken = Taken {
            name: name.to_owned(),
            elapsed,
            cpu: cpu_time()?.saturating_sub(cpu_before),
        };
        TAKEN
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(taken);
    }
    Ok(())
}

/// Runs `command` and returns what it printed; its stderr goes to xtask's own.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().display().to_string();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", output.status);
    }
    Ok(output.stdout)
}
