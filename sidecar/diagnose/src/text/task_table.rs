//! The tasks as a table, one row each.

use std::collections::HashMap;
use std::fmt::{self, Write as _};

use foldhash::fast::RandomState;
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

/// What a row needs of the whole: names by address, and places as they are shown.
struct Rows<'a> {
    names: HashMap<Id, &'a str, RandomState>,
    /// By the frames that tasks at one place share.
    places: HashMap<*const Frame, String, RandomState>,
    /// The thread of the row before, and its cell.
    tid: (Option<u64>, String),
    /// The cell that is being put together.
    cell: String,
}

/// Takes the cells of the rows, one after the other.
trait Cells {
    fn cell(&mut self, text: &str) -> fmt::Result;

    fn id(&mut self, id: Id) -> fmt::Result;
}

/// The first pass: how wide each column is.
#[derive(Default)]
struct Widths {
    widths: [usize; HEAD.len()],
    column: usize,
}

impl Cells for Widths {
    fn cell(&mut self, text: &str) -> fmt::Result {
        self.widen(width(text));
        Ok(())
    }

    fn id(&mut self, id: Id) -> fmt::Result {
        self.widen(id.text_len());
        Ok(())
    }
}

impl Widths {
    fn widen(&mut self, width: usize) {
        if let Some(widest) = self.widths.get_mut(self.column) {
            *widest = width.max(*widest);
        }
        self.column = self
            .column
            .checked_add(1)
            .filter(|next| *next < HEAD.len())
            .unwrap_or(0);
    }
}

/// The second pass: left-aligned columns, two blanks apart, the last one ragged.
struct Writer<'o, W> {
    out: &'o mut W,
    widths: [usize; HEAD.len()],
    column: usize,
}

impl<W: fmt::Write> Cells for Writer<'_, W> {
    fn cell(&mut self, text: &str) -> fmt::Result {
        const BLANKS: &str = "                                                                ";
        self.out.write_str(text)?;
        let next = self.column.saturating_add(1);
        if next == HEAD.len() {
            self.column = 0;
            return self.out.write_char('\n');
        }
        let widest = self.widths.get(self.column).copied().unwrap_or(0);
        self.column = next;
        let pad = widest.saturating_sub(width(text)).saturating_add(2);
        self.out.write_str(BLANKS.get(..pad).unwrap_or(BLANKS))
    }

    fn id(&mut self, id: Id) -> fmt::Result {
        self.cell(id.text(&mut [0; Id::TEXT]))
    }
}

/// In characters; a cell is short.
fn width(text: &str) -> usize {
    if text.is_ascii() {
        text.len()
    } else {
        text.chars().count()
    }
}

impl<'a> Rows<'a> {
    fn name(&mut self, id: Id) {
        match self.names.get(&id) {
            Some(name) => self.cell.push_str(name),
            None => self.cell.push_str(id.text(&mut [0; Id::TEXT])),
        }
    }

    /// Escapes, clips and hands over the cell that was put together.
    fn end(&mut self, cells: &mut impl Cells) -> fmt::Result {
        cells.cell(&clip(&line(&self.cell), CELL_CHARS))?;
        self.cell.clear();
        Ok(())
    }

    fn row(&mut self, task: &'a Task, cells: &mut impl Cells) -> fmt::Result {
        cells.id(task.id)?;
        cells.cell(&clip(&line(&task.name), CELL_CHARS))?;
        if self.tid.0 != task.tid {
            let text = task
                .tid
                .map_or_else(|| "-".to_owned(), |tid| tid.to_string());
            self.tid = (task.tid, text);
        }
        cells.cell(&self.tid.1)?;
        cells.cell(state(task))?;
        if self.places.len() >= MAX_PLACES {
            self.places.clear();
        }
        let frames: &[Frame] = &task.coroutine;
        let at = self.places.entry(frames.as_ptr());
        cells.cell(at.or_insert_with(|| {
            let at = place(frames);
            clip(&line(&at), CELL_CHARS).into_owned()
        }))?;
        match &task.waiting_for {
            None => self.cell.push('-'),
            Some(waiting_for) => {
                self.cell.push_str(&waiting_for.kind);
                self.cell.push(' ');
                self.name(waiting_for.id);
            }
        }
        self.end(cells)?;
        match task.awaited_by.as_slice() {
            [] => self.cell.push('-'),
            [one] => self.name(*one),
            [first, rest @ ..] => {
                self.name(*first);
                write!(self.cell, " and {} more", rest.len())?;
            }
        }
        self.end(cells)
    }
}

/// Where a task stands: its innermost frame.
fn place(frames: &[Frame]) -> String {
    let Some(frame) = frames.last() else {
        return "-".to_owned();
    };
    let file = base_name(&frame.file);
    match frame.line {
        Some(number) => format!("{} {file}:{number}", frame.function),
        None => format!("{} {file}", frame.function),
    }
}

fn state(task: &Task) -> &'static str {
    match task.state {
        TaskState::Created => "Created",
        TaskState::Waiting => "Waiting",
        TaskState::Ready => "Ready",
        TaskState::Running => "Running",
    }
}

/// Writes one row per task. Each row is made twice, which takes less time than to keep them all.
pub(super) fn render(out: &mut impl fmt::Write, tasks: &Tasks) -> fmt::Result {
    let mut rows = Rows {
        names: HashMap::with_capacity_and_hasher(tasks.tasks.len(), RandomState::default()),
        places: HashMap::default(),
        tid: (None, "-".to_owned()),
        cell: String::new(),
    };
    let names = tasks.tasks.iter().map(|task| (task.id, &*task.name));
    rows.names.extend(names);
    let mut widths = Widths::default();
    for head in HEAD {
        widths.cell(head)?;
    }
    for task in &tasks.tasks {
        rows.row(task, &mut widths)?;
    }
    let mut writer = Writer {
        out,
        widths: widths.widths,
        column: 0,
    };
    for head in HEAD {
        writer.cell(head)?;
    }
    for task in &tasks.tasks {
        rows.row(task, &mut writer)?;
    }
    Ok(())
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
