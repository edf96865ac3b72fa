//! Texts with a limit in bytes.

/// `text` without what goes beyond `bytes_max`, cut between two characters.
pub fn clipped(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_at_the_limit_between_characters() {
        let check = |text: &str, max, expected: &str| assert_eq!(clipped(text.to_owned(), max), expected);
        check("abc", 3, "abc");
        check("abcd", 3, "abc");
        check("aéé", 4, "aé");
        check("é", 1, "");
    }
}
