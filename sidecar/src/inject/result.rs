//! What the wrapper wrote, read as what it is: bytes that anything in the target may have written.

use std::fs::File;
use std::os::unix::fs::FileExt;

use sidewinder_model::{ExecOutcome, ScriptException};

/// The most that is read of a result.
const MAX_RESULT: u64 = 160 << 20;
/// The most that is kept of each field.
const MAX_FIELD: usize = 17 << 20;
/// The most names that are kept.
const MAX_NAMES: usize = 4096;
/// A letter and a length.
const HEADER: usize = 9;

/// An answer as far as it has come in.
#[derive(Debug, Default)]
pub(super) struct Answer {
    progress: Progress,
    awaits: bool,
    told_to_end: u8,
    handler: Option<u8>,
    damaged: bool,
    buffer: Vec<u8>,
    streams: [Stream; 2],
    value: Option<String>,
    json: Option<String>,
    type_name: Option<String>,
    message: String,
    traceback: String,
    imported: Vec<String>,
    signals: Vec<u8>,
    nanoseconds: Option<u64>,
    clipped: Vec<(&'static str, u64)>,
    notes: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Progress {
    #[default]
    NotStarted,
    /// It awaits, and its loop has it in its queue.
    Queued,
    Started,
    Finished,
    /// It was withdrawn before it started: it never will.
    Withdrawn,
}

#[derive(Debug, Default)]
struct Stream {
    head: Vec<u8>,
    /// The whole size and the last bytes, when something between was left out.
    tail: Option<(u64, Vec<u8>)>,
}

impl Answer {
    /// Takes what has been added to a result since `at`, which moves on.
    pub(super) fn read(&mut self, result: &File, at: &mut u64) {
        let Ok(size) = result
            .metadata()
            .map(|metadata| metadata.len().min(MAX_RESULT))
        else {
            return;
        };
        let mut buffer = vec![0; 1 << 16];
        while *at < size {
            let want = usize::try_from(size - *at)
                .unwrap_or(buffer.len())
                .min(buffer.len());
            let Some(part) = buffer.get_mut(..want) else {
                return;
            };
            match result.read_at(part, *at) {
                Ok(0) | Err(_) => return,
                Ok(got) => {
                    self.feed(part.get(..got).unwrap_or_default());
                    *at += got as u64;
                }
            }
        }
    }

    /// Takes the next bytes, in any pieces.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while !self.damaged && !self.finished() {
            let missing = HEADER.saturating_sub(self.buffer.len());
            if missing > 0 {
                let (now, rest) = bytes.split_at(missing.min(bytes.len()));
                self.buffer.extend_from_slice(now);
                bytes = rest;
            }
            let Some((header, body)) = self.buffer.split_at_checked(HEADER) else {
                return;
            };
            let (kind, length) = match header {
                [kind, length @ ..] => (
                    *kind,
                    length.try_into().map_or(u64::MAX, u64::from_le_bytes),
                ),
                [] => return,
            };
            let Some(length) = usize::try_from(length)
                .ok()
                .filter(|length| *length <= MAX_FIELD)
            else {
                self.damaged = true;
                return;
            };
            let missing = length.saturating_sub(body.len());
            let (now, rest) = bytes.split_at(missing.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = rest;
            if self.buffer.len() < HEADER + length {
                return;
            }
            let record = std::mem::take(&mut self.buffer);
            self.record(kind, record.get(HEADER..).unwrap_or_default());
        }
    }

    fn record(&mut self, kind: u8, payload: &[u8]) {
        let text = || String::from_utf8_lossy(payload).into_owned();
        match kind {
            b'A' if self.progress == Progress::NotStarted => {
                self.progress = Progress::Queued;
                self.awaits = true;
            }
            // What was withdrawn first does not start, whatever it says.
            b'S' | b'F' if self.progress == Progress::Withdrawn => {}
            b'S' => self.progress = Progress::Started,
            b'F' => self.progress = Progress::Finished,
            // It came too late, unless the wrapper says N.
            b'W' if self.started() => {}
            b'W' | b'N' => self.progress = Progress::Withdrawn,
            b'A' => {}
            b'x' => self.told_to_end = payload.first().copied().unwrap_or(1),
            b'h' => self.handler = payload.first().copied().filter(|number| is_signal(*number)),
            b'g' => self.handler = None,
            b'o' => self.streams[0].add(payload),
            b'e' => self.streams[1].add(payload),
            b'O' => self.streams[0].end(payload),
            b'E' => self.streams[1].end(payload),
            b'v' => self.value = Some(text()),
            b'j' => self.json = Some(text()),
            b't' => self.type_name = Some(text()),
            b'm' => self.message = text(),
            b'b' => self.traceback = text(),
            b'i' => self.imported = names(payload),
            b's' => {
                self.signals = payload.iter().copied().filter(|n| is_signal(*n)).collect();
                self.signals.sort_unstable();
                self.signals.dedup();
            }
            b'd' => self.nanoseconds = payload.try_into().ok().map(u64::from_le_bytes),
            b'c' => {
                if let Some((kind, size)) = payload.split_first()
                    && let Ok(size) = size.try_into()
                {
                    let field = match kind {
                        b'v' => "value",
                        b'm' => "exception.message",
                        b'b' => "exception.traceback",
                        _ => return,
                    };
                    self.clipped.push((field, u64::from_le_bytes(size)));
                    self.clipped.truncate(8);
                }
            }
            _ => self.damaged = true,
        }
    }

    /// The script awaits and is queued at its loop, which has not come by yet.
    pub(super) fn queued(&self) -> bool {
        self.progress == Progress::Queued
    }

    /// The script awaits: it runs as a task, which stands on no stack while it waits.
    pub(super) fn awaits(&self) -> bool {
        self.awaits
    }

    /// The script's first statement is about to run, or has.
    pub(super) fn started(&self) -> bool {
        matches!(self.progress, Progress::Started | Progress::Finished)
    }

    /// It was withdrawn before its first statement, and will never run.
    pub(super) fn withdrawn(&self) -> bool {
        self.progress == Progress::Withdrawn
    }

    /// The script has ended and its answer is whole.
    pub(super) fn finished(&self) -> bool {
        self.progress == Progress::Finished
    }

    /// How often it was told to end; that is, how many of the requests to stop it ran.
    pub(super) fn told_to_end(&self) -> u8 {
        self.told_to_end
    }

    /// The signal whose Python handler ends the script in a blocked call of the main thread: setting its `tripped` flag
    /// calls the handler. Only to be believed while the thread is stopped, since the handler goes with the script.
    pub(super) fn handler(&self) -> Option<u8> {
        self.handler
    }

    /// An exception ended it.
    pub(super) fn failed(&self) -> bool {
        self.type_name.is_some()
    }

    /// The numbers of the signals that the script consumed.
    pub(super) fn signals(&self) -> Vec<u8> {
        self.signals.clone()
    }

    /// Adds a line of our own at the end of stderr.
    pub(super) fn note(&mut self, line: &str) {
        self.notes.push_str("sidewinder: ");
        self.notes.push_str(line);
        self.notes.push('\n');
    }

    /// `Type: message`, in one line.
    pub(super) fn exception_line(&self) -> String {
        let type_name = self.type_name.as_deref().unwrap_or_default();
        let message = self.message.lines().next().unwrap_or_default();
        if message.is_empty() {
            type_name.to_owned()
        } else {
            format!("{type_name}: {message}")
        }
    }

    /// Puts what has come in into the document.
    pub(super) fn into_outcome(self, outcome: &mut ExecOutcome) {
        let [stdout, stderr] = self.streams;
        for (name, stream, field) in [
            ("stdout", stdout, &mut outcome.stdout),
            ("stderr", stderr, &mut outcome.stderr),
        ] {
            let (text, full) = stream.into_text();
            *field = text;
            if let Some(full) = full {
                outcome.clipped.insert(name.to_owned(), full);
            }
        }
        outcome.stderr.push_str(&self.notes);
        outcome.value = self.value;
        outcome.value_json = self.json;
        outcome.exception = self.type_name.map(|type_name| ScriptException {
            type_name,
            message: self.message,
            traceback: self.traceback,
        });
        outcome.imported = self.imported;
        outcome.signals = self.signals.into_iter().map(signal_name).collect();
        for (field, size) in self.clipped {
            outcome.clipped.insert(field.to_owned(), size);
        }
        if let Some(nanoseconds) = self.nanoseconds {
            outcome.duration_milliseconds = nanoseconds / 1_000_000;
        }
    }
}

impl Stream {
    fn add(&mut self, bytes: &[u8]) {
        let room = MAX_FIELD.saturating_sub(self.head.len());
        self.head
            .extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }

    fn end(&mut self, payload: &[u8]) {
        if let Some((total, tail)) = payload.split_at_checked(8) {
            let total = total.try_into().map_or(0, u64::from_le_bytes);
            self.tail = Some((total, tail.to_vec()));
        }
    }

    /// The text, and its whole size if something was left out.
    fn into_text(self) -> (String, Option<u64>) {
        let mut bytes = self.head;
        let mut full = None;
        if let Some((total, tail)) = self.tail {
            let left_out = total.saturating_sub((bytes.len() + tail.len()) as u64);
            if left_out > 0 {
                bytes.extend_from_slice(format!("\n… {left_out} bytes left out …\n").as_bytes());
                full = Some(total);
            }
            bytes.extend_from_slice(&tail);
        }
        (String::from_utf8_lossy(&bytes).into_owned(), full)
    }
}

/// The names of the signals from 1 on, the same on x86-64 and aarch64 (signal(7)).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The first of the signals that have only numbers; the C library keeps two for itself.
const SIGRTMIN: u8 = 34;

/// Whether a Python handler for it can exist.
fn is_signal(number: u8) -> bool {
    const KILL: u8 = 9;
    const STOP: u8 = 19;
    matches!(number, 1..=31 | SIGRTMIN..=64) && number != KILL && number != STOP
}

/// `SIGTERM`, `SIGRTMIN+3`.
pub(super) fn signal_name(number: u8) -> String {
    match SIGNALS.get(usize::from(number).wrapping_sub(1)) {
        Some(name) => format!("SIG{name}"),
        None => format!("SIGRTMIN+{}", number.saturating_sub(SIGRTMIN)),
    }
}

fn names(payload: &[u8]) -> Vec<String> {
    payload
        .split(|byte| *byte == b'\n')
        .filter(|name| !name.is_empty())
        .take(MAX_NAMES)
        .map(|name| String::from_utf8_lossy(name.get(..512).unwrap_or(name)).into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    fn outcome(answer: Answer) -> ExecOutcome {
        let mut outcome = ExecOutcome::default();
        answer.into_outcome(&mut outcome);
        outcome
    }

    fn whole() -> Vec<u8> {
        [
            record(b'S', b""),
            record(b'o', b"one\n"),
            record(b'e', b"err\n"),
            record(b'o', "tw\u{f6}\n".as_bytes()),
            record(b'v', b"42"),
            record(b'j', b"42"),
            record(b'i', b"json\njson.decoder"),
            record(b'd', &7_000_000_u64.to_le_bytes()),
            record(b'F', b""),
        ]
        .concat()
    }

    #[test]
    fn an_answer_in_pieces_of_any_size() {
        let bytes = whole();
        for size in [1, 2, 8, 9, 10, 13, bytes.len()] {
            let mut answer = Answer::default();
            for piece in bytes.chunks(size) {
                assert!(!answer.finished());
                answer.feed(piece);
            }
            assert!(answer.started() && answer.finished() && !answer.failed());
            let outcome = outcome(answer);
            assert_eq!(
                (outcome.stdout.as_str(), outcome.stderr.as_str()),
                ("one\ntw\u{f6}\n", "err\n")
            );
            assert_eq!(outcome.value.as_deref(), Some("42"));
            assert_eq!(outcome.imported, ["json", "json.decoder"]);
            assert_eq!(outcome.duration_milliseconds, 7);
        }
    }

    #[test]
    fn an_exception_is_data() {
        let mut answer = Answer::default();
        for (kind, payload) in [
            (b'S', ""),
            (b'b', "Traceback…"),
            (b'm', "no\nway"),
            (b't', "ValueError"),
            (b'F', ""),
        ] {
            answer.feed(&record(kind, payload.as_bytes()));
        }
        assert!(answer.failed());
        assert_eq!(answer.exception_line(), "ValueError: no");
        assert_eq!(outcome(answer).exception.unwrap().message, "no\nway");
    }

    #[test]
    fn what_was_left_out_is_said_in_bytes() {
        let mut answer = Answer::default();
        answer.feed(&record(b'o', b"head"));
        answer.feed(&record(
            b'O',
            &[100_u64.to_le_bytes().as_slice(), b"tail"].concat(),
        ));
        let outcome = outcome(answer);
        assert_eq!(outcome.stdout, "head\n… 92 bytes left out …\ntail");
        assert_eq!(outcome.clipped.get("stdout"), Some(&100));
    }

    #[test]
    fn nonsense_is_bounded_and_never_believed_to_be_finished() {
        let mut answer = Answer::default();
        answer.feed(&record(b'S', b""));
        answer.feed(b"o\xff\xff\xff\xff\xff\xff\xff\xffmore and more");
        answer.feed(&record(b'F', b""));
        assert!(answer.started() && !answer.finished());
        assert!(answer.buffer.len() <= HEADER);

        let mut answer = Answer::default();
        answer.feed(&record(b'?', b"x"));
        answer.feed(&record(b'F', b""));
        assert!(!answer.finished());

        let mut answer = Answer::default();
        answer.feed(&record(b'd', b"short"));
        answer.feed(&record(b'O', b"x"));
        answer.feed(&record(b'c', b"v"));
        answer.feed(&record(b's', &[9, 2, 0, 19, 33, 65, 255, 64, 2, 15]));
        answer.feed(&record(b'h', &[9]));
        answer.feed(&record(b'x', b""));
        assert_eq!((answer.handler(), answer.told_to_end()), (None, 1));
        assert_eq!(answer.signals(), [2, 15, 64]);
        let outcome = outcome(answer);
        assert_eq!(outcome.signals, ["SIGINT", "SIGTERM", "SIGRTMIN+30"]);
        assert_eq!(outcome.duration_milliseconds, 0);
    }
    #[test]
    fn what_is_withdrawn_before_it_starts_never_started() {
        for (records, started, withdrawn, finished) in [
            ("A", false, false, false),
            ("AS", true, false, false),
            ("AW", false, true, false),
            ("WSNF", false, true, false),
            ("AWSF", false, true, false),
            // Both came at the same time: the wrapper says what holds.
            ("ASWN", false, true, false),
            ("ASWoF", true, false, true),
            ("SF", true, false, true),
        ] {
            let mut answer = Answer::default();
            for kind in records.bytes() {
                answer.feed(&record(kind, b""));
            }
            assert_eq!(
                (answer.started(), answer.withdrawn(), answer.finished()),
                (started, withdrawn, finished),
                "{records}"
            );
            assert_eq!(answer.queued(), records == "A");
        }
    }

    #[test]
    fn a_handler_stands_until_it_is_said_to_go() {
        let mut answer = Answer::default();
        answer.feed(&[record(b'S', b""), record(b'x', &[2]), record(b'h', &[23])].concat());
        assert_eq!((answer.told_to_end(), answer.handler()), (2, Some(23)));
        answer.feed(&record(b'g', b""));
        assert_eq!(answer.handler(), None);
    }
}
