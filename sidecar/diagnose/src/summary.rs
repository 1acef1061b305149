//! One line per answer: what an engineer sees in `kubectl get debugsessions`.

use std::collections::{BTreeMap, BTreeSet};

use sidewinder_model::{
    ExecOutcome, Frame, Id, MAX_SUMMARY_CHARS, ProcessList, Stacks, Task, TaskState, Tasks, Thread,
    ThreadState, WaitingGroup,
};

use crate::escape::{base_name, clip, line};

/// `1 thread`, `2 threads`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

/// `pay.py:88 (charge)`.
fn place(frame: &Frame) -> String {
    match frame.line {
        Some(number) => format!("{}:{number} ({})", base_name(&frame.file), frame.function),
        None => format!("{} ({})", base_name(&frame.file), frame.function),
    }
}

/// Whether a file belongs to the standard library or to no file at all, so that a reader looks for its caller.
fn is_library(file: &str) -> bool {
    file.starts_with('<')
        || (file.contains("/lib/python3.")
            && !file.contains("/site-packages/")
            && !file.contains("/dist-packages/"))
}

/// Where a stack stands: the innermost frame, and the application's frame that led to it.
fn standing(frames: &[Frame]) -> Option<String> {
    let innermost = frames.last()?;
    let own = frames.iter().rev().find(|frame| !is_library(&frame.file));
    Some(match own {
        Some(own) if !std::ptr::eq(own, innermost) => {
            format!("{} from {}", place(innermost), place(own))
        }
        _ => place(innermost),
    })
}

fn finish(text: &str) -> String {
    clip(&line(text), MAX_SUMMARY_CHARS).into_owned()
}

/// How many processes, of which versions.
pub fn processes(list: &ProcessList) -> String {
    let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
    for process in &list.processes {
        let entry = versions.entry(process.python.as_str()).or_default();
        *entry = entry.saturating_add(1);
    }
    let total = match list.processes.len() {
        1 => "1 Python process".to_owned(),
        number => format!("{number} Python processes"),
    };
    let detail: Vec<_> = versions
        .iter()
        .map(|(version, number)| {
            if versions.len() == 1 {
                format!("CPython {version}")
            } else {
                format!("{number} of CPython {version}")
            }
        })
        .collect();
    let threads = list.processes.iter().fold(0_usize, |sum, process| {
        sum.saturating_add(process.threads as usize)
    });
    match (detail.is_empty(), list.problems.first()) {
        (true, Some(problem)) => finish(&format!("{total}; {problem}")),
        (true, None) => finish(&total),
        (false, _) => finish(&format!(
            "{total}: {}; {}",
            detail.join(", "),
            count(threads, "thread")
        )),
    }
}

/// Where the main thread stands and how many threads there are.
pub fn stacks(stacks: &Stacks) -> String {
    let threads = || {
        stacks
            .interpreters
            .iter()
            .flat_map(|interpreter| &interpreter.threads)
    };
    let total = count(threads().count(), "thread");
    let main: Option<&Thread> = stacks
        .interpreters
        .iter()
        .find(|interpreter| interpreter.id == 0)
        .and_then(|interpreter| interpreter.threads.iter().find(|thread| thread.main));
    let Some(main) = main.or_else(|| threads().next()) else {
        return finish("no Python thread");
    };
    let who = if main.main {
        "main thread"
    } else {
        "first thread"
    };
    let doing = match (main.state, &main.syscall) {
        (ThreadState::Blocked, Some(syscall)) => format!("blocked in {}", syscall.name),
        (ThreadState::Blocked, None) => "blocked".to_owned(),
        (ThreadState::Runnable, _) => "waits for the GIL".to_owned(),
        (ThreadState::Running, _) => "running".to_owned(),
    };
    match standing(&main.frames) {
        Some(standing) => finish(&format!("{who} {doing} at {standing}; {total}")),
        None => finish(&format!("{who} {doing}, in no Python frame; {total}")),
    }
}

/// The largest group of tasks that wait for one thing, or at one place, as its size and a description.
fn largest_group(document: &Tasks) -> Option<(usize, String)> {
    let tasks = &document.tasks;
    // A task that waits for another one stands where it joins it; why, the other one shows.
    let mut joins: Vec<Id> = tasks
        .iter()
        .flat_map(|task| task.awaited_by.iter().copied())
        .collect();
    joins.sort_unstable();
    joins.dedup();
    let joins = |task: &Task| joins.binary_search(&task.id).is_ok();
    let waiting = || tasks.iter().filter(|task| task.state == TaskState::Waiting);
    let all_join = waiting().all(joins);
    // Tasks at one place share their frames.
    let mut places: BTreeMap<*const Frame, (&[Frame], usize)> = BTreeMap::new();
    for task in waiting().filter(|task| all_join || !joins(task)) {
        let frames: &[Frame] = &task.coroutine;
        let entry = places.entry(frames.as_ptr()).or_insert((frames, 0));
        entry.1 = entry.1.saturating_add(1);
    }
    let mut by_place: BTreeMap<String, usize> = BTreeMap::new();
    for (frames, number) in places.into_values() {
        if let Some(standing) = standing(frames) {
            let entry = by_place.entry(standing).or_default();
            *entry = entry.saturating_add(number);
        }
    }
    let place = by_place
        .into_iter()
        .max_by_key(|(_, number)| *number)
        .map(|(standing, number)| (number, format!("wait at {standing}")));
    let object = document.groups.first().map(|group| {
        (
            group.tasks.len(),
            format!("wait for {}{}", thing(group), at_one_place(tasks, group)),
        )
    });
    // Who waits for one thing at one place is better told by the thing.
    match (object, place) {
        (Some(object), Some(place)) if object.0 < place.0 => Some(place),
        (object, place) => object.or(place),
    }
}

/// What a group waits for.
pub(crate) fn thing(group: &WaitingGroup) -> String {
    match (&*group.kind, &group.detail) {
        ("Task", Some(name)) => format!("Task {name}"),
        (kind, Some(detail)) => format!("{kind} ({detail})"),
        (kind, None) => format!("one {kind}"),
    }
}

/// The application's frame that all of a group wait in, where it is one.
fn at_one_place(tasks: &[Task], group: &WaitingGroup) -> String {
    let mut members = group.tasks.clone();
    members.sort_unstable();
    let frames = tasks
        .iter()
        .filter(|task| members.binary_search(&task.id).is_ok())
        .map(|task| &task.coroutine);
    let mut own: Vec<Option<&Frame>> = Vec::new();
    let mut seen: BTreeSet<*const Frame> = BTreeSet::new();
    for frames in frames {
        if seen.insert(frames.as_ptr()) {
            own.push(frames.iter().rev().find(|frame| !is_library(&frame.file)));
        }
        own.dedup();
        if own.len() > 1 {
            return String::new();
        }
    }
    match own.first() {
        Some(Some(frame)) => format!(" at {}", place(frame)),
        _ => String::new(),
    }
}

/// How many tasks in how many loops, what runs, and the largest group that waits on one thing.
pub fn tasks(tasks: &Tasks) -> String {
    if tasks.tasks.is_empty() && tasks.loops.is_empty() {
        return "no asyncio task and no event loop".to_owned();
    }
    let mut parts = vec![format!(
        "{} in {}",
        count(tasks.tasks.len(), "task"),
        count(tasks.loops.len(), "loop")
    )];
    if !tasks.cycles.is_empty() {
        parts.push(count(tasks.cycles.len(), "cycle"));
    }
    if let Some(running) = tasks
        .tasks
        .iter()
        .find(|task| task.state == TaskState::Running)
    {
        parts.push(match standing(&running.coroutine) {
            Some(standing) => format!("{} runs at {standing}", running.name),
            None => format!("{} runs", running.name),
        });
    }
    if let Some((number, what)) = largest_group(tasks) {
        parts.push(if number == 1 {
            what.replacen("wait", "1 waits", 1)
        } else {
            format!("{number} {what}")
        });
    }
    finish(&parts.join("; "))
}

/// The value, else the exception, else the last line of output.
pub fn exec(outcome: &ExecOutcome) -> String {
    if let Some(exception) = &outcome.exception {
        let message = exception.message.lines().next().unwrap_or_default();
        return finish(&if message.is_empty() {
            exception.type_name.clone()
        } else {
            format!("{}: {message}", exception.type_name)
        });
    }
    if let Some(value) = outcome.value.as_deref().filter(|value| *value != "None") {
        return finish(value);
    }
    let last = |text: &str| {
        text.lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .map(str::to_owned)
    };
    match last(&outcome.stdout).or_else(|| last(&outcome.stderr)) {
        Some(text) => finish(text.trim_end()),
        None => finish(
            outcome
                .value
                .as_deref()
                .unwrap_or("the script ran and printed nothing"),
        ),
    }
}

/// A failure's message on one line.
pub fn failure(message: &str) -> String {
    finish(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn stacks_say_where_main_stands_and_who_called() {
        assert_eq!(
            stacks(&samples::stacks()),
            "main thread blocked in futex at threading.py:373 (Condition.wait) from app.py:12 (consume); 2 threads"
        );
    }

    #[test]
    fn tasks_name_the_largest_group() {
        let text = tasks(&samples::tasks());
        assert_eq!(
            text,
            "4 tasks in 1 loop; boss runs at app.py:30 (boss); 2 wait for Future (2 waiters) at app.py:5 (worker)"
        );
    }

    #[test]
    fn tasks_that_stand_at_one_place_are_a_group_too() {
        let mut sample = samples::tasks();
        for (index, task) in sample.tasks.iter_mut().enumerate() {
            task.state = TaskState::Waiting;
            task.coroutine = [samples::frame("pool.acquire", "/app/pool.py", 7)].into();
            task.awaited_by.clear();
            if let Some(waiting_for) = &mut task.waiting_for {
                waiting_for.id = Id(u64::try_from(index).unwrap());
            }
        }
        sample.groups.clear();
        assert_eq!(
            tasks(&sample),
            "4 tasks in 1 loop; 4 wait at pool.py:7 (pool.acquire)"
        );
    }

    #[test]
    fn tasks_that_only_join_others_do_not_hide_what_those_wait_for() {
        let task = |id: u64, function: &str, awaited_by: &[u64]| Task {
            id: Id(id),
            coroutine: [samples::frame(function, "/app/pay.py", 7)].into(),
            awaited_by: awaited_by.iter().copied().map(Id).collect(),
            ..Task::default()
        };
        let mut sample = samples::tasks();
        sample.groups.clear();
        sample.tasks = vec![
            task(1, "handle", &[]),
            task(2, "handle", &[]),
            task(3, "handle", &[]),
            task(4, "recv", &[1]),
            task(5, "acquire", &[2]),
            task(6, "acquire", &[3]),
        ];
        assert_eq!(
            tasks(&sample),
            "6 tasks in 1 loop; 2 wait at pay.py:7 (acquire)"
        );
        // In a circle everybody joins somebody.
        sample.tasks = vec![task(1, "join", &[2]), task(2, "join", &[1])];
        assert_eq!(
            tasks(&sample),
            "2 tasks in 1 loop; 2 wait at pay.py:7 (join)"
        );
    }

    #[test]
    fn exec_prefers_the_value_and_reports_the_exception() {
        let mut outcome = ExecOutcome {
            stdout: "a\nb\n\n".into(),
            value: Some("None".into()),
            ..Default::default()
        };
        assert_eq!(exec(&outcome), "b");
        outcome.value = Some("42".into());
        assert_eq!(exec(&outcome), "42");
        outcome.exception = Some(sidewinder_model::ScriptException {
            type_name: "ValueError".into(),
            message: "no\nyes".into(),
            traceback: String::new(),
        });
        assert_eq!(exec(&outcome), "ValueError: no");
    }

    #[test]
    fn a_summary_is_one_short_line_whatever_the_target_says() {
        let outcome = ExecOutcome {
            value: Some("\u{1b}]0;x\n".repeat(400)),
            ..Default::default()
        };
        let text = exec(&outcome);
        assert_eq!(text.chars().count(), MAX_SUMMARY_CHARS);
        assert!(!text.contains('\u{1b}') && !text.contains('\n'));
    }
}
