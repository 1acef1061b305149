//! The tasks as a table, one row each.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::{self, Write as _};

use foldhash::fast::RandomState;
use sidewinder_model::{Frame, Id, Task, TaskState, Tasks};

use crate::escape::{base_name, clip, is_plain, line};

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

/// How wide each column is.
#[derive(Default)]
struct Widths([usize; HEAD.len()]);

impl Widths {
    fn widen(&mut self, column: usize, width: usize) {
        if let Some(widest) = self.0.get_mut(column) {
            *widest = width.max(*widest);
        }
    }
}

/// Left-aligned columns, two blanks apart, the last one ragged.
struct Writer<'o, W> {
    out: &'o mut W,
    widths: Widths,
    column: usize,
}

impl<W: fmt::Write> Writer<'_, W> {
    fn cell(&mut self, text: &str) -> fmt::Result {
        const BLANKS: &str = "                                                                ";
        self.out.write_str(text)?;
        let next = self.column.saturating_add(1);
        if next == HEAD.len() {
            self.column = 0;
            return self.out.write_char('\n');
        }
        let widest = self.widths.0.get(self.column).copied().unwrap_or(0);
        self.column = next;
        let pad = widest.saturating_sub(width(text)).saturating_add(2);
        self.out.write_str(BLANKS.get(..pad).unwrap_or(BLANKS))
    }
}

/// A text as a cell shows it.
fn shown(text: &str) -> Cow<'_, str> {
    match line(text) {
        Cow::Borrowed(text) => clip(text, CELL_CHARS),
        Cow::Owned(text) => Cow::Owned(clip(&text, CELL_CHARS).into_owned()),
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

    /// Escapes, clips and writes the cell that was put together.
    fn end(&mut self, out: &mut Writer<'_, impl fmt::Write>) -> fmt::Result {
        out.cell(&shown(&self.cell))?;
        self.cell.clear();
        Ok(())
    }

    fn tid(&mut self, tid: Option<u64>) -> &str {
        if self.tid.0 != tid {
            let text = tid.map_or_else(|| "-".to_owned(), |tid| tid.to_string());
            self.tid = (tid, text);
        }
        &self.tid.1
    }

    fn place(&mut self, frames: &[Frame]) -> &str {
        if self.places.len() >= MAX_PLACES {
            self.places.clear();
        }
        let at = self.places.entry(frames.as_ptr());
        at.or_insert_with(|| shown(&place(frames)).into_owned())
    }

    /// What a task waits for, into the cell.
    fn waits(&mut self, task: &Task) {
        match &task.waiting_for {
            None => self.cell.push('-'),
            Some(waiting_for) => {
                self.cell.push_str(&waiting_for.kind);
                self.cell.push(' ');
                self.name(waiting_for.id);
            }
        }
    }

    /// Widens the columns for a task, but for the last, with as little writing as can be.
    fn measure(&mut self, task: &'a Task, widths: &mut Widths) {
        widths.widen(0, task.id.text_len());
        widths.widen(1, width(&shown(&task.name)));
        widths.widen(2, self.tid(task.tid).len());
        widths.widen(3, state(task).len());
        widths.widen(4, width(self.place(&task.coroutine)));
        let plain = task.waiting_for.as_ref().and_then(|waiting_for| {
            let what = match self.names.get(&waiting_for.id) {
                Some(name) => is_plain(name).then_some(name.len())?,
                None => waiting_for.id.text_len(),
            };
            let kind = &waiting_for.kind;
            let width = kind.len().saturating_add(1).saturating_add(what);
            (is_plain(kind) && width <= CELL_CHARS).then_some(width)
        });
        let waits = plain.unwrap_or_else(|| {
            self.waits(task);
            let width = width(&shown(&self.cell));
            self.cell.clear();
            width
        });
        widths.widen(5, waits);
    }

    fn row(&mut self, task: &'a Task, out: &mut Writer<'_, impl fmt::Write>) -> fmt::Result {
        out.cell(task.id.text(&mut [0; Id::TEXT]))?;
        out.cell(&shown(&task.name))?;
        out.cell(self.tid(task.tid))?;
        out.cell(state(task))?;
        out.cell(self.place(&task.coroutine))?;
        self.waits(task);
        self.end(out)?;
        match task.awaited_by.as_slice() {
            [] => self.cell.push('-'),
            [one] => self.name(*one),
            [first, rest @ ..] => {
                self.name(*first);
                write!(self.cell, " and {} more", rest.len())?;
            }
        }
        self.end(out)
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

/// Writes one row per task.
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
    for (column, head) in HEAD.into_iter().enumerate() {
        widths.widen(column, head.len());
    }
    for task in &tasks.tasks {
        rows.measure(task, &mut widths);
    }
    let mut writer = Writer {
        out,
        widths,
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
