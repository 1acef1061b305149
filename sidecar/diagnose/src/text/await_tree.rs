//! The await graph as a tree: a task's children are the tasks it waits for.
//!
//! Every task is printed once with its coroutine stack. A task that several wait for is named again where it recurs;
//! a cycle ends at the task that closes it. Nothing recurses: the depth of the graph is the target's to choose.

use std::collections::{HashMap, HashSet};
use std::fmt;

use foldhash::fast::RandomState;
use sidewinder_model::{Frame, Id, Task, TaskState, Tasks};

use crate::escape::{clip, line};
use crate::summary::{count, thing};

/// Deeper than this the tree is no longer indented further, so that a chain of n tasks costs O(n) output.
const MAX_INDENT: usize = 40;

/// The longest task name, in characters.
const NAME_CHARS: usize = 120;

/// Groups of tasks that are named, and tasks of each.
const MAX_GROUPS: usize = 20;
const GROUP_NAMES: usize = 5;

/// Coroutine stacks kept as text.
const MAX_PLACES: usize = 1024;

fn state(out: &mut impl fmt::Write, task: &Task) -> fmt::Result {
    match (task.state, &task.waiting_for) {
        (TaskState::Waiting, Some(waiting_for)) => match &waiting_for.detail {
            Some(detail) => write!(
                out,
                "waits for {} ({})",
                line(&waiting_for.kind),
                line(detail)
            ),
            None => write!(
                out,
                "waits for {} {}",
                line(&waiting_for.kind),
                waiting_for.id
            ),
        },
        (TaskState::Waiting, None) => out.write_str("waiting"),
        (TaskState::Created, _) => out.write_str("not started"),
        (TaskState::Ready, _) => out.write_str("ready"),
        (TaskState::Running, _) => out.write_str("running"),
    }
}

/// Who waits for whom, by the tasks' indices: the tasks that each one waits for, in their own order.
struct Children {
    /// Where each task's children begin in `tasks`.
    starts: Vec<u32>,
    tasks: Vec<u32>,
    /// Whether somebody waits for the task.
    awaited: Vec<bool>,
}

impl Children {
    fn of(tasks: &[Task], index: &HashMap<Id, u32, RandomState>) -> Self {
        let mut edges: Vec<(u32, u32)> = Vec::with_capacity(tasks.len());
        let mut awaited = Vec::with_capacity(tasks.len());
        for (child, task) in (0_u32..).zip(tasks) {
            let before = edges.len();
            let waiters = task.awaited_by.iter().filter_map(|id| index.get(id));
            edges.extend(waiters.map(|waiter| (*waiter, child)));
            awaited.push(edges.len() > before);
        }
        // asyncio does not tell a task of those that wait in another loop, nor one that is written in Python.
        for (waiter, task) in (0_u32..).zip(tasks) {
            if let Some(on) = &task.waiting_for
                && &*on.kind == "Task"
                && let Some(child) = index.get(&on.id)
            {
                edges.push((waiter, *child));
                if let Some(awaited) = awaited.get_mut(*child as usize) {
                    *awaited = true;
                }
            }
        }
        edges.sort_unstable();
        edges.dedup();
        let mut starts = Vec::with_capacity(tasks.len().saturating_add(1));
        let mut at = 0_usize;
        for parent in (0_u32..).take(tasks.len().saturating_add(1)) {
            while edges.get(at).is_some_and(|(waiter, _)| *waiter < parent) {
                at = at.saturating_add(1);
            }
            starts.push(u32::try_from(at).unwrap_or(u32::MAX));
        }
        Self {
            starts,
            tasks: edges.into_iter().map(|(_, child)| child).collect(),
            awaited,
        }
    }

    fn get(&self, task: u32) -> &[u32] {
        let task = task as usize;
        let start = self.starts.get(task).copied().unwrap_or(0) as usize;
        let end = self.starts.get(task.saturating_add(1)).copied();
        self.tasks
            .get(start..end.unwrap_or(0) as usize)
            .unwrap_or_default()
    }
}

/// One place in the tree that is still to be printed.
struct Pending {
    task: u32,
    depth: u32,
    /// Bytes of the indent.
    indent: u32,
    last: bool,
}

#[derive(Clone, Copy, Default)]
struct Mark {
    /// Whether what the tree of a root will show includes it.
    reached: bool,
    printed: bool,
    /// Whether it lies between the root and the task that is being printed, to tell a cycle from a shared task.
    on_path: bool,
}

struct Renderer<'a> {
    tasks: &'a [Task],
    children: Children,
    marks: Vec<Mark>,
    nowhere: Mark,
    /// Frames as they were printed, by the tasks that share them.
    places: HashMap<*const Frame, Vec<String>, RandomState>,
}

impl<'a> Renderer<'a> {
    fn task(&self, index: u32) -> Option<&'a Task> {
        self.tasks.get(index as usize)
    }

    /// The marks of a task. Every index comes from the list itself; of any other the marks go nowhere.
    fn mark(&mut self, index: u32) -> &mut Mark {
        match self.marks.get_mut(index as usize) {
            Some(mark) => mark,
            None => &mut self.nowhere,
        }
    }

    /// Adds what the tree of `root` will show.
    fn reach(&mut self, root: u32) {
        let mut todo = vec![root];
        while let Some(task) = todo.pop() {
            if !std::mem::replace(&mut self.mark(task).reached, true) {
                todo.extend(self.children.get(task));
            }
        }
    }

    /// The coroutine stack of a task, each frame behind the same rule.
    fn frames(
        &mut self,
        out: &mut impl fmt::Write,
        indent: &str,
        rule: &str,
        frames: &[Frame],
    ) -> fmt::Result {
        if self.places.len() >= MAX_PLACES {
            self.places.clear();
        }
        let places = self.places.entry(frames.as_ptr()).or_insert_with(|| {
            let place = |frame: &Frame| match frame.line {
                Some(number) => {
                    format!(
                        "{} at {}:{number}",
                        line(&frame.function),
                        line(&frame.file)
                    )
                }
                None => format!("{} at {}", line(&frame.function), line(&frame.file)),
            };
            frames.iter().map(place).collect()
        });
        for place in places {
            for part in [indent, rule, place, "\n"] {
                out.write_str(part)?;
            }
        }
        Ok(())
    }

    fn tree(&mut self, out: &mut impl fmt::Write, root: u32, last_root: bool) -> fmt::Result {
        let mut path: Vec<u32> = Vec::new();
        // The indent of the task that is being printed; those of the pending ones are beginnings of it.
        let mut indent = String::new();
        let mut stack = vec![Pending {
            task: root,
            depth: 0,
            indent: 0,
            last: last_root,
        }];
        while let Some(pending) = stack.pop() {
            let depth = pending.depth as usize;
            while path.len() > depth
                && let Some(left) = path.pop()
            {
                self.mark(left).on_path = false;
            }
            indent.truncate(pending.indent as usize);
            let (branch, stem) = if pending.last {
                ("└── ", "    ")
            } else {
                ("├── ", "│   ")
            };
            let Some(task) = self.task(pending.task) else {
                continue;
            };
            let name = line(&task.name);
            let name = clip(&name, NAME_CHARS);
            out.write_str(&indent)?;
            out.write_str(branch)?;
            out.write_str(&name)?;
            let mark = self.mark(pending.task);
            if std::mem::replace(&mut mark.printed, true) {
                out.write_str(if mark.on_path {
                    " (closes a cycle)\n"
                } else {
                    " (shown above)\n"
                })?;
                continue;
            }
            mark.on_path = true;
            path.push(pending.task);
            out.write_str(" [")?;
            state(out, task)?;
            out.write_str("]\n")?;
            if depth < MAX_INDENT {
                indent.push_str(stem);
            }
            let children = self.children.get(pending.task);
            let rule = if children.is_empty() {
                "    "
            } else {
                "│   "
            };
            for (index, child) in children.iter().enumerate().rev() {
                stack.push(Pending {
                    task: *child,
                    depth: pending.depth.saturating_add(1),
                    indent: u32::try_from(indent.len()).unwrap_or(0),
                    last: index.saturating_add(1) == children.len(),
                });
            }
            self.frames(out, &indent, rule, &task.coroutine)?;
        }
        for left in path {
            self.mark(left).on_path = false;
        }
        Ok(())
    }
}

/// The loops with their titles and the tasks of each, by their indices; last the tasks of no known loop.
fn groups(tasks: &Tasks) -> Vec<(String, Vec<u32>)> {
    let mut members_of: HashMap<Option<Id>, Vec<u32>> = HashMap::new();
    let loops: HashSet<Id> = tasks.loops.iter().map(|each| each.id).collect();
    for (index, task) in (0_u32..).zip(&tasks.tasks) {
        let id = task.loop_id.filter(|id| loops.contains(id));
        members_of.entry(id).or_default().push(index);
    }
    let mut groups: Vec<(String, Vec<u32>)> = tasks
        .loops
        .iter()
        .map(|each| {
            let place = match (each.running, each.tid) {
                (true, Some(tid)) => format!("running in thread {tid}"),
                _ => "not running".to_owned(),
            };
            let interpreter = if each.interpreter == 0 {
                String::new()
            } else {
                format!(", interpreter {}", each.interpreter)
            };
            (
                format!("loop {} ({place}{interpreter})", each.id),
                members_of.remove(&Some(each.id)).unwrap_or_default(),
            )
        })
        .collect();
    if let Some(members) = members_of.remove(&None) {
        groups.push(("tasks of no known loop".to_owned(), members));
    }
    groups
}

/// Writes every task, loop by loop.
pub(super) fn render(out: &mut impl fmt::Write, tasks: &Tasks) -> fmt::Result {
    let index: HashMap<Id, u32, RandomState> = tasks
        .tasks
        .iter()
        .zip(0_u32..)
        .map(|(task, index)| (task.id, index))
        .collect();
    let mut renderer = Renderer {
        tasks: &tasks.tasks,
        children: Children::of(&tasks.tasks, &index),
        marks: vec![Mark::default(); tasks.tasks.len()],
        nowhere: Mark::default(),
        places: HashMap::default(),
    };
    writeln!(
        out,
        "{} in {}",
        count(tasks.tasks.len(), "task"),
        count(tasks.loops.len(), "loop")
    )?;
    for (title, members) in groups(tasks) {
        writeln!(out, "\n{title}: {}", count(members.len(), "task"))?;
        let awaited = |task: u32| renderer.children.awaited.get(task as usize) == Some(&true);
        let mut roots: Vec<u32> = members.iter().copied().filter(|t| !awaited(*t)).collect();
        for root in &roots {
            renderer.reach(*root);
        }
        // What no root leads to is part of a cycle, or awaited by one.
        for task in members {
            if !renderer.mark(task).reached {
                renderer.reach(task);
                roots.push(task);
            }
        }
        let count = roots.len();
        for (index, root) in roots.into_iter().enumerate() {
            renderer.tree(out, root, index.saturating_add(1) == count)?;
        }
    }
    let name = |id: &Id| match index.get(id).and_then(|index| renderer.task(*index)) {
        Some(task) => clip(&line(&task.name), NAME_CHARS).into_owned(),
        None => id.to_string(),
    };
    if !tasks.groups.is_empty() {
        out.write_str("\nwaiting groups\n")?;
    }
    for group in tasks.groups.iter().take(MAX_GROUPS) {
        let names: Vec<String> = group.tasks.iter().take(GROUP_NAMES).map(name).collect();
        let more = group.tasks.len().saturating_sub(names.len());
        write!(
            out,
            "    {} wait for {}: {}",
            group.tasks.len(),
            line(&thing(group)),
            names.join(", ")
        )?;
        match more {
            0 => out.write_str("\n")?,
            more => writeln!(out, " and {more} more")?,
        }
    }
    if let Some(more) = tasks
        .groups
        .len()
        .checked_sub(MAX_GROUPS)
        .filter(|n| *n > 0)
    {
        writeln!(out, "    {} more", count(more, "group"))?;
    }
    for cycle in &tasks.cycles {
        let names: Vec<String> = cycle.iter().map(name).collect();
        match names.as_slice() {
            [one] => writeln!(out, "\ncycle: {one} waits for itself")?,
            names => writeln!(out, "\ncycle: {} wait for each other", names.join(", "))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn render(tasks: &Tasks) -> String {
        crate::text::tasks(tasks, sidewinder_model::TaskFormat::Tree)
    }

    #[test]
    fn children_are_what_a_task_waits_for_and_each_is_printed_once() {
        assert_eq!(
            render(&samples::tasks()),
            "4 tasks in 1 loop\n\n\
             loop 0x10 (running in thread 7): 4 tasks\n\
             ├── boss [running]\n\
             │   │   boss at /app/app.py:30\n\
             │   ├── shared [waits for Future (2 waiters)]\n\
             │   │       worker at /app/app.py:5\n\
             │   └── lone [waits for Future (2 waiters)]\n\
             │           worker at /app/app.py:5\n\
             └── other [waits for Task (shared)]\n\
             \x20   └── shared (shown above)\n\n\
             waiting groups\n\
             \x20   2 wait for Future (2 waiters): shared, lone\n"
        );
    }

    #[test]
    fn a_cycle_without_a_root_is_printed_and_marked() {
        let mut sample = samples::tasks();
        sample.tasks.truncate(2);
        sample.tasks[0].awaited_by = vec![sample.tasks[1].id];
        sample.tasks[1].awaited_by = vec![sample.tasks[0].id];
        sample.cycles = vec![vec![sample.tasks[0].id, sample.tasks[1].id]];
        let mut apart = samples::tasks().tasks[0].clone();
        apart.id = Id(0xa);
        apart.name = "apart".into();
        sample.tasks.push(apart);
        let text = render(&sample);
        assert!(
            text.contains("\n├── apart [running]\n") && text.contains("\n└── boss"),
            "{text}"
        );
        assert!(text.contains("boss (closes a cycle)"), "{text}");
        assert!(
            text.contains("cycle: boss, shared wait for each other"),
            "{text}"
        );
    }

    #[test]
    fn a_task_that_asyncio_does_not_tell_who_waits_for_it_is_a_child_all_the_same() {
        let mut sample = samples::tasks();
        sample.tasks[1].awaited_by = vec![Id(1)];
        let text = render(&sample);
        assert!(
            text.contains("└── other [waits for Task (shared)]\n    └── shared (shown above)\n"),
            "{text}"
        );
    }

    #[test]
    fn a_chain_of_many_tasks_ends_and_stays_small() {
        let mut sample = samples::tasks();
        let proto = sample.tasks[1].clone();
        sample.tasks = (0..20_000)
            .map(|index| Task {
                id: Id(index),
                awaited_by: if index == 0 {
                    vec![]
                } else {
                    vec![Id(index - 1)]
                },
                ..proto.clone()
            })
            .collect();
        assert!(render(&sample).len() < 20_000 * 800);
    }
}
