//! Text from data, made safe to stand in a message: nothing in it can move a cursor or hide a word.

const LONGEST: usize = 80;

/// `text` with control and direction-changing characters escaped, cut after 80 characters.
pub fn printable(text: &str) -> String {
    let mut out = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == LONGEST {
            out.push('…');
            break;
        }
        match c {
            '\n' | '\r' | '\t' => out.extend(c.escape_default()),
            // Zero-width and bidirectional controls print nothing and reorder what follows.
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
                out.extend(c.escape_unicode())
            }
            c if c.is_control() => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn no_escape_byte_survives() {
        assert_eq!(printable("a\u{1b}[2Jb\n\u{9b}c\u{202e}"), "a\\u{1b}[2Jb\\n\\u{9b}c\\u{202e}");
        assert_eq!(printable(&"x".repeat(100)).chars().count(), 81);
    }
}
