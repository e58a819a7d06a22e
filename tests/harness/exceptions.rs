//! Judges tests of other projects that run with runc and with Caisson. The tests that are allowed
//! to fail are listed, and each of them has to fail.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context, Result};
use serde::Deserialize;

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    Skipped,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        })
    }
}

/// Returns how many tests had each outcome, for the last line of a run.
pub fn count(outcomes: impl Iterator<Item = Outcome> + Clone) -> String {
    let of = |wanted| {
        outcomes
            .clone()
            .filter(|outcome| *outcome == wanted)
            .count()
    };
    format!(
        "{} passed, {} failed, {} skipped",
        of(Outcome::Passed),
        of(Outcome::Failed),
        of(Outcome::Skipped)
    )
}

/// The tests that are allowed to fail, each with the reason.
#[derive(Deserialize)]
pub struct Exceptions {
    /// Tests that fail already with runc.
    runc: BTreeMap<String, String>,
    /// Tests that fail with Caisson but pass with runc.
    caisson: BTreeMap<String, String>,
}

impl Exceptions {
    /// Reads the tables `runc` and `caisson` of a TOML text.
    pub fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).context("exceptions.toml")
    }

    /// Returns how many tests may pass with runc only.
    pub fn of_caisson(&self) -> usize {
        self.caisson.len()
    }

    /// Judges a test's outcomes. Returns a note, or an error where they differ from the tables.
    pub fn judge(
        &self,
        name: &str,
        runc: Outcome,
        caisson: Outcome,
    ) -> std::result::Result<&str, &'static str> {
        let fails_with_runc = runc == Outcome::Failed;
        let worse = match runc {
            Outcome::Passed => caisson != Outcome::Passed,
            Outcome::Failed | Outcome::Skipped => caisson == Outcome::Failed,
        };
        match (fails_with_runc, self.runc.get(name)) {
            (true, Some(reason)) => return Ok(reason),
            (true, None) => return Err("fails with runc: give the reason in exceptions.toml"),
            (false, Some(_)) => return Err("passes with runc: take it out of exceptions.toml"),
            (false, None) => {}
        }
        match (worse, self.caisson.get(name)) {
            (true, Some(reason)) => Ok(reason),
            (true, None) => Err("ends worse than with runc"),
            (false, Some(_)) => Err("no exception any more: take it out of exceptions.toml"),
            (false, None) => Ok(""),
        }
    }

    /// Returns a name in the tables that no test has.
    pub fn unknown(&self, is_test: impl Fn(&str) -> bool) -> Option<&str> {
        let mut all = self.runc.keys().chain(self.caisson.keys());
        all.find(|name| !is_test(name)).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::{Exceptions, Outcome::*};

    #[test]
    fn outcome_that_the_tables_do_not_say_is_an_error() {
        let text = "[runc]\nnever = \"no internet\"\n[caisson]\nhost = \"the host's\"\n";
        let exceptions = Exceptions::parse(text).unwrap();
        assert_eq!(exceptions.judge("good", Passed, Passed), Ok(""));
        assert_eq!(exceptions.judge("good", Skipped, Skipped), Ok(""));
        assert_eq!(exceptions.judge("never", Failed, Passed), Ok("no internet"));
        assert_eq!(exceptions.judge("host", Passed, Failed), Ok("the host's"));
        for (name, runc, caisson) in [
            ("good", Failed, Failed),
            ("good", Passed, Failed),
            ("good", Passed, Skipped),
            ("good", Skipped, Failed),
            ("never", Passed, Passed),
            ("host", Passed, Passed),
        ] {
            assert!(exceptions.judge(name, runc, caisson).is_err(), "{name}");
        }
        assert_eq!(exceptions.unknown(|name| name == "never"), Some("host"));
    }
}
