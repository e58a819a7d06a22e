//! Makes text that a guest sent fit to be shown and logged.

use caisson_vmm::one_line;

/// Returns at most `most` bytes of a text from the guest, in one line and without anything that
/// could steer a terminal.
pub fn shorten(text: &str, most: usize) -> String {
    let text = one_line(text);
    match text.char_indices().find(|(at, c)| at + c.len_utf8() > most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_the_guest_is_cut_and_cleaned() {
        assert_eq!(shorten("a\x1b[31mb\n", 100), "a [31mb ");
        assert!(shorten(&"x".repeat(1 << 20), 2048).len() <= 2048 + 3);
    }
}
