//! The errors with which a container's description is refused.

/// A refusal. The text names the field, what is wrong with it and what to do. Users read it in the
/// output of `ctr` and of `kubectl describe pod`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `config.json` can't be read as an OCI runtime spec.
    #[error("config.json is not an OCI runtime spec")]
    Spec(#[source] Unread),
    /// The process of an exec can't be read as the runtime spec's `process` object.
    #[error("the process to be executed is not as the OCI runtime spec has it")]
    Exec(#[source] Unread),
    /// A required field is missing.
    #[error("config.json: {0} is missing")]
    Missing(&'static str),
    /// A field has an invalid value.
    #[error("config.json: {field}: {reason}")]
    Field {
        /// Dotted path of the field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A rule of [`crate::rules`] refuses the container.
    #[error("config.json: {field} {what} can't be honoured in a VM: {advice}")]
    Refused {
        /// Dotted path of the field.
        field: &'static str,
        /// The value in question, shortened.
        what: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// An annotation under `caisson.dev/` is invalid.
    #[error("annotation {key}: {reason}")]
    Annotation {
        /// The whole key.
        key: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A claim has something that can't be.
    #[error("claim: {what}: {reason}")]
    Claim {
        /// The variable or secret, shortened.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A container or sandbox id is invalid.
    #[error("id {shown:?}: {reason}")]
    Id {
        /// The id, shortened.
        shown: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A configuration file of the node can't be read.
    #[error("configuration {file}")]
    Config {
        /// The file's path.
        file: String,
        /// Line, column and key, as the TOML reader reports them.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A configuration value parses but is invalid.
    #[error("configuration: {key}: {reason}")]
    ConfigValue {
        /// Dotted path of the key.
        key: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A preset of the node is missing, or has a setting that it can't have.
    #[error("configuration: [presets.{preset}]: {reason}")]
    Preset {
        /// The preset's name, shortened.
        preset: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The policy refuses what a pod or container is.
    #[error("{what} {reason}")]
    Denied {
        /// The pod, or what the container asks for.
        what: String,
        /// Where it is not allowed, and what would allow it.
        reason: String,
    },
}

/// A JSON reader's message, shortened because it quotes what it read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unread(String);

impl From<serde_json::Error> for Unread {
    fn from(error: serde_json::Error) -> Self {
        const START: usize = 200;
        const END: usize = 60;
        let said = error.to_string().replace(char::is_control, " ");
        let length = said.chars().count();
        if length <= START + END {
            return Self(said);
        }
        // Keep the end, which has the line and column.
        let (start, end) = (said.chars().take(START), said.chars().skip(length - END));
        Self(start.chain(['…']).chain(end).collect())
    }
}

/// The result of a translation.
pub type Result<T> = std::result::Result<T, Error>;

/// Returns at most 64 characters of `text`, for an error message.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reader_quotes_is_cut_and_the_place_is_kept() {
        let text = format!("\"\\u001b[31m{}\"", "x".repeat(100_000));
        let error = serde_json::from_str::<bool>(&text).unwrap_err();
        let said = Unread::from(error).to_string();
        assert!(
            said.len() < 300 && said.contains(" at line 1 column 10001"),
            "{said}"
        );
        assert!(
            said.starts_with("invalid type: string") && !said.contains(char::is_control),
            "{said}"
        );
    }
}
