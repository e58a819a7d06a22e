//! Runs programs of the node to their end: containerd's own, systemctl, `caisson run`.

use std::{
    fs::File,
    io::Read,
    os::fd::OwnedFd,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{bail, Context, Result};

/// Runs a program to its end, for which it has the time `limit`.
pub fn output(command: &mut Command, limit: Duration) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {name}"))?;
    let collect = |pipe: Option<File>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            // Output that cannot be read is treated as empty.
            pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
            bytes
        })
    };
    let stdout = collect(
        child
            .stdout
            .take()
            .map(|pipe| File::from(OwnedFd::from(pipe))),
    );
    let stderr = collect(
        child
            .stderr
            .take()
            .map(|pipe| File::from(OwnedFd::from(pipe))),
    );
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().context("wait")? {
            break status;
        }
        if Instant::now() > end {
            child.kill().and_then(|()| child.wait()).context("kill")?;
            bail!("{name}: not within {limit:?}");
        }
        thread::sleep(Duration::from_millis(10));
    };
    Ok(Output {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

/// Returns the end of what a program wrote, which says why it failed.
pub fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(5)..].join("; ")
}
