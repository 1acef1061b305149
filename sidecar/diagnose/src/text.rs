//! What a person reads: dumps, trees, tables and a script's output.

mod await_tree;
mod task_table;

use std::fmt::{self, Write as _};

use sidewinder_model::{
    Collection, ExecOutcome, Frame, ProcessList, Stacks, TaskFormat, Tasks, Thread, ThreadState,
};

use crate::escape::{block, clip, line};
use crate::summary::count;

/// The longest command or name in a text, in characters.
const NAME_CHARS: usize = 200;
/// The longest message of an exception on a thread's line, in characters.
const MESSAGE_CHARS: usize = 80;

fn problems(out: &mut impl fmt::Write, problems: &[String]) -> fmt::Result {
    for problem in problems {
        writeln!(out, "problem: {}", line(problem))?;
    }
    Ok(())
}

fn frame(out: &mut String, indent: &str, frame: &Frame) {
    let _ = match frame.line {
        Some(number) => writeln!(
            out,
            "{indent}{} at {}:{number}",
            line(&frame.function),
            line(&frame.file)
        ),
        None => writeln!(
            out,
            "{indent}{} at {}",
            line(&frame.function),
            line(&frame.file)
        ),
    };
    for local in frame.locals.iter().flatten() {
        let _ = match &local.value {
            Some(value) => writeln!(out, "{indent}    {} = {}", line(&local.name), line(value)),
            None => writeln!(
                out,
                "{indent}    {}: {}",
                line(&local.name),
                line(&local.type_name)
            ),
        };
    }
}

fn thread(out: &mut String, thread: &Thread, collection: Option<&Collection>) {
    let mut facts = Vec::new();
    if thread.main {
        facts.push("main".to_owned());
    }
    facts.push(match (thread.state, &thread.syscall) {
        (ThreadState::Blocked, Some(syscall)) => match &syscall.detail {
            Some(detail) => format!("blocked in {} ({detail})", syscall.name),
            None => format!("blocked in {}", syscall.name),
        },
        (ThreadState::Blocked, None) => "blocked".to_owned(),
        (ThreadState::Runnable, _) => "waits for the GIL".to_owned(),
        (ThreadState::Running, _) => "running".to_owned(),
    });
    if thread.holds_gil == Some(true) {
        facts.push("holds the GIL".to_owned());
    }
    if let Some(collection) = collection.filter(|collection| collection.tid == thread.tid) {
        facts.push(match thread.frames.get(collection.frame) {
            Some(frame) => format!("collects garbage since {}", frame.function),
            None => "collects garbage".to_owned(),
        });
    }
    if let Some(exception) = &thread.exception {
        facts.push(match &exception.message {
            Some(message) if !message.is_empty() => {
                let message = clip(message, MESSAGE_CHARS);
                format!("exception {}: {message}", exception.type_name)
            }
            _ => format!("exception {}", exception.type_name),
        });
    }
    let _ = writeln!(
        out,
        "Thread {} \"{}\" ({})",
        thread.tid,
        clip(&line(&thread.name), NAME_CHARS),
        line(&facts.join(", "))
    );
    if thread.frames.is_empty() {
        out.push_str("    no Python frame\n");
    }
    for each in &thread.frames {
        frame(out, "    ", each);
    }
}

/// A dump of every thread, frames innermost last.
pub fn stacks(stacks: &Stacks) -> String {
    let mut out = String::new();
    let total: usize = stacks
        .interpreters
        .iter()
        .map(|interpreter| interpreter.threads.len())
        .sum();
    let _ = writeln!(
        out,
        "CPython {}, {}",
        line(&stacks.python),
        count(total, "thread")
    );
    for interpreter in &stacks.interpreters {
        if stacks.interpreters.len() > 1 {
            let _ = writeln!(out, "\nInterpreter {}", interpreter.id);
        }
        if interpreter.collecting_garbage {
            out.push_str("\nThe garbage collector is at work.\n");
        }
        for each in &interpreter.threads {
            out.push('\n');
            thread(&mut out, each, interpreter.collection.as_ref());
        }
    }
    let _ = problems(&mut out, &stacks.problems);
    out
}

/// The tasks, as a tree of who waits for whom or as a table.
///
/// # Errors
/// Those of the writer.
pub fn write_tasks(out: &mut impl fmt::Write, tasks: &Tasks, format: TaskFormat) -> fmt::Result {
    match format {
        TaskFormat::Tree => await_tree::render(out, tasks)?,
        TaskFormat::Table => task_table::render(out, tasks)?,
    }
    problems(out, &tasks.problems)
}

/// The same as one text.
pub fn tasks(tasks: &Tasks, format: TaskFormat) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_tasks(&mut out, tasks, format);
    out
}

/// One row per process.
pub fn processes(list: &ProcessList) -> String {
    let mut out = String::new();
    if list.processes.is_empty() {
        out.push_str("no Python process\n");
    } else {
        let mut rows = vec![["PID", "PYTHON", "THREADS", "EXEC", "COMMAND"].map(str::to_owned)];
        rows.extend(list.processes.iter().map(|process| {
            [
                process.pid.to_string(),
                line(&process.python).into_owned(),
                process.threads.to_string(),
                if process.remote_exec.enabled {
                    "yes".to_owned()
                } else {
                    "no".to_owned()
                },
                clip(&line(&process.command.join(" ")), NAME_CHARS).into_owned(),
            ]
        }));
        out.push_str(&columns(&rows));
    }
    for process in &list.processes {
        if let Some(reason) = &process.remote_exec.reason {
            let _ = writeln!(out, "{}: no scripts: {}", process.pid, line(reason));
        }
    }
    let _ = problems(&mut out, &list.problems);
    out
}

/// What a script printed, then its value or its traceback.
pub fn exec(outcome: &ExecOutcome) -> String {
    let mut out = block(&outcome.stdout);
    let ensure_line = |out: &mut String| {
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
    };
    if !outcome.stderr.is_empty() {
        ensure_line(&mut out);
        out.push_str(&block(&outcome.stderr));
    }
    ensure_line(&mut out);
    if let Some(value) = outcome.value.as_deref().filter(|value| *value != "None") {
        let _ = writeln!(out, "{}", block(value));
    }
    if let Some(exception) = &outcome.exception {
        out.push_str(&block(&exception.traceback));
        ensure_line(&mut out);
    }
    if let Some(blocked) = &outcome.stacks {
        out.push_str(&stacks(blocked));
    }
    out
}

/// Left-aligned columns, two blanks apart, the last one ragged.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    });
    let mut out = String::new();
    for row in rows {
        let mut text = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(text, "{cell:<width$}  ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use sidewinder_model::{CurrentException, Syscall};

    #[test]
    fn a_thread_s_line_says_what_it_handles_and_collects() {
        let mut document = samples::stacks();
        let interpreter = &mut document.interpreters[0];
        interpreter.collecting_garbage = true;
        interpreter.collection = Some(Collection { tid: 9, frame: 0 });
        interpreter.threads[0].exception = Some(CurrentException {
            type_name: "app.Late".into(),
            message: Some(format!("no\nanswer{}", "!".repeat(500))),
        });
        interpreter.threads[0].syscall = Some(Syscall {
            name: "recvfrom".into(),
            detail: Some("fd 7: TCP socket 10.0.0.7:41394 -> 10.0.0.2:5432, ESTABLISHED".into()),
        });
        interpreter.threads[1].exception = Some(CurrentException {
            type_name: "StopIteration".into(),
            message: None,
        });
        let text = stacks(&document);
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with(' ')).collect();
        assert_eq!(lines[2], "The garbage collector is at work.");
        assert!(
            lines[4].starts_with(
                "Thread 7 \"MainThread\" (main, blocked in recvfrom (fd 7: TCP socket 10.0.0.7:41394 -> \
                 10.0.0.2:5432, ESTABLISHED), exception app.Late: no\\nanswer!!"
            ),
            "{text}"
        );
        assert!(lines[4].len() < 300, "{text}");
        assert_eq!(
            lines[6],
            "Thread 9 \"worker\\x1b\" (running, holds the GIL, collects garbage since spin, exception StopIteration)"
        );
        // A frame that is not there, in a document that somebody else wrote.
        document.interpreters[0].collection = Some(Collection { tid: 9, frame: 7 });
        assert!(stacks(&document).contains("holds the GIL, collects garbage, exception"));
    }

    #[test]
    fn stacks_read_like_a_traceback() {
        assert_eq!(
            stacks(&samples::stacks()),
            "CPython 3.14.8, 2 threads\n\n\
             Thread 7 \"MainThread\" (main, blocked in futex)\n\
             \x20   consume at /app/app.py:12\n\
             \x20   Condition.wait at /usr/lib/python3.14/threading.py:373\n\n\
             Thread 9 \"worker\\x1b\" (running, holds the GIL)\n\
             \x20   spin at /app/app.py:20\n\
             \x20       n = 3\n"
        );
    }

    #[test]
    fn each_variable_has_its_own_line_whatever_it_holds() {
        let local = |name: &str, type_name: &str, value: Option<&str>| sidewinder_model::Local {
            name: name.into(),
            type_name: type_name.into(),
            value: value.map(Into::into),
        };
        let mut out = String::new();
        let shown = Frame {
            function: "f".into(),
            file: "/app.py".into(),
            line: Some(7),
            locals: Some(vec![
                local("rows", "list", Some("[1, …] (len 1200)")),
                local("password", "str", Some("'***' (len 7)")),
                local("later", "unbound", None),
                local("a\u{1b}[2J\nb", "app.\rX", None),
                local(
                    "evil\n",
                    "str",
                    Some("1\n    x = 2\u{1b}[31m\u{202e}\u{9b}"),
                ),
            ]),
        };
        frame(&mut out, "    ", &shown);
        assert_eq!(
            out,
            "    f at /app.py:7\n\
             \x20       rows = [1, …] (len 1200)\n\
             \x20       password = '***' (len 7)\n\
             \x20       later: unbound\n\
             \x20       a\\x1b[2J\\nb: app.\\rX\n\
             \x20       evil\\n = 1\\n    x = 2\\x1b[31m\\u{202e}\\x9b\n"
        );
    }

    #[test]
    fn output_keeps_its_lines_and_loses_its_escapes() {
        let outcome = ExecOutcome {
            stdout: "a\n\u{1b}[31mb".into(),
            value: Some("42".into()),
            ..Default::default()
        };
        assert_eq!(exec(&outcome), "a\n\\x1b[31mb\n42\n");
    }

    #[test]
    fn no_process_is_an_answer() {
        assert_eq!(processes(&ProcessList::default()), "no Python process\n");
    }
}
