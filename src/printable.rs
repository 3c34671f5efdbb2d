//! Text from data, made safe to show: nothing in it can move a cursor, reorder what is read, or hide a word.

use std::borrow::Cow;

/// Characters that [`excerpt`] shows.
const LONGEST: usize = 80;

/// `text` with everything escaped that a terminal would obey or that prints nothing: control characters (ESC, new
/// lines, C1), bidirectional overrides, zero-width characters, line separators.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match obeyed(c) {
            true => safe.extend(c.escape_default()),
            false => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

/// [`printable`], cut after 80 characters: for a message that quotes data.
pub fn excerpt(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        None => printable(text).into_owned(),
        Some((end, _)) => printable(&text[..end]).into_owned() + "…",
    }
}

fn obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_escape_byte_survives() {
        assert_eq!(printable("a\u{1b}[2Jb\n\u{9b}c\u{202e}"), "a\\u{1b}[2Jb\\n\\u{9b}c\\u{202e}");
        assert!(matches!(printable("plain — ä"), Cow::Borrowed(_)));
    }

    #[test]
    fn excerpts_are_cut_and_say_so() {
        assert_eq!(excerpt(&"ä".repeat(100)).chars().count(), 81);
        assert_eq!(excerpt(&"x".repeat(80)).len(), 80);
    }
}
