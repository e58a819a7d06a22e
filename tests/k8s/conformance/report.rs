//! Reports the tests' results, for the terminal and as `docs/conformance.md`.

use std::{collections::BTreeMap, fmt::Write, fs};

use anyhow::{Context, Result};
use caisson_tests::{
    exceptions::{self, Outcome},
    paths,
};

use crate::{suite::Ended, Row};

/// Returns a line for each test that did not pass with both runtimes, and the sums.
pub fn text(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let note = match &row.note {
            Ok(reason) => reason.clone(),
            Err(wrong) => format!("<-- {wrong}: {} {}", row.runc.why, row.caisson.why),
        };
        if !passed_with_both(row) || row.note.is_err() {
            let (runc, caisson) = (row.runc.outcome, row.caisson.outcome);
            let _ = writeln!(text, "{runc:<8} {caisson:<8} {}\n    {note}", row.name);
        }
    }
    let (runc, caisson) = (sum(rows, |row| &row.runc), sum(rows, |row| &row.caisson));
    let _ = writeln!(text, "\nrunc:    {runc}\ncaisson: {caisson}");
    text
}

/// Writes the table for the documentation.
pub fn write(rows: &[Row], node: &str) -> Result<()> {
    let path = paths::workspace().join("docs/conformance.md");
    let dir = path.parent().context("a file's folder")?;
    fs::create_dir_all(dir)?;
    fs::write(&path, markdown(rows, node)).with_context(|| path.display().to_string())
}

fn markdown(rows: &[Row], node: &str) -> String {
    let mut text = format!(
        "# Conformance\n\n\
         Kubernetes' own end-to-end tests for nodes (`[NodeConformance]` of `k8s.io/kubernetes/test/e2e`), with runc and with Caisson as\n\
         containerd's default runtime, each on a cluster of one node: {node}. With Caisson the tests' pods get its RuntimeClass too\n\
         (`tests/k8s/conformance/class.yaml`), so that the memory that a VM takes is counted.\n\n\
         Written by `make conformance`; not a part of CI. The exceptions are named in `tests/k8s/conformance/exceptions.toml`.\n\n\
         | | |\n|---|---|\n| runc | {} |\n| Caisson | {} |\n",
        sum(rows, |row| &row.runc),
        sum(rows, |row| &row.caisson)
    );
    let mut others = rows.iter().filter(|row| !passed_with_both(row)).peekable();
    if others.peek().is_some() {
        text += "\n## Not passed with both\n\n| test | runc | Caisson | why |\n|---|---|---|---|\n";
    }
    for row in others {
        let note = row.note.as_deref().unwrap_or_else(|wrong| wrong);
        let note = if note.is_empty() { &row.runc.why } else { note };
        let (runc, caisson) = (row.runc.outcome, row.caisson.outcome);
        let _ = writeln!(
            text,
            "| {} | {runc} | {caisson} | {} |",
            cell(&row.name),
            cell(note)
        );
    }
    text += "\n## Passed with both\n\nSeconds are those of a test with its pods, three tests at once.\n";
    let mut groups: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows.iter().filter(|row| passed_with_both(row)) {
        groups.entry(group(&row.name)).or_default().push(row);
    }
    for (group, rows) in groups {
        let _ = writeln!(
            text,
            "\n### {}\n\n| test | runc, s | Caisson, s |\n|---|---:|---:|",
            cell(group)
        );
        for row in rows {
            let _ = writeln!(
                text,
                "| {} | {:.0} | {:.0} |",
                cell(row.name[group.len()..].trim()),
                row.runc.seconds,
                row.caisson.seconds
            );
        }
    }
    text
}

/// Returns the group, such as `[sig-node]`, that the tests' owners put into a name.
fn group(name: &str) -> &str {
    name.find(']').map_or("", |end| &name[..=end])
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('[', "\\[")
}

fn passed_with_both(row: &Row) -> bool {
    row.runc.outcome == Outcome::Passed && row.caisson.outcome == Outcome::Passed
}

fn sum(rows: &[Row], ended: impl Fn(&Row) -> &Ended + Copy) -> String {
    exceptions::count(rows.iter().map(|row| ended(row).outcome))
}
