//! CRI's log format: `TIME STREAM TAG TEXT` a line, where the tag is F for a whole line and P for a part of one
//! (kubernetes/design-proposals-archive, kubelet-cri-logging).

use std::{fs, path::Path};

use anyhow::{ensure, Context, Result};

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether more of the same line follows.
    pub partial: bool,
    pub text: String,
}

/// All whole lines of a log file; a line that is just being written is left out.
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

/// What a process wrote to a stream.
pub fn text(lines: &[Line], stream: &str) -> String {
    let lines = lines.iter().filter(|line| line.stream == stream);
    lines
        .flat_map(|line| [line.text.as_str(), if line.partial { "" } else { "\n" }])
        .collect()
}

fn parse(line: &str) -> Result<Line> {
    let mut fields = line.splitn(4, ' ');
    let mut field = |name: &'static str| fields.next().context(name);
    let time = field("no time")?;
    ensure!(time.contains('T'), "no time");
    let stream = field("no stream")?;
    ensure!(["stdout", "stderr"].contains(&stream), "no stream");
    let tag = field("no tag")?;
    ensure!(["F", "P"].contains(&tag), "no tag");
    Ok(Line {
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
    fn line_without_its_tag_is_refused() {
        assert!(parse("2026-01-01T00:00:00.0Z stdout hello").is_err());
    }
}
