//! Takes randomness from the host's kernel.

use super::error::FileError;

/// Fills `bytes` with randomness.
pub fn fill(bytes: &mut [u8]) -> Result<(), FileError> {
    getrandom::fill(bytes).map_err(|error| FileError {
        operation: "read randomness from",
        path: "getrandom(2)".into(),
        source: error.into(),
    })
}
