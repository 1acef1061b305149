//! The texts that run in a target: the script and where its result goes, with the wrapper around it, and what ends it.

use std::fmt::Write as _;

/// What the target itself compiles: it compiles the others and calls them.
const BOOTSTRAP: &str = include_str!("../../payloads/bootstrap.py");

/// What a script needs from its first statement on.
const WRAPPER: &str = include_str!("../../payloads/wrapper.py");

/// What is compiled in the target when it is needed.
const PARTS: [(&str, &str); 7] = [
    ("await", include_str!("../../payloads/await.py")),
    ("end", include_str!("../../payloads/end.py")),
    ("errors", include_str!("../../payloads/errors.py")),
    ("frames", include_str!("../../payloads/frames.py")),
    ("signals", include_str!("../../payloads/signals.py")),
    ("streams", include_str!("../../payloads/streams.py")),
    ("value", include_str!("../../payloads/value.py")),
];

/// What a thread runs whose script is not to run any longer.
const STOP: &str = include_str!("../../payloads/stop.py");

/// The wrapper's outermost function: while it is on a thread's stack, a script runs there.
pub(super) const FUNCTION: &str = "_sidewinder";

/// What has the target run a script. It is ASCII but for the bootstrap's own text, and holds no NUL, at which CPython
/// would cut it.
pub(super) fn text(script: &str, result_path: &str, pid: i32, room: Option<u64>) -> Vec<u8> {
    let parts: usize = PARTS.iter().map(|(_, part)| part.len()).sum();
    let mut text = String::with_capacity(script.len() * 2 + (WRAPPER.len() + parts) * 2);
    text.push_str("SCRIPT = ");
    literal(&mut text, script.as_bytes());
    text.push_str("\nPARTS = {");
    for (name, part) in PARTS {
        // Writing into a String does not fail.
        let _ = write!(text, "'{name}': ");
        literal(&mut text, part.as_bytes());
        text.push_str(", ");
    }
    let (head, tail) = limits(room);
    let _ = writeln!(text, "}}\nLIMITS = {head}, {tail}");
    with_bootstrap(text, WRAPPER, result_path, pid, 0)
}

/// How many bytes of each stream and text are kept from its beginning and from its end, where the result may have so much
/// room in all: there are five of them, and what says that it has ended comes last.
fn limits(room: Option<u64>) -> (u64, u64) {
    const MOST: u64 = 16 << 20;
    let each = room.map_or(MOST, |room| MOST.min(room / 6));
    (each - each / 4, each / 4)
}

/// What tells the script with that result to end, for the `times`th time: first its own code, then what it called too.
pub(super) fn stop(result_path: &str, pid: i32, times: u8) -> Vec<u8> {
    with_bootstrap(String::new(), STOP, result_path, pid, times)
}

fn with_bootstrap(mut text: String, code: &str, result_path: &str, pid: i32, round: u8) -> Vec<u8> {
    text.push_str("RESULT = ");
    literal(&mut text, result_path.as_bytes());
    text.push_str(".decode()\nTEXT = ");
    literal(&mut text, code.as_bytes());
    let _ = write!(text, "\nPID = {pid}\nROUND = {round}\n");
    text.push_str(BOOTSTRAP);
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
        let text =
            String::from_utf8(text("a = '\\'\r\n\0é\"\"\"", "/proc/7/fd/40000", 17, None)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], r#"SCRIPT = b'a = \'\\\'\x0d\n\x00\xc3\xa9"""'"#);
        assert!(lines[1].starts_with("PARTS = {'await': b'# A part") && lines[1].ends_with("', }"));
        assert_eq!(lines[2], "LIMITS = 12582912, 4194304");
        assert_eq!(lines[3], "RESULT = b'/proc/7/fd/40000'.decode()");
        assert!(lines[4].starts_with("TEXT = b'# What runs inside a target"));
        assert_eq!(lines[5..7], ["PID = 17", "ROUND = 0"]);
        assert!(!text.contains('\0'));
    }

    #[test]
    fn all_that_is_kept_has_room() {
        for room in [0, 256 << 10, 1 << 20, 64 << 20, 1 << 40] {
            let (head, tail) = limits(Some(room));
            assert!((head + tail) * 5 <= room && head >= tail);
            assert!(head <= 12 << 20 && tail <= 4 << 20);
        }
        assert_eq!(limits(None), limits(Some(1 << 40)));
    }

    #[test]
    fn what_ends_a_script_says_which_and_for_which_time() {
        let text = String::from_utf8(stop("/proc/7/fd/40000", 17, 2)).unwrap();
        assert!(text.starts_with("RESULT = b'/proc/7/fd/40000'.decode()\nTEXT = b'"));
        assert!(text.contains("\nPID = 17\nROUND = 2\n"));
    }

    #[test]
    fn the_texts_call_each_other_by_the_names_they_have() {
        assert!(WRAPPER.contains(&format!("\ndef {FUNCTION}(")));
        assert!(PARTS[0].1.contains(&format!("\nasync def {FUNCTION}(")));
        assert!(STOP.contains("\ndef stop("));
        assert!(BOOTSTRAP.contains(&format!("\"stop\" if ROUND else \"{FUNCTION}\"")));
        for (name, _) in PARTS {
            let used = [WRAPPER, STOP]
                .into_iter()
                .chain(PARTS.map(|(_, part)| part))
                .any(|text| {
                    text.contains(&format!("part(\"{name}\")"))
                        || text.contains(&format!("parts[\"{name}\"]"))
                });
            assert!(used, "{name}");
        }
    }
}
