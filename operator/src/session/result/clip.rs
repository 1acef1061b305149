//! Cutting text that somebody else chose.

use std::fmt;

use serde::{Serialize, Serializer};

/// What is kept from the end of a text that is cut, in bytes.
const TAIL_BYTES: usize = 4 * 1024;

/// `text`, or its beginning and end around a line that says how many bytes are left out: never more than `limit`
/// bytes, and cut between characters. `limit` should be well above [`TAIL_BYTES`].
pub fn clip_text(text: &str, limit: usize) -> String {
    Clipped::new(text, limit).to_string()
}

/// A text as [`clip_text`] cuts it, written from where it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clipped<'a> {
    head: &'a str,
    left_out: usize,
    tail: &'a str,
}

impl<'a> Clipped<'a> {
    pub(super) fn new(text: &'a str, limit: usize) -> Self {
        let whole = Self {
            head: text,
            left_out: 0,
            tail: "",
        };
        if text.len() <= limit {
            return whole;
        }
        // The number has at most as many digits as the length.
        let line = Self {
            head: "",
            left_out: text.len(),
            tail: "",
        };
        let room = limit.saturating_sub(line.to_string().len());
        let tail = TAIL_BYTES.min(room / 2);
        let head = text.floor_char_boundary(room - tail);
        let tail = text.ceil_char_boundary(text.len() - tail);
        match (text.get(..head), text.get(tail..)) {
            (Some(first), Some(last)) => Self {
                head: first,
                left_out: tail - head,
                tail: last,
            },
            _ => Self { head: "", ..whole },
        }
    }
}

impl fmt::Display for Clipped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.head)?;
        if self.left_out > 0 {
            write!(f, "\n… {} bytes left out …\n", self.left_out)?;
        }
        f.write_str(self.tail)
    }
}

impl Serialize for Clipped<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.left_out == 0 {
            return serializer.serialize_str(self.head);
        }
        serializer.collect_str(self)
    }
}

/// `text` as one line of at most `chars` characters, without control characters.
pub fn one_line(text: &str, chars: usize) -> String {
    let clean = |character: char| {
        if is_control(character) {
            ' '
        } else {
            character
        }
    };
    let mut line: String = text.trim().chars().map(clean).take(chars).collect();
    if text.trim().chars().nth(chars).is_some() {
        line.pop();
        line.push('…');
    }
    line
}

/// Control characters, and those that change the direction of the text around them.
fn is_control(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_at_the_limit_is_whole() {
        let text = "x".repeat(16 * 1024);
        assert_eq!(clip_text(&text, 16 * 1024), text);
    }

    #[test]
    fn a_long_text_keeps_both_ends_and_says_what_is_missing() {
        let text = format!("{}{}", "a".repeat(60_000), "z".repeat(40_000));
        let cut = clip_text(&text, 16 * 1024);
        assert!(cut.len() <= 16 * 1024);
        let (head, rest) = cut.split_once("\n… ").unwrap();
        let (number, tail) = rest.split_once(" bytes left out …\n").unwrap();
        assert!(head.len() > 12_000 && head.bytes().all(|byte| byte == b'a'));
        assert_eq!(tail, "z".repeat(4096));
        assert_eq!(
            number.parse::<usize>().unwrap(),
            text.len() - head.len() - tail.len()
        );
    }

    #[test]
    fn a_line_has_no_control_characters_and_an_end_mark_when_cut() {
        assert_eq!(one_line(" a\nb\u{1b}[31m\u{202e}c ", 160), "a b [31m c");
        assert_eq!(one_line("abcdef", 4), "abc…");
        assert_eq!(one_line("abcd", 4), "abcd");
    }

    proptest! {
        #[test]
        fn cutting_never_splits_a_character_and_never_exceeds_the_limit(
            text in "[aé€🐍\n]{0,9000}",
            limit in 9000_usize..17_000,
        ) {
            let cut = clip_text(&text, limit);
            prop_assert!(cut.len() <= limit);
            if text.len() <= limit {
                prop_assert_eq!(cut, text);
            } else {
                let mark = cut.find('…').unwrap();
                prop_assert!(text.starts_with(cut[..mark].trim_end_matches('\n')));
            }
        }
    }
}
