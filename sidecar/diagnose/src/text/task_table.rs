//! The tasks as a table, one row each.

use std::collections::HashMap;

use sidewinder_model::{TaskState, Tasks};

use super::columns;
use crate::escape::{base_name, clip, line};

/// The longest cell, in characters.
const CELL_CHARS: usize = 60;

/// Renders one row per task.
pub(super) fn render(tasks: &Tasks) -> String {
    let names: HashMap<&str, &str> = tasks
        .tasks
        .iter()
        .map(|task| (task.id.as_str(), task.name.as_str()))
        .collect();
    let name_of = |id: &str| {
        names
            .get(id)
            .map_or_else(|| id.to_owned(), |name| (*name).to_owned())
    };
    let cell = |text: &str| clip(&line(text), CELL_CHARS);
    let mut rows = vec![
        [
            "TASK",
            "NAME",
            "THREAD",
            "STATE",
            "WHERE",
            "WAITS FOR",
            "AWAITED BY",
        ]
        .map(str::to_owned),
    ];
    rows.extend(tasks.tasks.iter().map(|task| {
        let place = task.coroutine.last().map_or_else(
            || "-".to_owned(),
            |frame| match frame.line {
                Some(number) => format!("{} {}:{number}", frame.function, base_name(&frame.file)),
                None => format!("{} {}", frame.function, base_name(&frame.file)),
            },
        );
        let waits = task.waiting_for.as_ref().map_or_else(
            || "-".to_owned(),
            |waiting_for| match names.get(waiting_for.id.as_str()) {
                Some(name) => format!("{} {name}", waiting_for.kind),
                None => format!("{} {}", waiting_for.kind, waiting_for.id),
            },
        );
        let awaited_by = match task.awaited_by.as_slice() {
            [] => "-".to_owned(),
            [one] => name_of(one),
            [first, rest @ ..] => format!("{} and {} more", name_of(first), rest.len()),
        };
        let state = match task.state {
            TaskState::Created => "Created",
            TaskState::Waiting => "Waiting",
            TaskState::Ready => "Ready",
            TaskState::Running => "Running",
        };
        [
            cell(&task.id),
            cell(&task.name),
            task.tid
                .map_or_else(|| "-".to_owned(), |tid| tid.to_string()),
            state.to_owned(),
            cell(&place),
            cell(&waits),
            cell(&awaited_by),
        ]
    }));
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn one_row_for_each_task() {
        assert_eq!(
            render(&samples::tasks()),
            "TASK  NAME    THREAD  STATE    WHERE            WAITS FOR    AWAITED BY\n\
             0x1   boss    7       Running  boss app.py:30   -            -\n\
             0x2   shared  7       Waiting  worker app.py:5  Future 0x99  boss and 1 more\n\
             0x3   lone    7       Waiting  worker app.py:5  Future 0x99  boss\n\
             0x4   other   7       Waiting  -                Task shared  -\n"
        );
    }
}
