//! Writes an error with its causes in one line, as users and logs get it.

use std::error::Error;

/// Joins `error` and its causes with colons. Omits a cause that repeats the end of the text before
/// it.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
