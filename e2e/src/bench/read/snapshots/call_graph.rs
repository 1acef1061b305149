//! Whether a stack is one that the program can have: `known_calls.py` states its call graph itself.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

/// One function of the program.
#[derive(Debug, Deserialize)]
struct Function {
    file: String,
    /// The lines that have code, as the compiler has them.
    lines: HashSet<i64>,
    /// The lines that call on, with the functions they may call.
    calls: HashMap<String, HashSet<String>>,
}

/// What `known_calls.py` writes before it begins.
#[derive(Debug, Deserialize)]
pub(super) struct CallGraph {
    functions: HashMap<String, Function>,
    /// How deep the thread `parked` stands.
    parked: usize,
}

/// A frame of an answer.
#[derive(Debug, Deserialize)]
pub(super) struct Frame {
    function: String,
    file: String,
    line: Option<i64>,
}

/// A thread of an answer.
#[derive(Debug, Deserialize)]
pub(super) struct Thread {
    pub(super) name: String,
    main: bool,
    pub(super) frames: Vec<Frame>,
}

/// The function that is called by what is no Python.
fn outermost(main: bool) -> &'static str {
    if main {
        "<module>"
    } else {
        "Thread._bootstrap"
    }
}

impl CallGraph {
    /// What is wrong with a thread's stack; frames are innermost last.
    pub(super) fn check(&self, thread: &Thread) -> Result<(), String> {
        let name = &thread.name;
        let Some(first) = thread.frames.first() else {
            return Err(format!("{name} has no frame"));
        };
        if first.function != outermost(thread.main) {
            return Err(format!("{name} begins with {}", first.function));
        }
        for frame in &thread.frames {
            self.line(frame)
                .map_err(|error| format!("{name}: {error}"))?;
        }
        for pair in thread.frames.windows(2) {
            if let [outer, inner] = pair {
                self.call(outer, inner)
                    .map_err(|error| format!("{name}: {error}"))?;
            }
        }
        if name == "parked" {
            let parked = thread.frames.iter();
            let depth = parked.filter(|frame| frame.function == "park").count();
            if depth != self.parked {
                return Err(format!("parked is {depth} deep, not {}", self.parked));
            }
        }
        Ok(())
    }

    fn function(&self, frame: &Frame) -> Result<&Function, String> {
        self.functions
            .get(&frame.function)
            .ok_or_else(|| format!("there is no function {}", frame.function))
    }

    fn line(&self, frame: &Frame) -> Result<(), String> {
        let function = self.function(frame)?;
        if frame.file != function.file {
            return Err(format!("{} is not in {}", frame.function, frame.file));
        }
        if frame
            .line
            .is_none_or(|line| !function.lines.contains(&line))
        {
            return Err(format!("{} has no line {:?}", frame.function, frame.line));
        }
        Ok(())
    }

    fn call(&self, outer: &Frame, inner: &Frame) -> Result<(), String> {
        let line = outer.line.map(|line| line.to_string()).unwrap_or_default();
        let callees = self.function(outer)?.calls.get(&line);
        if callees.is_some_and(|callees| callees.contains(&inner.function)) {
            return Ok(());
        }
        Err(format!(
            "line {line} of {} calls no {}",
            outer.function, inner.function
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph() -> CallGraph {
        serde_json::from_value(serde_json::json!({
            "functions": {
                "<module>": {"file": "m.py", "lines": [1, 9], "calls": {"9": ["work"]}},
                "work": {"file": "m.py", "lines": [3, 4, 5], "calls": {"4": ["grow", "work"]}},
                "grow": {"file": "m.py", "lines": [7], "calls": {}},
                "Thread._bootstrap": {"file": "threading.py", "lines": [20], "calls": {"20": ["park"]}},
                "park": {"file": "m.py", "lines": [30, 31], "calls": {"31": ["park"]}},
            },
            "parked": 2,
        }))
        .unwrap()
    }

    fn checked(name: &str, frames: &[(&str, i64)]) -> Result<(), String> {
        let frames = frames.iter().map(|(function, line)| Frame {
            function: (*function).to_owned(),
            file: if function.starts_with("Thread") {
                "threading.py"
            } else {
                "m.py"
            }
            .to_owned(),
            line: Some(*line),
        });
        graph().check(&Thread {
            name: name.to_owned(),
            main: name == "MainThread",
            frames: frames.collect(),
        })
    }

    #[test]
    fn what_the_program_can_do_passes() {
        for stack in [
            &[("<module>", 1)][..],
            &[("<module>", 9), ("work", 5)],
            &[("<module>", 9), ("work", 4), ("work", 4), ("grow", 7)],
        ] {
            assert_eq!(checked("MainThread", stack), Ok(()));
        }
        let parked = [("Thread._bootstrap", 20), ("park", 31), ("park", 30)];
        assert_eq!(checked("parked", &parked), Ok(()));
    }

    #[test]
    fn a_lost_frame_a_wrong_name_and_a_wrong_line_are_seen() {
        for (stack, error) in [
            (&[][..], "has no frame"),
            (&[("work", 4)], "begins with work"),
            (&[("<module>", 9), ("grow", 7)], "calls no grow"),
            (&[("<module>", 1), ("work", 4)], "line 1 of <module>"),
            (&[("<module>", 9), ("work", 7)], "work has no line Some(7)"),
            (&[("<module>", 9), ("shrink", 3)], "no function shrink"),
        ] {
            let said = checked("MainThread", stack).unwrap_err();
            assert!(said.contains(error), "{said}");
        }
        let short = [("Thread._bootstrap", 20), ("park", 30)];
        assert!(checked("parked", &short).unwrap_err().contains("1 deep"));
    }
}
