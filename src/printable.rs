//! Text from data, made safe to show: nothing in it can move a cursor, reorder what is read, or hide a word.

use std::borrow::Cow;

/// Characters that [`excerpt`] shows.
const LONGEST: usize = 80;

/// `text` with everything escaped that a terminal would obey or that prints nothing: control characters (ESC, new
/// lines, C1), bidirectional overrides, zero-width characters, line separators.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, obeyed)
}

/// [`printable`] of each line.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c != '\n' && obeyed(c))
}

/// A text of any language to be read: new lines and tabs stay, and so do the zero-width characters that some scripts and
/// emoji are joined with.
pub fn prose(text: &str) -> Cow<'_, str> {
    escaped(text, |c| !matches!(c, '\n' | '\t') && (c.is_control() || reorders(c)))
}

fn escaped(text: &str, wanted: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&wanted) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match wanted(c) {
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

/// Turns round what follows, or stops that.
fn reorders(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
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
    fn lines_keep_their_ends_and_prose_its_joiners() {
        assert_eq!(lines("a\u{1b}[2J\r\nb\tc\n"), "a\\u{1b}[2J\\r\nb\\tc\n");
        let joined = "👩\u{200d}💻 می\u{200c}خواهم\n\tx";
        assert!(matches!(prose(joined), Cow::Borrowed(_)));
        assert_eq!(
            prose("a\u{1b}]0;b\u{7}\u{9b}2J\u{202e}c\r\u{2067}"),
            "a\\u{1b}]0;b\\u{7}\\u{9b}2J\\u{202e}c\\r\\u{2067}"
        );
    }

    #[test]
    fn excerpts_are_cut_and_say_so() {
        assert_eq!(excerpt(&"ä".repeat(100)).chars().count(), 81);
        assert_eq!(excerpt(&"x".repeat(80)).len(), 80);
    }
}
