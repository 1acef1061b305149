//! Compares what was read of a target with what the target said of itself (`tests/programs/truth.py`): every
//! interpreter, thread, frame, loop, task and edge, by name and by line. Neither side may have more than the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use serde_json::Value;

/// The bytes of a name beyond which it may be cut, as `Limits` has it.
const NAME_BYTES: usize = 65_536;

/// Everything in which the documents of `stacks` and `tasks` differ from what the target said.
pub(crate) fn differences(stacks: &Value, tasks: &Value, said: &Value) -> Vec<String> {
    let mut found = Differences(Vec::new());
    for document in [stacks, tasks] {
        for problem in array(&document["problems"]) {
            found.add("problem", problem);
        }
    }
    let interpreters = by("id", &stacks["interpreters"]);
    let said_interpreters = by("id", &said["interpreters"]);
    for (id, interpreter) in &interpreters {
        let said = said_interpreters.contains_key(id);
        // One in which nothing runs cannot say anything.
        if !said && array(&interpreter["threads"]).next().is_some() {
            found.add(
                "interpreter",
                format!("{id} has threads and was not said to be there"),
            );
        }
    }
    let mut said_tasks = BTreeMap::new();
    let mut said_loops = BTreeMap::new();
    let mut said_cycles = BTreeSet::new();
    for interpreter in array(&said["interpreters"]) {
        let id = &interpreter["id"];
        found.threads(
            id,
            interpreters
                .get(&id.to_string())
                .map_or(&Value::Null, |found| &found["threads"]),
            &interpreter["threads"],
        );
        for (task, said) in interpreter["tasks"].as_object().into_iter().flatten() {
            said_tasks.insert(task.clone(), (id, said));
        }
        for said in array(&interpreter["loops"]) {
            said_loops.insert(text(&said["id"]), (id, said));
        }
        said_cycles.extend(array(&interpreter["cycles"]).map(members));
    }
    found.tasks(&by("id", &tasks["tasks"]), &said_tasks);
    found.loops(&by("id", &tasks["loops"]), &said_loops);
    let cycles: BTreeSet<_> = array(&tasks["cycles"]).map(members).collect();
    found.equal("cycles", "", &cycles, &said_cycles);
    found.0
}

struct Differences(Vec<String>);

impl Differences {
    fn add(&mut self, what: &str, which: impl Debug) {
        self.0.push(format!("{what}: {which:?}"));
    }

    fn equal<T: PartialEq + Debug>(&mut self, what: &str, whose: &str, found: &T, said: &T) {
        if found != said {
            self.0
                .push(format!("{whose}: {what} is {found:?}, said was {said:?}"));
        }
    }

    fn same_ids<V, W>(
        &mut self,
        what: &str,
        found: &BTreeMap<String, V>,
        said: &BTreeMap<String, W>,
    ) {
        for id in found.keys().filter(|id| !said.contains_key(*id)) {
            self.add(what, format!("{id} is not there"));
        }
        for id in said.keys().filter(|id| !found.contains_key(*id)) {
            self.add(what, format!("{id} was not found"));
        }
    }

    fn threads(&mut self, interpreter: &Value, found: &Value, said: &Value) {
        let found = by("ident", found);
        let said: BTreeMap<String, &Value> = said
            .as_object()
            .into_iter()
            .flatten()
            .map(|(ident, thread)| (ident.clone(), thread))
            .collect();
        self.same_ids(
            &format!("thread of interpreter {interpreter}"),
            &found,
            &said,
        );
        for (ident, said) in said {
            let Some(found) = found.get(&ident) else {
                continue;
            };
            let whose = format!(
                "thread {ident} ({}) of interpreter {interpreter}",
                said["name"]
            );
            // A thread that `threading` does not know has neither there.
            if !said["name"].is_null() {
                self.name(&whose, &found["name"], &said["name"]);
                self.equal("tid", &whose, &found["tid"], &said["tid"]);
            }
            self.equal("main", &whose, &found["main"], &said["main"]);
            self.frames(&whose, &found["frames"], &said["frames"]);
        }
    }

    fn tasks(
        &mut self,
        found: &BTreeMap<String, &Value>,
        said: &BTreeMap<String, (&Value, &Value)>,
    ) {
        self.same_ids("task", found, said);
        let tasks: BTreeSet<String> = said.keys().cloned().collect();
        for (id, (interpreter, said)) in said {
            let Some(found) = found.get(id) else { continue };
            let whose = format!("task {id} ({})", said["name"]);
            self.equal("interpreter", &whose, &found["interpreter"], *interpreter);
            self.name(&whose, &found["name"], &said["name"]);
            for what in ["loop", "tid", "state", "awaitedBy"] {
                self.equal(what, &whose, &found[what], &said[what]);
            }
            // Where a bare future is awaited, what stands behind it is shown in its place: a lock, a queue, a stream.
            let waits_for = &found["waitingFor"]["id"];
            if tasks.contains(&text(&said["waitingFor"])) {
                self.equal("waitingFor", &whose, waits_for, &said["waitingFor"]);
            } else {
                let (found, said) = (waits_for.is_null(), said["waitingFor"].is_null());
                self.equal("waiting for nothing", &whose, &found, &said);
            }
            self.frames(&whose, &found["coroutine"], &said["coroutine"]);
        }
    }

    fn loops(
        &mut self,
        found: &BTreeMap<String, &Value>,
        said: &BTreeMap<String, (&Value, &Value)>,
    ) {
        self.same_ids("loop", found, said);
        for (id, (interpreter, said)) in said {
            let Some(found) = found.get(id) else { continue };
            let whose = format!("loop {id}");
            self.equal("interpreter", &whose, &found["interpreter"], *interpreter);
            for what in ["tid", "running"] {
                self.equal(what, &whose, &found[what], &said[what]);
            }
        }
    }

    fn name(&mut self, whose: &str, found: &Value, said: &Value) {
        let (found, said) = (text(found), text(said));
        if said.len() > NAME_BYTES {
            let kept = found.strip_suffix('…').unwrap_or("not cut");
            if !said.starts_with(kept) || kept.len() < NAME_BYTES - 8 {
                self.add(whose, format!("its long name became {found:?}"));
            }
        } else {
            self.equal("name", whose, &found, &said);
        }
    }

    fn frames(&mut self, whose: &str, found: &Value, said: &Value) {
        let (found, said): (Vec<_>, Vec<_>) = (array(found).collect(), array(said).collect());
        for (n, (found, said)) in found.iter().zip(&said).enumerate() {
            let whose = format!("{whose}, frame {n}");
            self.name(&whose, &found["function"], &said[0]);
            self.name(&whose, &found["file"], &said[1]);
            self.equal("line", &whose, &found["line"], &said[2]);
        }
        self.equal("frames", whose, &found.len(), &said.len());
    }
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The members of a list by one of their own.
fn by<'a>(member: &str, list: &'a Value) -> BTreeMap<String, &'a Value> {
    array(list)
        .map(|entry| {
            let id = &entry[member];
            (
                id.as_str().map_or_else(|| id.to_string(), str::to_owned),
                entry,
            )
        })
        .collect()
}

fn members(cycle: &Value) -> BTreeSet<String> {
    array(cycle).map(text).collect()
}
