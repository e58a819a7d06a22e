//! Somebody else's tests that run with runc and with Caisson: which of them may fail, and then have to.

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

/// How many of each, for the last line of a run.
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

/// Which tests may fail, each with the reason.
#[derive(Deserialize)]
pub struct Exceptions {
    /// With runc already.
    runc: BTreeMap<String, String>,
    /// With Caisson, though they pass with runc.
    caisson: BTreeMap<String, String>,
}

impl Exceptions {
    /// Reads the tables `runc` and `caisson` of a TOML text.
    pub fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).context("exceptions.toml")
    }

    /// How many tests may pass with runc only.
    pub fn of_caisson(&self) -> usize {
        self.caisson.len()
    }

    /// What a test's outcomes mean: a note, and an error where they are not as the tables say.
    pub fn judge(
        &self,
        name: &str,
        runc: Outcome,
        caisson: Outcome,
    ) -> std::result::Result<&str, &'static str> {
        let fails_with_runc = runc == Outcome::Failed;
        let worse = runc == Outcome::Passed && caisson != Outcome::Passed;
        match (fails_with_runc, self.runc.get(name)) {
            (true, Some(reason)) => return Ok(reason),
            (true, None) => return Err("fails with runc: give the reason in exceptions.toml"),
            (false, Some(_)) => return Err("passes with runc: take it out of exceptions.toml"),
            (false, None) => {}
        }
        match (worse, self.caisson.get(name)) {
            (true, Some(reason)) => Ok(reason),
            (true, None) => Err("passes with runc only"),
            (false, Some(_)) => Err("no exception any more: take it out of exceptions.toml"),
            (false, None) => Ok(""),
        }
    }

    /// A name in the tables that is no test's.
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
        assert_eq!(exceptions.judge("never", Failed, Passed), Ok("no internet"));
        assert_eq!(exceptions.judge("host", Passed, Failed), Ok("the host's"));
        for (name, runc, caisson) in [
            ("good", Failed, Failed),
            ("good", Passed, Failed),
            ("good", Passed, Skipped),
            ("never", Passed, Passed),
            ("host", Passed, Passed),
        ] {
            assert!(exceptions.judge(name, runc, caisson).is_err(), "{name}");
        }
        assert_eq!(exceptions.unknown(|name| name == "never"), Some("host"));
    }
}
