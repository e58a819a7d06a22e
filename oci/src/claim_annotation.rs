//! `caisson.dev/claim`: asks the agent of the pod's node to claim the pod ([`crate::claim`]).
//!
//! An orchestrator sets it on a pod that runs already. Its value is a JSON object:
//!
//! ```json
//! {"skills": "pdf@1.2", "home": "persistent/alice", "env": {"TEAM": "blue"}, "secret": "keys"}
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{error::shorten, names::is_plain_name, Error, Result};

/// The annotation. In the policy, it is the key that says which namespaces' pods may be claimed.
pub const KEY: &str = "caisson.dev/claim";

/// What the annotation asks for. Every field can be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Asked {
    /// The value of `caisson.dev/skills`.
    pub skills: Option<String>,
    /// The value of `caisson.dev/home`.
    pub home: Option<String>,
    /// The value of `caisson.dev/home-size`.
    pub home_size: Option<String>,
    /// The value of `caisson.dev/home-path`.
    pub home_path: Option<String>,
    /// Variables by their names.
    pub env: BTreeMap<String, String>,
    /// The Secret of the pod's namespace whose keys become variables.
    pub env_from: Option<String>,
    /// The Secret whose keys become files.
    pub secret: Option<String>,
    /// The Secret whose keys become open descriptors, with the keys as the variables' names.
    pub secret_fd: Option<String>,
}

impl Asked {
    /// Parses the annotation's value.
    ///
    /// # Errors
    /// It is no JSON object, has a field that is not known, or names a Secret that can't be.
    pub fn parse(value: &str) -> Result<Self> {
        let refuse = |reason: String| Error::Annotation {
            key: KEY.to_owned(),
            reason,
        };
        // Serde would take an array for the fields in their order.
        if !value.trim_start().starts_with('{') {
            return Err(refuse("is not a JSON object".to_owned()));
        }
        let asked: Self =
            serde_json::from_str(value).map_err(|error| refuse(format!("as JSON: {error}")))?;
        for name in [&asked.env_from, &asked.secret, &asked.secret_fd]
            .into_iter()
            .flatten()
        {
            if !is_plain_name(name) {
                let shown = shorten(name);
                return Err(refuse(format!("{shown:?} is not the name of a Secret")));
            }
        }
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_parsed_with_the_names_of_the_secrets() {
        let asked = Asked::parse(r#"{"homeSize": "1Gi", "secretFd": "keys", "env": {"A": "1"}}"#);
        let asked = asked.unwrap();
        assert_eq!(asked.home_size.as_deref(), Some("1Gi"));
        assert_eq!(asked.secret_fd.as_deref(), Some("keys"));
        assert_eq!(asked.env["A"], "1");
        assert_eq!(Asked::parse("{}").unwrap(), Asked::default());
    }

    #[test]
    fn value_that_cannot_be_is_refused_by_the_key() {
        for value in [
            "",
            "[]",
            "pdf@1",
            r#"{"skill": "pdf@1"}"#,
            r#"{"secret": "../x"}"#,
        ] {
            let error = Asked::parse(value).unwrap_err().to_string();
            assert!(
                error.starts_with("annotation caisson.dev/claim: "),
                "{error}"
            );
        }
    }
}
