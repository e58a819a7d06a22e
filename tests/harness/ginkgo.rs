//! Reads the reports of test programs that are written with Ginkgo (`--ginkgo.json-report`).

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::exceptions::Outcome;

/// The result of a test.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    pub outcome: Outcome,
    pub seconds: f64,
    /// The first line of a failure, or why the test was skipped.
    pub why: String,
}

/// Reads a report. Tests that were not selected are left out.
pub fn read(path: &Path) -> Result<BTreeMap<String, Ended>> {
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &[u8]) -> Result<BTreeMap<String, Ended>> {
    let reports: Value = serde_json::from_slice(text)?;
    let specs = reports[0]["SpecReports"].as_array();
    let specs = specs.context("a report without tests")?.iter();
    let mut ended = BTreeMap::new();
    for spec in specs.filter(|spec| spec["LeafNodeType"] == "It") {
        let state = spec["State"].as_str().unwrap_or_default();
        let failure = &spec["Failure"]["Message"];
        let outcome = match state {
            "passed" => Outcome::Passed,
            // A test that skipped itself gives a reason. A test that was not selected does not.
            "skipped" | "pending" if failure.as_str().is_none_or(str::is_empty) => continue,
            "skipped" => Outcome::Skipped,
            _ => Outcome::Failed,
        };
        let why = failure.as_str().unwrap_or_default();
        ended.insert(
            name(spec),
            Ended {
                outcome,
                seconds: spec["RunTime"].as_f64().unwrap_or_default() / 1e9,
                why: why.lines().next().unwrap_or_default().to_owned(),
            },
        );
    }
    Ok(ended)
}

/// Returns a test's name as in the tests' own reports.
fn name(spec: &Value) -> String {
    let texts = spec["ContainerHierarchyTexts"].as_array();
    let texts = texts.into_iter().flatten().chain([&spec["LeafNodeText"]]);
    texts
        .filter_map(Value::as_str)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Returns the regular expression for `--focus` that selects the tests with this text in their
/// names.
pub fn focus(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == ' ';
    text.chars()
        .flat_map(|c| (!plain(c)).then_some('\\').into_iter().chain([c]))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(state: &str, message: &str) -> Value {
        json!({
            "LeafNodeType": "It",
            "ContainerHierarchyTexts": ["[k8s.io] Pod", "when it runs"],
            "LeafNodeText": format!("ends as {state} {message}"),
            "State": state,
            "RunTime": 2_500_000_000_u64,
            "Failure": { "Message": message },
        })
    }

    #[test]
    fn report_has_the_tests_that_were_selected() {
        let report = json!([{ "SpecReports": [
            { "LeafNodeType": "BeforeSuite", "State": "passed" },
            spec("passed", ""),
            spec("timedout", "late\nand more"),
            spec("skipped", "no AppArmor"),
            spec("skipped", ""),
            spec("pending", ""),
        ]}]);
        let ended = parse(report.to_string().as_bytes()).unwrap();
        let found: Vec<_> = ended
            .iter()
            .map(|(name, ended)| (name.as_str(), ended.outcome, ended.why.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                (
                    "[k8s.io] Pod when it runs ends as passed ",
                    Outcome::Passed,
                    ""
                ),
                (
                    "[k8s.io] Pod when it runs ends as skipped no AppArmor",
                    Outcome::Skipped,
                    "no AppArmor"
                ),
                (
                    "[k8s.io] Pod when it runs ends as timedout late\nand more",
                    Outcome::Failed,
                    "late"
                ),
            ]
        );
        assert!(ended.values().all(|ended| ended.seconds == 2.5));
        assert!(parse(b"[]").is_err());
    }

    #[test]
    fn focus_matches_the_text_and_no_pattern() {
        assert_eq!(focus("Pods [Slow] a+b"), r"Pods \[Slow\] a\+b");
    }
}
