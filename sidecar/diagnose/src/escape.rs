//! Target-controlled text made harmless for terminals and single lines.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character would disturb a terminal or a single line.
fn disturbs(character: char) -> bool {
    // Formatting characters that reorder what is shown (https://trojansource.codes), and separators of lines.
    character.is_control()
        || matches!(
            character,
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}'
        )
}

/// Whether a text is printable ASCII alone, one column to a byte. Without an early end, so that the compiler can look at many bytes at once.
pub(crate) fn is_plain(text: &str) -> bool {
    text.bytes()
        .fold(true, |plain, byte| plain & (b' '..=b'~').contains(&byte))
}

/// Escapes control characters, bidirectional overrides and line ends, as `\n`, `\x1b`, `\u{202e}`.
pub fn line(text: &str) -> Cow<'_, str> {
    if is_plain(text) || !text.chars().any(disturbs) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(character));
            }
            _ if disturbs(character) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(character));
            }
            _ => out.push(character),
        }
    }
    Cow::Owned(out)
}

/// Escapes what would disturb a terminal, but keeps line ends and tabs: for output of several lines.
pub fn block(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut first = true;
    for part in text.split('\n') {
        if !first {
            out.push('\n');
        }
        first = false;
        let mut first_cell = true;
        for cell in part.split('\t') {
            if !first_cell {
                out.push('\t');
            }
            first_cell = false;
            out.push_str(&line(cell));
        }
    }
    out
}

/// At most `limit` characters, the last one `…` when something was cut.
pub fn clip(text: &str, limit: usize) -> Cow<'_, str> {
    // A character takes a byte at least.
    if text.len() <= limit || text.chars().nth(limit).is_none() {
        return Cow::Borrowed(text);
    }
    let mut out: String = text.chars().take(limit.saturating_sub(1)).collect();
    out.push('…');
    Cow::Owned(out)
}

/// The last component of a path.
pub fn base_name(path: &str) -> &str {
    path.rsplit('/')
        .next()
        .filter(|name| !name.is_empty())
        .unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_cannot_reach_the_terminal() {
        assert_eq!(line("a\x1b[2Jb\nc\u{202e}"), "a\\x1b[2Jb\\nc\\u{202e}");
        assert_eq!(block("a\tb\nc\x07\n"), "a\tb\nc\\x07\n");
    }

    #[test]
    fn clipping_counts_characters() {
        assert_eq!(clip("äöü", 3), "äöü");
        assert_eq!(clip("äöüß", 3), "äö…");
    }
}
