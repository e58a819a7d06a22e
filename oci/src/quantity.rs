//! Parses amounts of bytes as Kubernetes writes them (apimachinery, `resource.Quantity`): `512Mi`,
//! `2G`, `1.5Gi`, `1e9`.

/// The suffixes, each with the factor that it multiplies by.
const SUFFIXES: &[(&str, u64)] = &[
    ("", 1),
    ("k", 1000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
];

/// Returns a quantity in bytes, rounded up, or `None` if it is invalid, negative or too large to be
/// counted.
pub fn bytes(text: &str) -> Option<u64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor = match suffix.strip_prefix(['e', 'E']) {
        Some(exponent) if !exponent.is_empty() => 10_u64.checked_pow(exponent.parse().ok()?)?,
        _ => SUFFIXES.iter().find(|(name, _)| *name == suffix)?.1,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // What can't be counted in bytes any more is not looked at.
    if whole.is_empty() || fraction.contains('.') || fraction.len() > 18 {
        return None;
    }
    let parts = 10_u128.pow(fraction.len() as u32);
    let fraction: u128 = match fraction {
        "" => 0,
        digits => digits.parse().ok()?,
    };
    let digits = whole.parse::<u64>().ok()?;
    let sum =
        u128::from(digits) * u128::from(factor) + (fraction * u128::from(factor)).div_ceil(parts);
    sum.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_does() {
        for (text, expected) in [
            ("0", 0),
            ("1000", 1000),
            ("512Mi", 512 << 20),
            ("2G", 2_000_000_000),
            ("1.5Gi", 3 << 29),
            ("1e3", 1000),
            ("0.1Ki", 103),
            ("1k", 1000),
        ] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_of_bytes_is_none() {
        for text in [
            "",
            "Mi",
            ".5",
            "-1",
            "+1",
            "1 Gi",
            "1gi",
            "1GiB",
            "1.2.3",
            "1e",
            "1e-3",
            "100m",
            "99999999999P",
            "1e99",
            "0x10",
            "٣",
        ] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
