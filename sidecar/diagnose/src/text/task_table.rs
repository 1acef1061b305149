//! The tasks as a table, one row each.

use std::collections::HashMap;
use std::fmt::{self, Write as _};

use sidewinder_model::{Frame, Id, Task, TaskState, Tasks};

use crate::escape::{base_name, clip, line};

/// The longest cell, in characters.
const CELL_CHARS: usize = 60;

/// Places kept as text.
const MAX_PLACES: usize = 1024;

const HEAD: [&str; 7] = [
    "TASK",
    "NAME",
    "THREAD",
    "STATE",
    "WHERE",
    "WAITS FOR",
    "AWAITED BY",
];

/// Cells one after the other, with where each ends: a hundred thousand rows of strings would take too much memory.
#[derive(Default)]
struct Cells {
    text: String,
    /// The end of each cell in bytes, and its width in characters.
    ends: Vec<(u32, u32)>,
    widths: [u32; HEAD.len()],
}

impl Cells {
    /// Escapes and clips what was written since the last cell, and makes it one.
    fn end(&mut self) {
        let start = self.ends.last().map_or(0, |(end, _)| *end as usize);
        let cell = self.text.get(start..).unwrap_or_default();
        let harmless = cell.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !harmless || cell.len() > CELL_CHARS {
            let cell = clip(&line(cell), CELL_CHARS).into_owned();
            self.text.truncate(start);
            self.text.push_str(&cell);
        }
        let cell = self.text.get(start..).unwrap_or_default();
        let width = if harmless {
            cell.len().min(CELL_CHARS)
        } else {
            cell.chars().count()
        };
        let width = u32::try_from(width).unwrap_or(u32::MAX);
        let column = self.ends.len().checked_rem(HEAD.len()).unwrap_or(0);
        if let Some(widest) = self.widths.get_mut(column) {
            *widest = width.max(*widest);
        }
        let end = u32::try_from(self.text.len()).unwrap_or(u32::MAX);
        self.ends.push((end, width));
    }

    fn cell(&mut self, text: &str) {
        self.text.push_str(text);
        self.end();
    }

    /// Left-aligned columns, two blanks apart, the last one ragged.
    fn write(&self, out: &mut impl fmt::Write) -> fmt::Result {
        const BLANKS: &str = "                                                                ";
        let mut start = 0_usize;
        for row in self.ends.chunks(HEAD.len()) {
            for (column, (end, width)) in row.iter().enumerate() {
                let end = *end as usize;
                out.write_str(self.text.get(start..end).unwrap_or_default())?;
                start = end;
                if column.saturating_add(1) < HEAD.len() {
                    let widest = self.widths.get(column).copied().unwrap_or(0);
                    let pad = widest.saturating_sub(*width).saturating_add(2) as usize;
                    out.write_str(BLANKS.get(..pad).unwrap_or(BLANKS))?;
                }
            }
            out.write_char('\n')?;
        }
        Ok(())
    }
}

/// Where a task stands: its innermost frame.
fn place(text: &mut String, frames: &[Frame]) -> fmt::Result {
    match frames.last() {
        None => text.push('-'),
        Some(frame) => {
            write!(text, "{} {}", frame.function, base_name(&frame.file))?;
            if let Some(number) = frame.line {
                write!(text, ":{number}")?;
            }
        }
    }
    Ok(())
}

fn state(task: &Task) -> &'static str {
    match task.state {
        TaskState::Created => "Created",
        TaskState::Waiting => "Waiting",
        TaskState::Ready => "Ready",
        TaskState::Running => "Running",
    }
}

/// Writes one row per task.
pub(super) fn render(out: &mut impl fmt::Write, tasks: &Tasks) -> fmt::Result {
    let names: HashMap<Id, &str> = tasks
        .tasks
        .iter()
        .map(|task| (task.id, &*task.name))
        .collect();
    let push_name = |text: &mut String, id: Id| match names.get(&id) {
        Some(name) => text.write_str(name),
        None => write!(text, "{id}"),
    };
    let mut cells = Cells::default();
    for head in HEAD {
        cells.cell(head);
    }
    // Tasks at one place share their frames.
    let mut places: HashMap<*const Frame, String> = HashMap::new();
    for task in &tasks.tasks {
        write!(cells.text, "{}", task.id)?;
        cells.end();
        cells.cell(&task.name);
        match task.tid {
            Some(tid) => write!(cells.text, "{tid}")?,
            None => cells.text.push('-'),
        }
        cells.end();
        cells.cell(state(task));
        if places.len() >= MAX_PLACES {
            places.clear();
        }
        let at = match places.entry(task.coroutine.as_ptr()) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
                let mut text = String::new();
                place(&mut text, &task.coroutine)?;
                new.insert(text)
            }
        };
        cells.cell(at);
        match &task.waiting_for {
            None => cells.text.push('-'),
            Some(waiting_for) => {
                cells.text.push_str(&waiting_for.kind);
                cells.text.push(' ');
                push_name(&mut cells.text, waiting_for.id)?;
            }
        }
        cells.end();
        match task.awaited_by.as_slice() {
            [] => cells.text.push('-'),
            [one] => push_name(&mut cells.text, *one)?,
            [first, rest @ ..] => {
                push_name(&mut cells.text, *first)?;
                write!(cells.text, " and {} more", rest.len())?;
            }
        }
        cells.end();
    }
    drop(names);
    cells.write(out)
}

#[cfg(test)]
mod tests {
    use crate::samples;

    #[test]
    fn one_row_for_each_task() {
        assert_eq!(
            crate::text::tasks(&samples::tasks(), sidewinder_model::TaskFormat::Table),
            "TASK  NAME    THREAD  STATE    WHERE            WAITS FOR    AWAITED BY\n\
             0x1   boss    7       Running  boss app.py:30   -            -\n\
             0x2   shared  7       Waiting  worker app.py:5  Future 0x99  boss and 1 more\n\
             0x3   lone    7       Waiting  worker app.py:5  Future 0x99  boss\n\
             0x4   other   7       Waiting  -                Task shared  -\n"
        );
    }
}
