//! asyncio's tasks: the document of `tasks`.

use std::collections::{HashMap, HashSet};

use sidewinder_model::{Locals, Loop, Task, TaskState, Tasks, WaitingFor};

use crate::coroutine::{Chain, CoroutineState};
use crate::decoder::{Decoder, Fault};
use crate::graph;
use crate::limits::Limits;
use crate::memory::{Addr, Memory};
use crate::offsets::{AsyncioOffsets, Field as F};
use crate::os::OsThread;
use crate::runtime::Runtime;
use crate::thread::{PyThread, by_native_id};

/// Children of one `gather` whose states are counted.
const MAX_CHILDREN: usize = 1024;

/// Every task that is not done, of every thread of every interpreter, with the loops and the circles of waiting.
pub fn tasks<M: Memory + ?Sized>(
    memory: &M,
    runtime: &Runtime,
    os_threads: &[OsThread],
    limits: &Limits,
) -> Tasks {
    let decoder = Decoder::new(memory, runtime, limits);
    let mut tasks = match runtime.asyncio() {
        None => Tasks::default(),
        Some(offsets) => {
            let mut walk = Walk {
                decoder: &decoder,
                offsets,
                found: Vec::new(),
                by_address: HashMap::new(),
                loops: Vec::new(),
                stopped: false,
            };
            walk.lists(os_threads);
            walk.decode()
        }
    };
    tasks.problems = decoder.into_problems();
    tasks
}

/// A task that was found and is yet to be decoded.
#[derive(Clone, Copy)]
struct Found {
    address: Addr,
    interpreter: i64,
    /// The thread it belongs to, in the reader's PID namespace.
    tid: Option<u64>,
    /// The innermost frame of the thread that runs it, where it is running.
    running_in: Option<Addr>,
}

/// A task object's own words.
struct RawTask {
    loop_object: Addr,
    coroutine: Addr,
    name: Addr,
    waiter: Addr,
}

struct Walk<'d, 'a, M: ?Sized> {
    decoder: &'d Decoder<'a, M>,
    offsets: &'d AsyncioOffsets,
    found: Vec<Found>,
    by_address: HashMap<Addr, usize>,
    loops: Vec<Loop>,
    /// Set when the limit of tasks was reached.
    stopped: bool,
}

impl<M: Memory + ?Sized> Walk<'_, '_, M> {
    /// Collects the tasks of every list.
    fn lists(&mut self, os_threads: &[OsThread]) {
        let os = by_native_id(os_threads);
        for interpreter in self.decoder.interpreters() {
            let threads = self.decoder.threads(&interpreter, os_threads);
            for thread in &threads {
                let tid = os.get(&thread.native).map(|os| os.tid);
                let head = thread.address.plus(self.offsets.thread_tasks_head);
                self.list(
                    head,
                    interpreter.id,
                    tid,
                    &format!("tasks of thread {}", thread.native),
                );
                self.running_loop(thread, interpreter.id, tid);
            }
            // Tasks whose thread has ended.
            let head = interpreter
                .address
                .plus(self.offsets.interpreter_tasks_head);
            self.list(
                head,
                interpreter.id,
                None,
                &format!("left-over tasks of interpreter {}", interpreter.id),
            );
            // Only now: a running task usually stands in a list, maybe that of another thread.
            for thread in &threads {
                let tid = os.get(&thread.native).map(|os| os.tid);
                self.running_task(thread, interpreter.id, tid);
            }
        }
    }

    fn list(&mut self, head: Addr, interpreter: i64, tid: Option<u64>, whose: &str) {
        let decoder = self.decoder;
        let mut node = match decoder.pointer(decoder.member(head, F::llist_node_next)) {
            Ok(node) => node,
            Err(fault) => return decoder.problem(format_args!("{whose}: {fault}")),
        };
        while node != head && !node.is_null() {
            let address = node.minus(self.offsets.task_node);
            if !self.add(Found {
                address,
                interpreter,
                tid,
                running_in: None,
            }) {
                if !self.stopped {
                    decoder.problem(format_args!(
                        "{whose}: the list meets the task at {address} twice"
                    ));
                }
                return;
            }
            node = match decoder.pointer(decoder.member(node, F::llist_node_next)) {
                Ok(node) => node,
                Err(fault) => {
                    return decoder.problem(format_args!(
                        "{whose}: after the task at {address}: {fault}"
                    ));
                }
            };
        }
    }

    /// Whether the task is new and within the limit.
    fn add(&mut self, found: Found) -> bool {
        if self.by_address.contains_key(&found.address) {
            return false;
        }
        if self.found.len() >= self.decoder.limits.tasks {
            self.decoder.problem(format_args!(
                "more than {} tasks: the others are left out",
                self.found.len()
            ));
            self.stopped = true;
            return false;
        }
        self.by_address.insert(found.address, self.found.len());
        self.found.push(found);
        true
    }

    fn running_loop(&mut self, thread: &PyThread, interpreter: i64, tid: Option<u64>) {
        match self
            .decoder
            .pointer(thread.address.plus(self.offsets.running_loop))
        {
            Ok(at) if at.is_null() => {}
            Ok(at) => self.loops.push(Loop {
                id: at.to_string(),
                tid,
                interpreter,
                running: true,
            }),
            Err(fault) => self.decoder.problem(format_args!(
                "running loop of thread {}: {fault}",
                thread.native
            )),
        }
    }

    /// A task in its first eager step stands in no list yet.
    fn running_task(&mut self, thread: &PyThread, interpreter: i64, tid: Option<u64>) {
        let address = match self
            .decoder
            .pointer(thread.address.plus(self.offsets.running_task))
        {
            Ok(address) if address.is_null() => return,
            Ok(address) => address,
            Err(fault) => {
                return self.decoder.problem(format_args!(
                    "running task of thread {}: {fault}",
                    thread.native
                ));
            }
        };
        self.add(Found {
            address,
            interpreter,
            tid,
            running_in: None,
        });
        if let Some(found) = self
            .by_address
            .get(&address)
            .and_then(|n| self.found.get_mut(*n))
        {
            found.running_in = Some(thread.current_frame);
        }
    }

    fn decode(mut self) -> Tasks {
        let found = std::mem::take(&mut self.found);
        // The one frame chain that a coroutine being executed can lie on, by thread.
        let frames: HashMap<u64, Addr> = found
            .iter()
            .filter_map(|found| Some((found.tid?, found.running_in?)))
            .collect();
        let mut tasks = Vec::with_capacity(found.len());
        let mut waits_for: Vec<Vec<usize>> = vec![Vec::new(); found.len()];
        let mut known_loops: HashSet<String> = self.loops.iter().map(|l| l.id.clone()).collect();
        for (n, found) in found.iter().enumerate() {
            let id = found.address.to_string();
            let mut task = Task {
                id,
                interpreter: found.interpreter,
                tid: found.tid,
                ..Task::default()
            };
            let mut edges = Vec::new();
            match self.raw(found.address) {
                Ok(raw) => {
                    let thread = found
                        .running_in
                        .or_else(|| frames.get(&found.tid?).copied());
                    self.fill(&mut task, found, &raw, thread, &mut edges);
                    if !raw.loop_object.is_null() {
                        let id = raw.loop_object.to_string();
                        if known_loops.insert(id.clone()) {
                            self.loops.push(Loop {
                                id: id.clone(),
                                tid: None,
                                interpreter: found.interpreter,
                                running: false,
                            });
                        }
                        task.loop_id = Some(id);
                    }
                }
                Err(fault @ Fault::Limit(_)) => {
                    self.decoder.problem(format_args!("tasks: {fault}"));
                    break;
                }
                Err(fault) => {
                    self.decoder
                        .problem(format_args!("task at {}: {fault}", found.address));
                    // Its memory is no task: an entry would be an invention.
                    if fault == Fault::Invalid(NOT_A_TASK) {
                        continue;
                    }
                }
            }
            for (from, to) in edges {
                if let Some(edges) = waits_for.get_mut(from.unwrap_or(n)) {
                    edges.push(to.unwrap_or(n));
                }
            }
            tasks.push(task);
        }
        let cycles = graph::cycles(&waits_for)
            .into_iter()
            .map(|members| {
                members
                    .iter()
                    .filter_map(|n| Some(found.get(*n)?.address.to_string()))
                    .collect()
            })
            .collect();
        Tasks {
            loops: self.loops,
            tasks,
            cycles,
            paused_microseconds: 0,
            problems: Vec::new(),
        }
    }

    fn raw(&self, task: Addr) -> Result<RawTask, Fault> {
        let decoder = self.decoder;
        if !decoder.is_future(task)? {
            return Err(Fault::Invalid(NOT_A_TASK));
        }
        let word = |at| decoder.pointer(task.plus(at));
        Ok(RawTask {
            loop_object: word(decoder.offsets().get(F::pyobject_size))?,
            coroutine: word(self.offsets.task_coro)?,
            name: word(self.offsets.task_name)?,
            waiter: word(self.offsets.task_coro.saturating_sub(8))?,
        })
    }

    /// Everything about a task but its loop. Edges are pairs of a waiting and an awaited task, `None` for this one.
    fn fill(
        &self,
        task: &mut Task,
        found: &Found,
        raw: &RawTask,
        thread: Option<Addr>,
        edges: &mut Vec<(Option<usize>, Option<usize>)>,
    ) {
        let decoder = self.decoder;
        task.name = self.name(raw.name).unwrap_or_else(|fault| {
            decoder.problem(format_args!(
                "name of the task at {}: {fault}",
                found.address
            ));
            String::new()
        });
        // Text only where there is a problem: there may be a million tasks.
        let whose = Whose {
            address: found.address,
            name: &task.name,
        };
        let mut chain = decoder.chain(whose, raw.coroutine);
        if let Some(frame) = chain.executing
            && let Some(innermost) = thread
        {
            let (beneath, met) = decoder.frames(whose, innermost, Some(frame), Locals::None);
            if met {
                chain.frames.extend(beneath);
            } else {
                decoder.problem(format_args!(
                    "{whose}: its frame is not on its thread's stack"
                ));
            }
        }
        task.state = self.state(found, raw, &chain);
        task.coroutine = chain.frames;
        match self.awaiters(found.address) {
            Ok(awaiters) => {
                for awaiter in awaiters {
                    let known = self.by_address.get(&awaiter).copied();
                    // Plain futures are no tasks, and tasks that are done stand in no list.
                    if known.is_none() {
                        continue;
                    }
                    task.awaited_by.push(awaiter.to_string());
                    edges.push((known, None));
                }
                // A set has no order of its own.
                task.awaited_by.sort_unstable();
            }
            Err(fault) => decoder.problem(format_args!("{whose}: who waits for it: {fault}")),
        }
        if !raw.waiter.is_null() {
            match self.waiting_for(raw.waiter) {
                Ok(waiting) => task.waiting_for = Some(waiting),
                Err(fault) => decoder.problem(format_args!("{whose}: what it waits for: {fault}")),
            }
            if let Some(awaited) = self.by_address.get(&raw.waiter) {
                edges.push((None, Some(*awaited)));
            }
        }
    }

    fn state(&self, found: &Found, raw: &RawTask, chain: &Chain) -> TaskState {
        if found.running_in.is_some() || chain.state == Some(CoroutineState::Executing) {
            return TaskState::Running;
        }
        if chain.state == Some(CoroutineState::Created) {
            return TaskState::Created;
        }
        if raw.waiter.is_null() || self.is_done(raw.waiter) {
            return TaskState::Ready;
        }
        TaskState::Waiting
    }

    /// Whether a future has its result: its state stands right before the flag that tells tasks from futures.
    fn is_done(&self, future: Addr) -> bool {
        let decoder = self.decoder;
        decoder.is_future(future).unwrap_or(false)
            && decoder
                .i32(future.plus(self.offsets.task_is_task.saturating_sub(4)))
                .is_ok_and(|state| state != 0)
    }

    /// A number stands for the names that asyncio gives, anything else is a string.
    fn name(&self, name: Addr) -> Result<String, Fault> {
        if self.decoder.type_of(name)?.is_int() {
            return Ok(format!("Task-{}", self.decoder.int(name)?));
        }
        self.decoder.string(name)
    }

    /// The tasks and futures that wait for this one.
    fn awaiters(&self, future: Addr) -> Result<Vec<Addr>, Fault> {
        let decoder = self.decoder;
        let awaited_by = decoder.pointer(future.plus(self.offsets.task_awaited_by))?;
        if awaited_by.is_null() {
            return Ok(Vec::new());
        }
        if decoder.u8(future.plus(self.offsets.task_awaited_by_is_set))? == 0 {
            return Ok(vec![awaited_by]);
        }
        decoder.set_items(awaited_by, decoder.limits.awaiters)
    }

    fn waiting_for(&self, object: Addr) -> Result<WaitingFor, Fault> {
        let decoder = self.decoder;
        let kind = decoder.type_of(object)?;
        Ok(WaitingFor {
            kind: kind.short_name().to_owned(),
            id: object.to_string(),
            detail: self.detail(object),
        })
    }

    /// What is known of an awaited object beyond its type.
    fn detail(&self, object: Addr) -> Option<String> {
        let decoder = self.decoder;
        if !decoder.is_future(object).ok()? {
            return None;
        }
        if decoder.u8(object.plus(self.offsets.task_is_task)).ok()? == 1 {
            let name = decoder.pointer(object.plus(self.offsets.task_name)).ok()?;
            return self.name(name).ok();
        }
        if let Some(children) = decoder
            .attribute(object, "_children")
            .ok()
            .flatten()
            .filter(|children| decoder.type_of(*children).is_ok_and(|kind| kind.is_list()))
        {
            return self.children(children);
        }
        let awaited_by = decoder
            .pointer(object.plus(self.offsets.task_awaited_by))
            .ok()?;
        let is_set = decoder
            .u8(object.plus(self.offsets.task_awaited_by_is_set))
            .ok()?
            != 0;
        let waiters = if is_set {
            decoder.size(awaited_by, F::set_object_used).ok()?
        } else {
            1
        };
        (waiters > 1).then(|| format!("{waiters} waiters"))
    }

    /// How many of a gathering future's children are pending.
    fn children(&self, children: Addr) -> Option<String> {
        let decoder = self.decoder;
        let count = decoder.size(children, F::list_object_ob_size).ok()?;
        if count > MAX_CHILDREN {
            return Some(format!("{count} children"));
        }
        let items = decoder
            .pointer(decoder.member(children, F::list_object_ob_item))
            .ok()?;
        let bytes = decoder.bytes(items, count.checked_mul(8)?).ok()?;
        let (words, _) = bytes.as_chunks::<8>();
        let done = words
            .iter()
            .filter(|word| self.is_done(Addr(u64::from_le_bytes(**word))))
            .count();
        Some(format!("{} of {count} pending", count.saturating_sub(done)))
    }
}

/// A task as problems name it.
#[derive(Clone, Copy)]
struct Whose<'a> {
    address: Addr,
    name: &'a str,
}

impl std::fmt::Display for Whose<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "task {} ({})", self.address, self.name)
    }
}

const NOT_A_TASK: &str = "not a task";
