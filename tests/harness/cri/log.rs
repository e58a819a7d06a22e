//! Reads CRI's log format. Each line is `TIME STREAM TAG TEXT`; the tag is F for a whole line and P
//! for a part of one (kubernetes/design-proposals-archive, kubelet-cri-logging).

use std::{fs, path::Path, time::Duration};

use anyhow::{ensure, Context, Result};

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When containerd read the line, as the time since midnight in whatever time zone the log has.
    pub time: Duration,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether more of the same line follows.
    pub partial: bool,
    pub text: String,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Reads all whole lines of a log file. A line that is still being written is left out.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let text = String::from_utf8_lossy(&bytes);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .split('\n')
        .filter(|line| !line.is_empty())
        .map(|line| parse(line).with_context(|| format!("log line {line:?}")))
        .collect()
}

/// Returns what a process wrote to a stream.
pub fn text(lines: &[Line], stream: &str) -> String {
    let lines = lines.iter().filter(|line| line.stream == stream);
    lines
        .flat_map(|line| [line.text.as_str(), if line.partial { "" } else { "\n" }])
        .collect()
}

/// Returns the time between the first and the last of these lines.
pub fn span(lines: &[Line]) -> Duration {
    let (Some(first), Some(last)) = (lines.first(), lines.last()) else {
        return Duration::ZERO;
    };
    let midnight = if last.time < first.time {
        DAY
    } else {
        Duration::ZERO
    };
    (midnight + last.time).saturating_sub(first.time)
}

/// Parses the time in RFC 3339's `DATETtime+ZONE`.
fn time_of_day(text: &str) -> Option<Duration> {
    let (_, time) = text.split_once('T')?;
    let time = &time[..time.find(['Z', '+', '-'])?];
    let mut parts = time.split(':');
    let hours: u64 = parts.next()?.parse().ok()?;
    let minutes: u64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    let whole = Duration::from_secs(hours * 3600 + minutes * 60);
    Some(whole + Duration::try_from_secs_f64(seconds).ok()?)
}

fn parse(line: &str) -> Result<Line> {
    let mut fields = line.splitn(4, ' ');
    let mut field = |name: &'static str| fields.next().context(name);
    let time = field("no time")?;
    let time = time_of_day(time).context("no time")?;
    let stream = field("no stream")?;
    ensure!(["stdout", "stderr"].contains(&stream), "no stream");
    let tag = field("no tag")?;
    ensure!(["F", "P"].contains(&tag), "no tag");
    Ok(Line {
        time,
        stream: stream.to_owned(),
        partial: tag == "P",
        text: field("no text")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_lines_are_joined_and_streams_apart() {
        let lines: Vec<_> = [
            "2026-01-01T00:00:00.0Z stdout P one ",
            "2026-01-01T00:00:00.0Z stderr F other",
            "2026-01-01T00:00:00.0Z stdout F line",
            "2026-01-01T00:00:00.0Z stdout F ",
        ]
        .iter()
        .map(|line| parse(line).unwrap())
        .collect();
        assert_eq!(text(&lines, "stdout"), "one line\n\n");
        assert_eq!(text(&lines, "stderr"), "other\n");
    }

    #[test]
    fn span_over_midnight_is_that_between_the_lines() {
        let lines: Vec<_> = ["2026-01-01T23:59:59.5Z", "2026-01-02T00:00:01.0+00:00"]
            .iter()
            .map(|time| parse(&format!("{time} stdout F text")).unwrap())
            .collect();
        assert_eq!(span(&lines), Duration::from_millis(1500));
    }

    #[test]
    fn line_without_its_tag_is_refused() {
        assert!(parse("2026-01-01T00:00:00.0Z stdout hello").is_err());
    }
}
