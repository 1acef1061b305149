//! Which of a container's processes a request means. Pure.

use regex_lite::RegexBuilder;
use sidewinder_diagnose::escape::{clip, line};
use sidewinder_model::{ProcessMode, ProcessSelector, Reason};

/// How many processes a message lists.
const LISTED: usize = 8;

/// The longest regular expression, in bytes once compiled.
const PATTERN_BYTES: usize = 256 * 1024;

/// A process that carries a Python.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its id in its own PID namespace.
    pub ns_pid: i32,
    /// Its arguments.
    pub command: Vec<String>,
    /// The version, or why it is not supported.
    pub python: Result<String, String>,
}

/// Why no process could be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub reason: Reason,
    /// The reason in a sentence about these processes.
    pub message: String,
}

/// The processes a request means, as indices into the candidates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Indices, in the candidates' order.
    pub indices: Vec<usize>,
    /// The processes that a default passed over, in words.
    pub note: Option<String>,
}

/// Whether a process only serves `multiprocessing`: its resource tracker and its fork server run no user code.
pub fn is_multiprocessing_service(command: &[String]) -> bool {
    command.iter().any(|argument| {
        argument.contains("from multiprocessing.resource_tracker import main")
            || argument.contains("from multiprocessing.forkserver import main")
    })
}

fn describe(candidate: &Candidate) -> String {
    let command = candidate.command.join(" ");
    let command = line(&command);
    let command = clip(&command, 80);
    match &candidate.python {
        Ok(version) => format!("{} (CPython {version}: {command})", candidate.ns_pid),
        Err(why) => format!("{} ({why}: {command})", candidate.ns_pid),
    }
}

fn list(candidates: &[(usize, &Candidate)]) -> String {
    let mut text: Vec<_> = candidates
        .iter()
        .take(LISTED)
        .map(|(_, candidate)| describe(candidate))
        .collect();
    if let Some(more) = candidates
        .len()
        .checked_sub(LISTED)
        .filter(|more| *more > 0)
    {
        text.push(format!("{more} more"));
    }
    text.join(", ")
}

/// Chooses processes.
///
/// Reading takes every supported process. Code runs in process 1 if that is one, else in the only one. A pattern that
/// several match is ambiguous for code unless its mode says all.
///
/// # Errors
/// `NoPythonProcess`, `UnsupportedPython`, `AmbiguousProcess` or `InvalidProcessSelector`, with the processes named.
pub fn select(
    candidates: &[Candidate],
    selector: Option<&ProcessSelector>,
    runs_code: bool,
) -> Result<Chosen, Refusal> {
    let usable: Vec<(usize, &Candidate)> = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| {
            candidate.python.is_ok() && !is_multiprocessing_service(&candidate.command)
        })
        .collect();
    match selector {
        Some(ProcessSelector::Pid(pid)) => by_pid(candidates, &usable, *pid),
        _ if usable.is_empty() => Err(none_usable(candidates)),
        Some(ProcessSelector::Command { pattern, mode }) => {
            by_command(&usable, pattern, *mode, runs_code)
        }
        None if runs_code => one_by_default(&usable),
        None => Ok(Chosen {
            indices: indices(&usable),
            note: None,
        }),
    }
}

fn indices(usable: &[(usize, &Candidate)]) -> Vec<usize> {
    usable.iter().map(|(index, _)| *index).collect()
}

fn refuse(reason: Reason, message: String) -> Refusal {
    Refusal { reason, message }
}

fn by_pid(
    candidates: &[Candidate],
    usable: &[(usize, &Candidate)],
    pid: i32,
) -> Result<Chosen, Refusal> {
    let named = candidates
        .iter()
        .enumerate()
        .find(|(_, candidate)| candidate.ns_pid == pid);
    match named.map(|(index, candidate)| (index, &candidate.python)) {
        Some((index, Ok(_))) => Ok(Chosen {
            indices: vec![index],
            note: None,
        }),
        Some((_, Err(why))) => Err(refuse(
            Reason::UnsupportedPython,
            format!("process {pid}: {why}; CPython 3.14 and 3.15 are supported"),
        )),
        None if usable.is_empty() => Err(refuse(
            Reason::NoPythonProcess,
            format!("process {pid} is no Python process, and no supported one runs here"),
        )),
        None => Err(refuse(
            Reason::NoPythonProcess,
            format!(
                "process {pid} is no Python process; these are: {}",
                list(usable)
            ),
        )),
    }
}

fn none_usable(candidates: &[Candidate]) -> Refusal {
    let unsupported: Vec<(usize, &Candidate)> = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| candidate.python.is_err())
        .collect();
    if unsupported.is_empty() {
        refuse(
            Reason::NoPythonProcess,
            "no Python process runs in this container".to_owned(),
        )
    } else {
        refuse(
            Reason::UnsupportedPython,
            format!(
                "no supported Python runs here (CPython 3.14 and 3.15 are supported); there are: {}",
                list(&unsupported)
            ),
        )
    }
}

fn by_command(
    usable: &[(usize, &Candidate)],
    pattern: &str,
    mode: ProcessMode,
    runs_code: bool,
) -> Result<Chosen, Refusal> {
    let pattern = RegexBuilder::new(pattern)
        .size_limit(PATTERN_BYTES)
        .build()
        .map_err(|error| {
            refuse(
                Reason::InvalidProcessSelector,
                format!("process.command is no usable regular expression: {error}"),
            )
        })?;
    let matches: Vec<(usize, &Candidate)> = usable
        .iter()
        .copied()
        .filter(|(_, candidate)| pattern.is_match(&candidate.command.join(" ")))
        .collect();
    match matches.len() {
        0 => Err(refuse(
            Reason::NoPythonProcess,
            format!(
                "no Python process matches process.command; there are: {}",
                list(usable)
            ),
        )),
        2.. if runs_code && mode == ProcessMode::One => Err(refuse(
            Reason::AmbiguousProcess,
            format!(
                "{} Python processes match process.command; set mode: All or choose one: {}",
                matches.len(),
                list(&matches)
            ),
        )),
        _ => Ok(Chosen {
            indices: indices(&matches),
            note: None,
        }),
    }
}

fn one_by_default(usable: &[(usize, &Candidate)]) -> Result<Chosen, Refusal> {
    let first = usable.iter().find(|(_, candidate)| candidate.ns_pid == 1);
    match (first, usable) {
        (Some((index, _)), _) => {
            let others: Vec<(usize, &Candidate)> = usable
                .iter()
                .copied()
                .filter(|(other, _)| other != index)
                .collect();
            let note = (!others.is_empty())
                .then(|| format!("process 1 was taken; there are also: {}", list(&others)));
            Ok(Chosen {
                indices: vec![*index],
                note,
            })
        }
        (None, [(only, _)]) => Ok(Chosen {
            indices: vec![*only],
            note: None,
        }),
        (None, _) => Err(refuse(
            Reason::AmbiguousProcess,
            format!(
                "several Python processes run here; choose one: {}",
                list(usable)
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python(ns_pid: i32, command: &str) -> Candidate {
        Candidate {
            ns_pid,
            command: command.split(' ').map(str::to_owned).collect(),
            python: Ok("3.14.8".into()),
        }
    }

    fn old(ns_pid: i32) -> Candidate {
        Candidate {
            python: Err("CPython 3.12.1".into()),
            ..python(ns_pid, "python3.12 old.py")
        }
    }

    fn command(pattern: &str, mode: ProcessMode) -> ProcessSelector {
        ProcessSelector::Command {
            pattern: pattern.into(),
            mode,
        }
    }

    fn indices(result: Result<Chosen, Refusal>) -> Vec<usize> {
        result.unwrap().indices
    }

    fn reason(result: Result<Chosen, Refusal>) -> Reason {
        result.unwrap_err().reason
    }

    #[test]
    fn reading_takes_every_supported_process() {
        assert_eq!(
            indices(select(
                &[python(1, "a"), old(2), python(3, "b")],
                None,
                false
            )),
            [0, 2]
        );
    }

    #[test]
    fn code_runs_in_process_one_and_the_others_are_named() {
        let chosen = select(&[python(1, "a"), python(3, "worker")], None, true).unwrap();
        assert_eq!(chosen.indices, [0]);
        assert!(chosen.note.unwrap().contains("worker"));
    }

    #[test]
    fn code_runs_in_the_only_process_but_not_in_one_of_many() {
        assert_eq!(indices(select(&[python(7, "a")], None, true)), [0]);
        let refusal = select(&[python(7, "a"), python(8, "b")], None, true).unwrap_err();
        assert_eq!(refusal.reason, Reason::AmbiguousProcess);
        assert!(
            refusal.message.contains("7 (") && refusal.message.contains("8 ("),
            "{}",
            refusal.message
        );
    }

    #[test]
    fn a_pattern_is_unanchored_and_sees_the_joined_arguments() {
        let both = [
            python(7, "python -m celery worker -n w1"),
            python(8, "python -m celery worker -n w2"),
        ];
        assert_eq!(
            indices(select(
                &both,
                Some(&command("celery.*w2$", ProcessMode::One)),
                true
            )),
            [1]
        );
        assert_eq!(
            indices(select(
                &both,
                Some(&command("celery", ProcessMode::One)),
                false
            )),
            [0, 1]
        );
        assert_eq!(
            reason(select(
                &both,
                Some(&command("celery", ProcessMode::One)),
                true
            )),
            Reason::AmbiguousProcess
        );
        assert_eq!(
            indices(select(
                &both,
                Some(&command("celery", ProcessMode::All)),
                true
            )),
            [0, 1]
        );
        assert_eq!(
            reason(select(
                &both,
                Some(&command("flask", ProcessMode::One)),
                false
            )),
            Reason::NoPythonProcess
        );
        assert_eq!(
            reason(select(&both, Some(&command("(", ProcessMode::One)), false)),
            Reason::InvalidProcessSelector
        );
    }

    #[test]
    fn an_old_python_is_named_with_its_version() {
        let refusal = select(&[old(1)], None, false).unwrap_err();
        assert_eq!(refusal.reason, Reason::UnsupportedPython);
        assert!(refusal.message.contains("3.12.1"), "{}", refusal.message);
        assert_eq!(
            reason(select(
                &[old(1), python(2, "a")],
                Some(&ProcessSelector::Pid(1)),
                false
            )),
            Reason::UnsupportedPython
        );
    }

    #[test]
    fn no_python_at_all() {
        assert_eq!(reason(select(&[], None, false)), Reason::NoPythonProcess);
        assert_eq!(
            reason(select(
                &[python(2, "a")],
                Some(&ProcessSelector::Pid(3)),
                true
            )),
            Reason::NoPythonProcess
        );
    }

    #[test]
    fn services_of_multiprocessing_do_not_count() {
        let tracker = Candidate {
            command: [
                "python3",
                "-c",
                "from multiprocessing.resource_tracker import main;main(5)",
            ]
            .map(str::to_owned)
            .into(),
            ..python(9, "")
        };
        assert_eq!(indices(select(&[python(7, "a"), tracker], None, true)), [0]);
    }
}
