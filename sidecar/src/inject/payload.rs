//! The text that runs in a target: the script and where its result goes, and the wrapper around it.

use std::fmt::Write as _;

/// The wrapper as it stands in the repository.
const WRAPPER: &str = include_str!("../../payloads/wrapper.py");

/// What a thread runs whose script is not to run any longer.
pub(super) const STOP: &str = include_str!("../../payloads/stop.py");

/// The wrapper's outermost function: while it is on a thread's stack, a script runs there.
pub(super) const FUNCTION: &str = "_sidewinder";

/// What the target compiles and runs. It is ASCII but for the wrapper's own text, and holds no NUL, at which CPython
/// would cut it.
pub(super) fn text(script: &str, result_path: &str) -> Vec<u8> {
    let mut text = String::with_capacity(script.len() * 2 + WRAPPER.len() + 256);
    text.push_str("SCRIPT = ");
    literal(&mut text, script.as_bytes());
    text.push_str("\nRESULT = ");
    literal(&mut text, result_path.as_bytes());
    text.push_str(".decode()\n");
    text.push_str(WRAPPER);
    text.into_bytes()
}

/// A Python bytes literal.
fn literal(text: &mut String, bytes: &[u8]) {
    text.push_str("b'");
    for byte in bytes {
        match byte {
            b'\'' | b'\\' => {
                text.push('\\');
                text.push(char::from(*byte));
            }
            b'\n' => text.push_str("\\n"),
            0x20..0x7f => text.push(char::from(*byte)),
            other => {
                // Writing into a String does not fail.
                let _ = write!(text, "\\x{other:02x}");
            }
        }
    }
    text.push('\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_script_ends_its_literal() {
        let text = String::from_utf8(text("a = '\\'\r\n\0é\"\"\"", "/proc/7/fd/40000")).unwrap();
        let mut lines = text.lines();
        assert_eq!(
            lines.next(),
            Some(r#"SCRIPT = b'a = \'\\\'\x0d\n\x00\xc3\xa9"""'"#)
        );
        assert_eq!(lines.next(), Some("RESULT = b'/proc/7/fd/40000'.decode()"));
        assert!(!text.contains('\0'));
    }

    #[test]
    fn the_wrapper_is_called_what_it_is_recognised_by() {
        assert!(WRAPPER.contains(&format!("\ndef {FUNCTION}(")));
        assert!(STOP.contains(&format!("co_name == \"{FUNCTION}\"")));
        assert!(STOP.contains("f_locals[\"stop\"](") && WRAPPER.contains("\n    def stop("));
    }
}
