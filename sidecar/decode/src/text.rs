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

/// A string's data of one, two or four bytes per character. What is no character becomes U+FFFD.
pub(crate) fn decode(bytes: &[u8], width: usize) -> String {
    let character = |c: u32| char::from_u32(c).unwrap_or(char::REPLACEMENT_CHARACTER);
    match width {
        1 => bytes.iter().map(|b| char::from(*b)).collect(),
        2 => bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|c| character(u32::from(u16::from_le_bytes(*c))))
            .collect(),
        _ => bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|c| character(u32::from_le_bytes(*c)))
            .collect(),
    }
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

/// A string as Python's `repr` writes it, control characters escaped.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len().saturating_add(2));
    quoted.push('\'');
    for c in text.chars() {
        match c {
            '\'' => quoted.push_str("\\'"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => drop(write!(quoted, "\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

/// Bytes as Python's `repr` writes them.
pub(crate) fn quoted_bytes(bytes: &[u8]) -> String {
    let mut quoted = "b'".to_owned();
    for b in bytes {
        match b {
            b'\'' => quoted.push_str("\\'"),
            b'\\' => quoted.push_str("\\\\"),
            b'\n' => quoted.push_str("\\n"),
            b'\r' => quoted.push_str("\\r"),
            b'\t' => quoted.push_str("\\t"),
            b' '..=b'~' => quoted.push(char::from(*b)),
            b => drop(write!(quoted, "\\x{b:02x}")),
        }
    }
    quoted.push('\'');
    quoted
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
    fn quotes_escape_what_a_terminal_would_obey() {
        assert_eq!(quoted("a'b\u{1b}[2J\n"), "'a\\'b\\x1b[2J\\n'");
        assert_eq!(quoted_bytes(b"\x00'z"), "b'\\x00\\'z'");
    }
}
