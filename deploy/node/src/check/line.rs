//! One line of what `caisson check` prints.

use serde::Serialize;

/// The result of a check. Only `Fail` keeps VMs from running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    Ok,
    Warn,
    Fail,
}

/// One thing that was checked.
#[derive(Debug, Serialize)]
pub struct Line {
    pub standing: Standing,
    pub name: &'static str,
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub todo: Option<String>,
}

impl Line {
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            standing: Standing::Ok,
            name,
            found: found.into(),
            todo: None,
        }
    }

    pub fn warn(name: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            standing: Standing::Warn,
            todo: Some(todo.into()),
            ..Self::ok(name, found)
        }
    }

    pub fn fail(name: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            standing: Standing::Fail,
            ..Self::warn(name, found, todo)
        }
    }
}
