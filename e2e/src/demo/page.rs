//! What the demo prints: headings, commands, and text that is indented and cut where it gets long.

use std::io::{IsTerminal as _, Stdout, Write as _};
use std::time::Instant;

/// The standard output as a page to read.
pub(super) struct Page {
    out: Stdout,
    colour: bool,
    since: Instant,
}

impl Page {
    pub(super) fn new() -> Self {
        let out = std::io::stdout();
        Self {
            colour: out.is_terminal() && std::env::var_os("NO_COLOR").is_none(),
            since: Instant::now(),
            out,
        }
    }

    /// The first line.
    pub(super) fn title(&mut self, text: &str) {
        self.styled("1", text);
    }

    /// What comes next.
    pub(super) fn heading(&mut self, text: &str) {
        self.put("\n");
        self.styled("1;36", &format!("── {text}"));
    }

    /// A command that does what follows.
    pub(super) fn command(&mut self, text: &str) {
        self.styled("32", &format!("   $ {text}"));
    }

    /// One line.
    pub(super) fn line(&mut self, text: &str) {
        self.put(&indent(text));
    }

    /// Says what takes a while; [`done`](Self::done) says how long it took.
    pub(super) fn begin(&mut self, text: &str) {
        self.since = Instant::now();
        self.line(text);
    }

    /// See [`begin`](Self::begin).
    pub(super) fn done(&mut self) {
        self.line(&format!(
            "done in {:.1} s",
            self.since.elapsed().as_secs_f64()
        ));
    }

    /// Text of several lines, of which at most `lines` are shown.
    pub(super) fn text(&mut self, text: &str, lines: usize) {
        self.put(&cut(text, lines));
    }

    /// The last line.
    pub(super) fn end(&mut self) {
        self.put("\n");
    }

    fn styled(&mut self, style: &str, text: &str) {
        if self.colour {
            self.put(&format!("\u{1b}[{style}m{text}\u{1b}[0m\n"));
        } else {
            self.put(&format!("{text}\n"));
        }
    }

    fn put(&mut self, text: &str) {
        // Nobody reads any more: the demo still cleans up.
        let _ = self
            .out
            .write_all(text.as_bytes())
            .and_then(|()| self.out.flush());
    }
}

fn indent(line: &str) -> String {
    format!("{}\n", format!("   {line}").trim_end())
}

fn cut(text: &str, lines: usize) -> String {
    let total = text.lines().count();
    let mut out: String = text.lines().take(lines).map(indent).collect();
    if total > lines {
        out.push_str(&indent(&format!(
            "… {} more lines",
            total.saturating_sub(lines)
        )));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_and_says_so() {
        assert_eq!(cut("a\nb\nc\n", 2), "   a\n   b\n   … 1 more lines\n");
        assert_eq!(cut("a\nb", usize::MAX), "   a\n   b\n");
        assert_eq!(cut("a\n\nb", 3), "   a\n\n   b\n");
    }
}
