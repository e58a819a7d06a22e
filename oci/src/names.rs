//! The forms that names, versions and digests have in annotations, files and registries.

/// Returns whether `hex` is 64 lower-case hex digits.
pub fn is_sha256(hex: &str) -> bool {
    hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns whether `name` can safely name a file and a mount point: 1 to 63 letters, digits, `.`,
/// `_` or `-`, starting with a letter or digit.
pub fn is_plain_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

/// Returns whether `version` can be a skill's version. It may become a tag in an OCI registry, so
/// it has to be a valid one (distribution-spec, "Pulling manifests").
pub fn is_version(version: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = version.as_bytes();
    (1..=128).contains(&bytes.len())
        && word(bytes[0])
        && bytes.iter().all(|&b| word(b) || matches!(b, b'.' | b'-'))
}
