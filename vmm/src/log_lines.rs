//! What a process or the guest's console writes: logged line by line, and the last lines kept for errors.
//!
//! The writer is not trusted: a line is cut at [`MAX_LINE`], control characters are dropped, the reader slows a flood
//! down to [`BYTES_PER_SECOND`], and memory is [`KEPT_LINES`] lines, however much is written.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{sleep, Instant},
};

/// Bytes of a line that are kept; the rest of it is dropped.
const MAX_LINE: usize = 1024;
/// Lines kept for errors: a kernel's panic has about 50.
const KEPT_LINES: usize = 64;
/// What is read from a writer in the long run.
const BYTES_PER_SECOND: u32 = 256 * 1024;
/// What may be read at once before the rate counts: a guest's whole boot log at `loglevel=7`.
const BURST: Duration = Duration::from_secs(1);

/// The last lines of a log. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// The last lines, joined by newlines.
    pub(crate) fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().cloned().collect::<Vec<_>>().join("\n")
    }

    /// Whether one of the last lines contains `text`.
    pub(crate) fn contains(&self, text: &str) -> bool {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().any(|line| line.contains(text))
    }
}

/// Reads `from` to its end: each line goes to `log` and then into `tail`.
pub(crate) async fn follow(mut from: impl AsyncRead + Unpin, tail: Tail, log: impl Fn(&str)) {
    let mut line = Vec::new();
    let mut buffer = vec![0; 4096];
    // The time at which all that was read is paid for.
    let mut paid = Instant::now();
    loop {
        let length = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        for &byte in &buffer[..length] {
            if byte == b'\n' {
                finish(&mut line, &tail, &log);
            } else if line.len() < MAX_LINE {
                line.push(byte);
            }
        }
        let now = Instant::now();
        paid = paid.max(now) + Duration::from_secs(1) * length as u32 / BYTES_PER_SECOND;
        if paid > now + BURST {
            sleep(paid - now - BURST).await;
        }
    }
    finish(&mut line, &tail, &log);
}

fn finish(line: &mut Vec<u8>, tail: &Tail, log: &impl Fn(&str)) {
    let text: String = String::from_utf8_lossy(line)
        .chars()
        .filter(|c| !c.is_control() || *c == '\t')
        .collect();
    line.clear();
    if !text.is_empty() {
        log(&text);
        tail.push(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn tail_of(written: &[u8]) -> String {
        let tail = Tail::default();
        follow(written, tail.clone(), |_| {}).await;
        tail.text()
    }

    #[tokio::test]
    async fn tail_of_many_lines_is_the_last_ones() {
        let written: String = (0..100).map(|n| format!("line {n}\r\n")).collect();
        let text = tail_of(written.as_bytes()).await;
        assert_eq!(text.lines().count(), KEPT_LINES);
        assert!(text.starts_with("line 36\n") && text.ends_with("line 99"));
    }

    #[tokio::test]
    async fn endless_line_is_cut() {
        assert_eq!(tail_of(&vec![b'x'; 100_000]).await.len(), MAX_LINE);
    }

    #[tokio::test]
    async fn control_characters_are_dropped() {
        assert_eq!(tail_of(b"\x1b[31mred\x07\n").await, "[31mred");
    }

    #[tokio::test(start_paused = true)]
    async fn flood_is_slowed_down_to_the_rate() {
        let started = Instant::now();
        tail_of(&vec![b'\n'; 3 * BYTES_PER_SECOND as usize]).await;
        assert!(started.elapsed() >= Duration::from_secs(1));
    }
}
