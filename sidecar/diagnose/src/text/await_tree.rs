//! The await graph as a tree: a task's children are the tasks it waits for.
//!
//! Every task is printed once with its coroutine stack. A task that several wait for is named again where it recurs;
//! a cycle ends at the task that closes it. Nothing recurses: the depth of the graph is the target's to choose.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use sidewinder_model::{Task, TaskState, Tasks};

use crate::escape::{clip, line};
use crate::summary::count;

/// Deeper than this the tree is no longer indented further, so that a chain of n tasks costs O(n) output.
const MAX_INDENT: usize = 40;

/// The longest task name, in characters.
const NAME_CHARS: usize = 120;

fn state(task: &Task) -> String {
    match (task.state, &task.waiting_for) {
        (TaskState::Waiting, Some(waiting_for)) => match &waiting_for.detail {
            Some(detail) => format!("waits for {} ({detail})", waiting_for.kind),
            None => format!("waits for {} {}", waiting_for.kind, waiting_for.id),
        },
        (TaskState::Waiting, None) => "waiting".to_owned(),
        (TaskState::Created, _) => "not started".to_owned(),
        (TaskState::Ready, _) => "ready".to_owned(),
        (TaskState::Running, _) => "running".to_owned(),
    }
}

/// One place in the tree that is still to be printed.
struct Pending<'a> {
    task: &'a Task,
    depth: usize,
    indent: String,
    last: bool,
}

struct Renderer<'a> {
    children: HashMap<&'a str, Vec<&'a Task>>,
    printed: HashSet<&'a str>,
    out: String,
}

impl<'a> Renderer<'a> {
    /// Adds what the tree of `root` will show.
    fn reach(&self, root: &'a Task, reached: &mut HashSet<&'a str>) {
        let mut todo = vec![root];
        while let Some(task) = todo.pop() {
            if reached.insert(&task.id) {
                todo.extend(self.children.get(task.id.as_str()).into_iter().flatten());
            }
        }
    }

    fn tree(&mut self, root: &'a Task, last_root: bool) {
        // Ids on the way from the root to the current task, to tell a cycle from a task shared by several.
        let mut path: Vec<&'a str> = Vec::new();
        let mut on_path: HashSet<&'a str> = HashSet::new();
        let mut stack = vec![Pending {
            task: root,
            depth: 0,
            indent: String::new(),
            last: last_root,
        }];
        while let Some(Pending {
            task,
            depth,
            indent,
            last,
        }) = stack.pop()
        {
            for left in path.drain(depth.min(path.len())..) {
                on_path.remove(left);
            }
            let (branch, stem) = if last {
                ("└── ", "    ")
            } else {
                ("├── ", "│   ")
            };
            let name = clip(&line(&task.name), NAME_CHARS);
            if !self.printed.insert(&task.id) {
                let note = if on_path.contains(task.id.as_str()) {
                    "closes a cycle"
                } else {
                    "shown above"
                };
                let _ = writeln!(self.out, "{indent}{branch}{name} ({note})");
                continue;
            }
            let _ = writeln!(self.out, "{indent}{branch}{name} [{}]", line(&state(task)));
            path.push(&task.id);
            on_path.insert(&task.id);
            let children: Vec<&'a Task> = self
                .children
                .get(task.id.as_str())
                .cloned()
                .unwrap_or_default();
            let inner = if depth < MAX_INDENT {
                format!("{indent}{stem}")
            } else {
                indent
            };
            let rule = if children.is_empty() {
                "    "
            } else {
                "│   "
            };
            for frame in &task.coroutine {
                let _ = write!(
                    self.out,
                    "{inner}{rule}{} at {}",
                    line(&frame.function),
                    line(&frame.file)
                );
                let _ = match frame.line {
                    Some(number) => writeln!(self.out, ":{number}"),
                    None => writeln!(self.out),
                };
            }
            let count = children.len();
            for (index, child) in children.into_iter().enumerate().rev() {
                stack.push(Pending {
                    task: child,
                    depth: depth.saturating_add(1),
                    indent: inner.clone(),
                    last: index.saturating_add(1) == count,
                });
            }
        }
    }
}

/// Renders every task, loop by loop.
pub(super) fn render(tasks: &Tasks) -> String {
    let mut children: HashMap<&str, Vec<&Task>> = HashMap::new();
    let known: HashSet<&str> = tasks.tasks.iter().map(|task| task.id.as_str()).collect();
    for task in &tasks.tasks {
        for waiter in &task.awaited_by {
            children.entry(waiter).or_default().push(task);
        }
    }
    let mut renderer = Renderer {
        children,
        printed: HashSet::new(),
        out: String::new(),
    };
    let _ = writeln!(
        renderer.out,
        "{} in {}",
        count(tasks.tasks.len(), "task"),
        count(tasks.loops.len(), "loop")
    );
    let mut groups: Vec<(Option<&str>, String)> = tasks
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
                Some(each.id.as_str()),
                format!("loop {} ({place}{interpreter})", line(&each.id)),
            )
        })
        .collect();
    let mut members_of: HashMap<Option<&str>, Vec<&Task>> = HashMap::new();
    let loops: HashSet<&str> = tasks.loops.iter().map(|each| each.id.as_str()).collect();
    for task in &tasks.tasks {
        let id = task.loop_id.as_deref().filter(|own| loops.contains(own));
        members_of.entry(id).or_default().push(task);
    }
    groups.push((None, "tasks of no known loop".to_owned()));
    for (id, title) in groups {
        let members = members_of.remove(&id).unwrap_or_default();
        if id.is_none() && members.is_empty() {
            continue;
        }
        let _ = writeln!(renderer.out, "\n{title}: {}", count(members.len(), "task"));
        let waits = |task: &&Task| {
            let mut waiters = task.awaited_by.iter();
            waiters.any(|waiter| known.contains(waiter.as_str()))
        };
        let mut roots: Vec<&Task> = members
            .iter()
            .copied()
            .filter(|task| !waits(task))
            .collect();
        let mut reached = renderer.printed.clone();
        for root in &roots {
            renderer.reach(root, &mut reached);
        }
        // What no root leads to is part of a cycle, or awaited by one.
        for task in members {
            if !reached.contains(task.id.as_str()) {
                renderer.reach(task, &mut reached);
                roots.push(task);
            }
        }
        let count = roots.len();
        for (index, root) in roots.into_iter().enumerate() {
            renderer.tree(root, index.saturating_add(1) == count);
        }
    }
    let task_names: HashMap<&str, &str> = tasks
        .tasks
        .iter()
        .map(|task| (task.id.as_str(), task.name.as_str()))
        .collect();
    for cycle in &tasks.cycles {
        let names: Vec<String> = cycle
            .iter()
            .map(|id| {
                clip(
                    &line(task_names.get(id.as_str()).copied().unwrap_or(id)),
                    NAME_CHARS,
                )
            })
            .collect();
        let _ = writeln!(
            renderer.out,
            "\ncycle: {} wait for each other",
            names.join(", ")
        );
    }
    renderer.out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

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
             \x20   └── shared (shown above)\n"
        );
    }

    #[test]
    fn a_cycle_without_a_root_is_printed_and_marked() {
        let mut sample = samples::tasks();
        sample.tasks.truncate(2);
        sample.tasks[0].awaited_by = vec![sample.tasks[1].id.clone()];
        sample.tasks[1].awaited_by = vec![sample.tasks[0].id.clone()];
        sample.cycles = vec![vec![sample.tasks[0].id.clone(), sample.tasks[1].id.clone()]];
        let mut apart = samples::tasks().tasks[0].clone();
        apart.id = "0xa".to_owned();
        apart.name = "apart".to_owned();
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
    fn a_chain_of_many_tasks_ends_and_stays_small() {
        let mut sample = samples::tasks();
        let proto = sample.tasks[1].clone();
        sample.tasks = (0..20_000)
            .map(|index| Task {
                id: format!("{index:#x}"),
                awaited_by: if index == 0 {
                    vec![]
                } else {
                    vec![format!("{:#x}", index - 1)]
                },
                ..proto.clone()
            })
            .collect();
        assert!(render(&sample).len() < 20_000 * 800);
    }
}
