//! Checks ids that the host gives.

use crate::{Error, Result};

/// Checks an id, which becomes the name of a directory.
pub fn check(field: &'static str, id: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"_+-.".contains(&b);
    let why = match id {
        "" | "." | ".." => "is no name",
        _ if id.len() > 200 => "is longer than 200 bytes",
        _ if !id.bytes().all(good) => "may have letters, digits and _+-. only",
        _ => return Ok(()),
    };
    Err(Error::Argument {
        field,
        value: id.chars().take(64).collect(),
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_that_is_no_file_name_is_refused() {
        for id in ["", ".", "..", "a/b", "a b", "a\n", &"x".repeat(201)] {
            assert!(check("container_id", id).is_err(), "{id:?}");
        }
        assert!(check("container_id", "a-1_2.3+b").is_ok());
    }
}
