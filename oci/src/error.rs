//! Why a container's description was refused.

/// A refusal. The text names the field, what is wrong with it and what to do: users read it in `ctr`'s output and in
/// `kubectl describe pod`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `config.json` can't be read as an OCI runtime spec.
    #[error("config.json is not an OCI runtime spec")]
    Spec(#[source] serde_json::Error),
    /// What an exec is to run can't be read as the runtime spec's `process` object.
    #[error("the process to be executed is not as the OCI runtime spec has it")]
    Exec(#[source] serde_json::Error),
    /// A field that must be there is not.
    #[error("config.json: {0} is missing")]
    Missing(&'static str),
    /// A field has a value that can't be.
    #[error("config.json: {field}: {reason}")]
    Field {
        /// Dotted path of the field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A rule of [`crate::rules`] says no.
    #[error("config.json: {field} {what} can't be honoured in a VM: {advice}")]
    Refused {
        /// Dotted path of the field.
        field: &'static str,
        /// The value in question, shortened.
        what: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// An annotation under `caisson.dev/`.
    #[error("annotation {key}: {reason}")]
    Annotation {
        /// The whole key.
        key: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A container or sandbox id.
    #[error("id {shown:?}: {reason}")]
    Id {
        /// The id, shortened.
        shown: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A configuration file of the node.
    #[error("configuration {file}")]
    Config {
        /// The file's path.
        file: String,
        /// Line, column and key, as the TOML reader says it.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A configuration value that parses and yet can't be.
    #[error("configuration: {key}: {reason}")]
    ConfigValue {
        /// Dotted path of the key.
        key: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

/// The result of a translation.
pub type Result<T> = std::result::Result<T, Error>;

/// At most 64 characters of `text`, for an error message.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
