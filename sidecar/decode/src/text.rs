//! Text out of a target's bytes: always valid, always bounded.

use std::fmt::Write as _;

/// At most `max` bytes of the text, cut between characters, with an ellipsis where something was left out.
pub(crate) fn clip(text: &str, max: usize) -> String {
    const ELLIPSIS: char = '…';
    if text.len() <= max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(max.saturating_sub(ELLIPSIS.len_utf8()));
    let mut clipped = text.get(..end).unwrap_or_default().to_owned();
    clipped.push(ELLIPSIS);
    clipped
}

/// The code points of a string's data of one, two or four bytes per character.
pub(crate) fn code_points(bytes: &[u8], width: usize) -> Vec<u32> {
    match width {
        1 => bytes.iter().map(|b| u32::from(*b)).collect(),
        2 => bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|c| u32::from(u16::from_le_bytes(*c)))
            .collect(),
        _ => bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|c| u32::from_le_bytes(*c))
            .collect(),
    }
}

/// A string's data of one, two or four bytes per character. What is no character becomes U+FFFD.
pub(crate) fn decode(bytes: &[u8], width: usize) -> String {
    characters(&code_points(bytes, width))
}

/// Code points as text. What is no character becomes U+FFFD: Python's strings may hold halves of surrogate pairs.
pub(crate) fn characters(code_points: &[u32]) -> String {
    code_points
        .iter()
        .map(|c| char::from_u32(*c).unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// An int of 30-bit digits, least significant first, in decimal; `None` where a digit is too large.
pub(crate) fn decimal(digits: &[u32], negative: bool) -> Option<String> {
    const BASE: u64 = 1_000_000_000;
    let mut groups: Vec<u64> = vec![0];
    for digit in digits.iter().rev() {
        if *digit >> 30 != 0 {
            return None;
        }
        let mut carry = u64::from(*digit);
        for group in &mut groups {
            let value = group.checked_shl(30)?.checked_add(carry)?;
            *group = value.checked_rem(BASE)?;
            carry = value.checked_div(BASE)?;
        }
        while carry > 0 {
            groups.push(carry.checked_rem(BASE)?);
            carry = carry.checked_div(BASE)?;
        }
    }
    let mut text = if negative {
        "-".to_owned()
    } else {
        String::new()
    };
    let mut groups = groups.iter().rev();
    text.push_str(&groups.next()?.to_string());
    for group in groups {
        let _ = write!(text, "{group:09}");
    }
    Some(text)
}

/// A float as Python's `repr` writes it.
pub(crate) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    // Rust's shortest digits are Python's; where the exponent begins differs.
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') {
            plain
        } else {
            plain + ".0"
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

/// A complex number as Python's `repr` writes it.
pub(crate) fn complex(real: f64, imaginary: f64) -> String {
    let part = |value: f64| {
        let text = float(value);
        text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
    };
    let imaginary_text = part(imaginary);
    if real == 0.0 && real.is_sign_positive() {
        return format!("{imaginary_text}j");
    }
    let sign = if imaginary_text.starts_with('-') {
        ""
    } else {
        "+"
    };
    format!("({}{sign}{imaginary_text}j)", part(real))
}

/// The quote that Python's `repr` chooses.
fn quote(single: bool, double: bool) -> char {
    if single && !double { '"' } else { '\'' }
}

/// A string as Python's `repr` writes it: what cannot be printed is escaped, halves of surrogate pairs too. It ends
/// before it is longer than `max` bytes; the number is that of the code points it holds.
pub(crate) fn quoted(code_points: &[u32], max: usize) -> (String, usize) {
    let has = |c: char| code_points.contains(&u32::from(c));
    let quote = quote(has('\''), has('"'));
    let mut quoted = String::new();
    quoted.push(quote);
    let mut held = 0_usize;
    for code in code_points {
        let before = quoted.len();
        let c = char::from_u32(*code);
        match c {
            Some('\\') => quoted.push_str("\\\\"),
            Some('\n') => quoted.push_str("\\n"),
            Some('\r') => quoted.push_str("\\r"),
            Some('\t') => quoted.push_str("\\t"),
            Some(c) if c == quote => quoted.extend(['\\', c]),
            Some(c) if is_printable(c) => quoted.push(c),
            _ => escape(&mut quoted, *code),
        }
        if quoted.len() >= max {
            quoted.truncate(before);
            break;
        }
        held = held.saturating_add(1);
    }
    quoted.push(quote);
    (quoted, held)
}

/// A text with what cannot be printed escaped.
pub(crate) fn printable(text: String) -> String {
    if text.chars().all(is_printable) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_printable(c) {
            escaped.push(c);
        } else {
            escape(&mut escaped, u32::from(c));
        }
    }
    escaped
}

/// A code point by its number, as short as Python does it.
fn escape(text: &mut String, code: u32) {
    let _ = match code {
        0..0x100 => write!(text, "\\x{code:02x}"),
        0x100..0x1_0000 => write!(text, "\\u{code:04x}"),
        _ => write!(text, "\\U{code:08x}"),
    };
}

/// `str.isprintable()`. Rust escapes what Python does, and besides a combining character that nothing stands before.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    let mut buffer = [b'a'; 5];
    let end = c.len_utf8().saturating_add(1);
    if let Some(rest) = buffer.get_mut(1..end) {
        c.encode_utf8(rest);
    }
    buffer
        .get(..end)
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .is_some_and(|text| text.escape_debug().nth(1) != Some('\\'))
}

/// Bytes as Python's `repr` writes them, with their `b`; it ends before it is longer than `max`.
pub(crate) fn quoted_bytes(bytes: &[u8], max: usize) -> (String, usize) {
    let quote = quote(bytes.contains(&b'\''), bytes.contains(&b'"'));
    let mut quoted = "b".to_owned();
    quoted.push(quote);
    let mut held = 0_usize;
    for b in bytes {
        let before = quoted.len();
        match b {
            b'\\' => quoted.push_str("\\\\"),
            b'\n' => quoted.push_str("\\n"),
            b'\r' => quoted.push_str("\\r"),
            b'\t' => quoted.push_str("\\t"),
            b if char::from(*b) == quote => quoted.extend(['\\', quote]),
            b' '..=b'~' => quoted.push(char::from(*b)),
            b => drop(write!(quoted, "\\x{b:02x}")),
        }
        if quoted.len() >= max {
            quoted.truncate(before);
            break;
        }
        held = held.saturating_add(1);
    }
    quoted.push(quote);
    (quoted, held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping_keeps_characters_whole() {
        assert_eq!(clip("abc", 3), "abc");
        assert_eq!(clip("日本語", 8), "日…");
        assert_eq!(clip("abcd", 3), "…");
    }

    #[test]
    fn each_width_is_decoded() {
        assert_eq!(decode(b"n\xe4me", 1), "näme");
        assert_eq!(decode(&[0xe5, 0x65, 0x2c, 0x67], 2), "日本");
        assert_eq!(decode(&0x1f40d_u32.to_le_bytes(), 4), "🐍");
        assert_eq!(decode(&[0x00, 0xd8], 2), "\u{fffd}");
    }

    #[test]
    fn ints_of_any_size() {
        assert_eq!(decimal(&[], false).unwrap(), "0");
        assert_eq!(decimal(&[5], true).unwrap(), "-5");
        // 10**30 and 2**96 in digits of 30 bits, as CPython stores them.
        assert_eq!(
            decimal(&[0, 0, 0, 64], false).unwrap(),
            (64_u128 << 90).to_string()
        );
        let mut n: u128 = 10_u128.pow(30);
        let mut digits = Vec::new();
        while n > 0 {
            digits.push((n & 0x3fff_ffff) as u32);
            n >>= 30;
        }
        assert_eq!(
            decimal(&digits, false).unwrap(),
            format!("1{}", "0".repeat(30))
        );
        assert_eq!(decimal(&[1 << 30], false), None);
    }

    #[test]
    fn floats_look_like_pythons() {
        for (value, text) in [
            (1.0, "1.0"),
            (-0.5, "-0.5"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (123_456_789.125, "123456789.125"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (1.5e300, "1.5e+300"),
            (-0.0, "-0.0"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(float(value), text);
        }
    }

    #[test]
    fn complex_numbers_look_like_pythons() {
        for (real, imaginary, text) in [
            (1.0, 2.0, "(1+2j)"),
            (0.0, 1.0, "1j"),
            (0.0, -1.5, "-1.5j"),
            (-0.0, -1.0, "(-0-1j)"),
            (1e20, 0.0, "(1e+20+0j)"),
            (f64::NAN, f64::INFINITY, "(nan+infj)"),
        ] {
            assert_eq!(complex(real, imaginary), text);
        }
    }

    /// Each is what `repr` of CPython 3.14 says.
    #[test]
    fn strings_are_quoted_as_python_does() {
        let points = |text: &str| text.chars().map(u32::from).collect::<Vec<_>>();
        let quoted = |text: &str| super::quoted(&points(text), 1024).0;
        assert_eq!(quoted("a'b\u{1b}[2J\n"), r#""a'b\x1b[2J\n""#);
        assert_eq!(quoted(r#"'and""#), r#"'\'and"'"#);
        assert_eq!(quoted("say \"a\""), r#"'say "a"'"#);
        assert_eq!(quoted("back\\slash\t\r"), r"'back\\slash\t\r'");
        assert_eq!(quoted("näme 日本 🐍 e\u{301}"), "'näme 日本 🐍 e\u{301}'");
        assert_eq!(quoted("\u{301}"), "'\u{301}'");
        assert_eq!(
            quoted("\u{7f}\u{85}\u{a0}\u{ad}\u{200b}\u{202e}\u{2028}\u{3000}\u{e000}\u{feff}"),
            r"'\x7f\x85\xa0\xad\u200b\u202e\u2028\u3000\ue000\ufeff'"
        );
        assert_eq!(quoted("\u{f0000}\u{e0001}"), r"'\U000f0000\U000e0001'");
        assert_eq!(
            super::quoted(&[0xdc80, 0x110_000], 99).0,
            r"'\udc80\U00110000'"
        );
        assert_eq!(quoted_bytes(b"\x00'z\"\\", 99).0, r#"b'\x00\'z"\\'"#);
        assert_eq!(quoted_bytes(b"it's", 99).0, r#"b"it's""#);
        assert_eq!(
            super::quoted(&points("a\n\n\n"), 7),
            ("'a\\n\\n'".to_owned(), 3)
        );
        assert_eq!(quoted_bytes(b"abc\x00d", 8), ("b'abc'".to_owned(), 3));
    }
}
