//! `cargo xtask prose`: checks that no line of prose is too long for a reader's window.
//!
//! Prose is the text of comments and of pages of documentation. Code has rustfmt, and the rows of a
//! table can't be split.

use std::process::Command;

use anyhow::{bail, Result};

use crate::{dirs::Dirs, files, step};

/// The longest line, in characters.
const MAX: usize = 100;
/// Files that are not written by hand: a page that `make conformance` and `make cri` write, and
/// inputs of tests.
const OTHERS: [&str; 3] = [
    "docs/conformance.md",
    "deploy/node/tests/configs/",
    "tests/fuzz/corpus/",
];

/// Checks every file that git tracks.
pub fn check(dirs: &Dirs) -> Result<()> {
    let mut git = Command::new("git");
    git.arg("-C").arg(&dirs.root).args(["ls-files", "-z", "--"]);
    git.args(["*.rs", "*.md", "*.toml", "*.yaml", "Makefile"]);
    let names = String::from_utf8_lossy(&step::output(&mut git)?).into_owned();
    let mut found = Vec::new();
    let ours = |name: &&str| !OTHERS.iter().any(|other| name.starts_with(other));
    for name in names.split_terminator('\0').filter(ours) {
        let text = files::read_text(&dirs.root.join(name))?;
        let long = long_lines(name, &text);
        found.extend(long.map(|(number, length)| format!("{name}:{number}: {length} characters")));
    }
    if !found.is_empty() {
        bail!(
            "prose has at most {MAX} characters a line:\n{}",
            found.join("\n")
        );
    }
    Ok(())
}

/// Returns the numbers and lengths of the lines that are too long.
fn long_lines<'t>(name: &'t str, text: &'t str) -> impl Iterator<Item = (usize, usize)> + 't {
    let mut is_code = false;
    let lines = text.lines().enumerate();
    lines.filter_map(move |(index, line)| {
        let start = line.trim_start();
        let is_prose = match name.rsplit_once('.') {
            Some((_, "md")) => {
                is_code ^= start.starts_with("```");
                !is_code && !start.starts_with('|')
            }
            Some((_, "rs")) => {
                start.starts_with("//")
                    && !start.trim_start_matches(['/', '!', ' ']).starts_with('|')
            }
            _ => start.starts_with('#'),
        };
        let length = line.chars().count();
        (is_prose && length > MAX).then_some((index + 1, length))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, text: &str) -> Vec<(usize, usize)> {
        long_lines(name, text).collect()
    }

    #[test]
    fn long_comment_is_found_and_long_code_is_not() {
        let text = format!("let x = \"{0}\";\n    // {0}\n", "x".repeat(MAX));
        assert_eq!(found("a/b.rs", &text), [(2, MAX + 7)]);
        assert_eq!(found("b.toml", &format!("# {}", "x".repeat(MAX))).len(), 1);
    }

    #[test]
    fn rows_of_tables_and_blocks_of_code_may_be_long() {
        let long = "x".repeat(MAX);
        let text = format!("| {long} |\n```text\n{long}\n```\n{long}y\n");
        assert_eq!(found("a.md", &text), [(5, MAX + 1)]);
        assert!(found("a.rs", &format!("//! | {long} |\n")).is_empty());
    }
}
