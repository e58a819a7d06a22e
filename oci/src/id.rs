//! Checks the ids of containers, sandboxes and execs.

use crate::{error::shorten, Error, Result};

/// The longest id: containerd's own limit (pkg/identifiers, `maxLength`) is 76 bytes.
pub const MAX_LENGTH: usize = 76;

/// Checks an id by containerd's rule (pkg/identifiers): letters and digits, joined by single `.`,
/// `_` or `-`.
///
/// Ids become names of files, mounts and cgroups on both sides, so nothing else may pass.
///
/// This is the rule for what users and containerd say. The agent has one of its own (`check_id` in
/// the guest), which lets every id pass that passes here: it only keeps a name from leading out of
/// its folder, also names that the shim makes, such as those of memory volumes. It shares no code
/// with this one, since host and guest have the protocol in common and nothing else.
pub fn check(id: &str) -> Result<()> {
    let refuse = |reason| {
        Err(Error::Id {
            shown: shorten(id),
            reason,
        })
    };
    if id.is_empty() {
        return refuse("is empty");
    }
    if id.len() > MAX_LENGTH {
        return refuse("is longer than 76 bytes");
    }
    let alphanumeric = |byte: u8| byte.is_ascii_alphanumeric();
    let separator = |byte: u8| matches!(byte, b'.' | b'_' | b'-');
    let bytes = id.as_bytes();
    if !bytes.iter().all(|b| alphanumeric(*b) || separator(*b)) {
        return refuse("has a character that is not a letter, a digit, '.', '_' or '-'");
    }
    if separator(bytes[0]) || separator(bytes[bytes.len() - 1]) {
        return refuse("starts or ends with '.', '_' or '-'");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn id_of_containerd_is_accepted() {
        for id in ["a", "web-1", "k8s_io.pod-1", &"f".repeat(64)] {
            check(id).unwrap();
        }
    }

    #[test]
    fn id_that_could_leave_its_folder_is_refused() {
        for id in ["", ".", "..", "a/b", "../x", "-rf", "a\nb", "a,b=c", "é"] {
            check(id).unwrap_err();
        }
    }

    #[test]
    fn id_of_4096_bytes_is_refused_with_a_short_message() {
        let message = check(&"a".repeat(4096)).unwrap_err().to_string();
        assert!(message.len() < 200, "{message}");
        assert!(message.contains("longer than 76 bytes"), "{message}");
    }
}
