//! Logs the output of a process or of the guest's console line by line, and keeps the last lines
//! for error messages.
//!
//! The writer is not trusted. A line is cut at [`MAX_LINE`], and characters that could steer a
//! terminal are dropped. The reader slows a flood down to [`BYTES_PER_SECOND`] of logged text. It
//! keeps at most [`KEPT_BYTES`] in memory, however much is written.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{sleep, Instant},
};

/// The maximum number of bytes of a line; the rest of the line is dropped.
const MAX_LINE: usize = 1024;
/// The number of lines kept for errors. A kernel panic has about 50.
const KEPT_LINES: usize = 64;
/// The number of bytes kept for errors, which go into messages. A kernel panic has about 4 KiB.
const KEPT_BYTES: usize = 8 * 1024;
/// The assumed length of what a logged line has besides its text: time, level, pod, source.
const PREFIX: usize = 160;
/// The long-term rate at which a writer's output is logged, prefixes included.
const BYTES_PER_SECOND: u32 = 64 * 1024;
/// How much may be logged at once before the rate applies, as time at that rate: a guest's whole
/// boot log at `loglevel=7`.
const BURST: Duration = Duration::from_secs(4);

/// The last lines of a log. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    last: VecDeque<String>,
    /// How many lines there have been.
    count: u64,
}

impl Tail {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: String) {
        let Lines { last, count } = &mut *self.lines();
        *count += 1;
        last.push_back(line);
        let mut bytes: usize = last.iter().map(String::len).sum();
        while last.len() > KEPT_LINES || bytes > KEPT_BYTES {
            bytes -= last.pop_front().map_or(bytes, |line| line.len());
        }
    }

    /// The last lines, joined by newlines.
    pub(crate) fn text(&self) -> String {
        let lines = self.lines().last.iter().cloned().collect::<Vec<_>>();
        lines.join("\n")
    }

    /// Whether one of the last lines contains `text`.
    pub(crate) fn contains(&self, text: &str) -> bool {
        self.lines().last.iter().any(|line| line.contains(text))
    }

    /// How many lines there have been, those that are not kept included.
    pub(crate) fn count(&self) -> u64 {
        self.lines().count
    }
}

/// Reads `from` to its end. Each line goes to `log` and then into `tail`.
pub(crate) async fn follow(from: impl AsyncRead + Unpin, tail: Tail, log: impl Fn(&str)) {
    follow_but(from, tail, log, |_| false).await;
}

/// Like [`follow`], but skips the lines for which `takes` returns true.
pub(crate) async fn follow_but(
    mut from: impl AsyncRead + Unpin,
    tail: Tail,
    log: impl Fn(&str),
    mut takes: impl FnMut(&str) -> bool,
) {
    let mut line = Vec::new();
    let mut buffer = vec![0; 4096];
    // The time until which the logged output is paid for.
    let mut paid = Instant::now();
    let mut finish = |line: &mut Vec<u8>| {
        let text = plain(&String::from_utf8_lossy(line));
        line.clear();
        if text.is_empty() || takes(&text) {
            return 0;
        }
        // Double quotes are replaced, so that the text can't end its log field and begin another.
        log(&text.replace('"', "'"));
        let written = PREFIX + text.len();
        tail.push(text);
        written
    };
    loop {
        let length = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        let mut written = 0;
        for &byte in &buffer[..length] {
            if byte == b'\n' {
                written += finish(&mut line);
            } else if line.len() < MAX_LINE {
                line.push(byte);
            }
        }
        let cost = length.max(written) as u32;
        let now = Instant::now();
        paid = paid.max(now) + Duration::from_secs(1) * cost / BYTES_PER_SECOND;
        if paid > now + BURST {
            sleep(paid - now - BURST).await;
        }
    }
    finish(&mut line);
}

/// Removes from an untrusted text what could steer a terminal or change the displayed order:
/// control characters, so that no escape sequence is left, and Unicode's separators and direction
/// marks.
pub fn plain(text: &str) -> String {
    let steers = |c: &char| {
        (c.is_control() && *c != '\t')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    text.chars().filter(|c| !steers(c)).collect()
}

/// Like [`plain`], but makes one line: a space replaces each control character.
pub fn one_line(text: &str) -> String {
    plain(&text.replace(char::is_control, " "))
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
        let reordered = "a\u{202e}b\u{9b}c\u{2028}d\n";
        assert_eq!(tail_of(reordered.as_bytes()).await, "abcd");
    }

    #[tokio::test]
    async fn tail_is_bounded_in_bytes() {
        let long = format!("{}\n", "x".repeat(MAX_LINE)).repeat(100);
        let text = tail_of(long.as_bytes()).await;
        assert!((KEPT_BYTES / 2..=KEPT_BYTES + KEPT_LINES).contains(&text.len()));
    }

    #[tokio::test]
    async fn line_that_is_taken_is_not_logged() {
        let tail = Tail::default();
        let written: &[u8] = b"a\nwho?\nb\n";
        follow_but(written, tail.clone(), |_| {}, |line| line == "who?").await;
        assert_eq!(tail.text(), "a\nb");
    }

    #[tokio::test(start_paused = true)]
    async fn flood_is_slowed_down_to_the_rate() {
        let started = Instant::now();
        tail_of(&vec![b'\n'; 3 * 256 * 1024]).await;
        assert!(started.elapsed() >= Duration::from_secs(1));
    }

    /// Counts what is logged, prefixes included, while a guest writes lines of one byte each.
    #[tokio::test(start_paused = true)]
    async fn flood_of_short_lines_is_counted_as_it_is_written() {
        let started = Instant::now();
        let logged = std::cell::Cell::new(0);
        let log = |line: &str| logged.set(logged.get() + PREFIX + line.len());
        follow(b"x\n".repeat(100_000).as_slice(), Tail::default(), log).await;
        let most = BYTES_PER_SECOND * (started.elapsed() + BURST).as_secs() as u32;
        assert!(logged.get() <= most as usize + 4096 * PREFIX);
    }
}
