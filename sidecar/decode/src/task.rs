//! asyncio's tasks: the document of `tasks`.

use std::collections::hash_map::Entry;
use std::rc::Rc;
use std::sync::Arc;

use sidewinder_model::{Frame, Id, Locals, Loop, Stopped, Task, TaskState, Tasks, WaitingGroup};

use crate::coroutine::{Chain, CoroutineState};
use crate::decoder::{Decoder, Fault, HashMap, HashSet, word_in};
use crate::graph;
use crate::limits::Limits;
use crate::memory::{Addr, Memory};
use crate::object::Type;
use crate::offsets::{AsyncioOffsets, Field as F};
use crate::os::OsThread;
use crate::runtime::Runtime;
use crate::thread::{PyThread, by_native_id};
use crate::waiting::Known;

/// Groups of tasks that wait for one thing.
const MAX_GROUPS: usize = 1000;
/// No version's task is larger.
const MAX_TASK: usize = 512;
/// What a task takes beyond its own structure, in bytes: its name, its place in the index and in the graph.
const TASK_OVERHEAD: usize = 96;
/// Tasks there is room for from the first on.
const FIRST_TASKS: usize = 1024;
/// Stands in the index for an address in a list that holds no task.
const NOT_A_TASK: u32 = u32::MAX;

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
                stacks: Vec::new(),
                known: Known::default(),
                tasks: Vec::new(),
                joins: Vec::new(),
                by_address: HashMap::default(),
                loops: Vec::new(),
                by_loop: HashSet::default(),
                running: Vec::new(),
                awaiters: 0,
                chain: Chain::default(),
                name: String::new(),
                full: false,
            };
            walk.lists(os_threads);
            walk.finish()
        }
    };
    tasks.problems = decoder.into_problems();
    tasks
}

/// Where a task was found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) interpreter: i64,
    /// The thread whose list it stands in, in the reader's PID namespace.
    pub(crate) tid: Option<u64>,
}

/// A task that a thread says it is executing.
#[derive(Clone, Copy)]
struct Running {
    task: Addr,
    place: Place,
    /// The innermost frame of that thread.
    innermost: Addr,
}

/// The head that tasks and futures have in common.
pub(crate) struct RawFuture {
    pub(crate) kind: Rc<Type>,
    pub(crate) loop_object: Addr,
    /// Called first when it is done.
    pub(crate) callback: Addr,
    pub(crate) awaited_by: Addr,
    pub(crate) awaited_by_is_set: bool,
    pub(crate) is_task: bool,
    pub(crate) is_done: bool,
}

/// A task object's own words.
pub(crate) struct RawTask {
    pub(crate) future: RawFuture,
    pub(crate) coroutine: Addr,
    pub(crate) name: Addr,
    pub(crate) waiter: Addr,
}

pub(crate) struct Walk<'d, 'a, M: ?Sized> {
    pub(crate) decoder: &'d Decoder<'a, M>,
    pub(crate) offsets: &'d AsyncioOffsets,
    /// Innermost frames of all threads.
    pub(crate) stacks: Vec<(Place, Addr)>,
    pub(crate) known: Known,
    pub(crate) tasks: Vec<Task>,
    /// Tasks, by their index, that wait for what says it is a task.
    joins: Vec<u32>,
    by_address: HashMap<Addr, u32>,
    pub(crate) loops: Vec<Loop>,
    by_loop: HashSet<Addr>,
    running: Vec<Running>,
    /// Awaiters kept so far, of all tasks.
    awaiters: usize,
    chain: Chain,
    name: String,
    /// Set when a limit was reached.
    pub(crate) full: bool,
}

/// The object behind a word of a structure that was read as a whole.
fn pointer_in(bytes: &[u8], at: u64) -> Option<Addr> {
    word_in(bytes, at).map(Addr)
}

fn byte_in(bytes: &[u8], at: u64) -> Option<u8> {
    bytes.get(usize::try_from(at).ok()?).copied()
}

pub(crate) const fn id(address: Addr) -> Id {
    Id(address.0)
}

impl<M: Memory + ?Sized> Walk<'_, '_, M> {
    /// Decodes the tasks of every list.
    fn lists(&mut self, os_threads: &[OsThread]) {
        let decoder = self.decoder;
        let os = by_native_id(os_threads);
        let mut lists = Vec::new();
        let mut interpreters = Vec::new();
        for interpreter in decoder.interpreters() {
            interpreters.push((interpreter.id, interpreter.address));
            for thread in decoder.threads(&interpreter, os_threads) {
                let place = Place {
                    interpreter: interpreter.id,
                    tid: os.get(&thread.native).map(|os| os.tid),
                };
                self.stacks.push((place, thread.current_frame));
                self.running_loop(&thread, place);
                self.running_task(&thread, place);
                let head = thread.address.plus(self.offsets.thread_tasks_head);
                lists.push((head, place, ListOf::Thread(thread.native)));
            }
            // Tasks whose thread has ended.
            let place = Place {
                interpreter: interpreter.id,
                tid: None,
            };
            let head = interpreter
                .address
                .plus(self.offsets.interpreter_tasks_head);
            lists.push((head, place, ListOf::Interpreter(interpreter.id)));
        }
        for (head, place, whose) in lists {
            self.list(head, place, whose);
        }
        for (interpreter, state) in interpreters {
            if !self.full {
                self.python_tasks(interpreter, state);
            }
        }
        // A task in its first eager step stands in no list yet.
        for running in self.running.clone() {
            let task = running.task;
            if !self.full
                && let Err(fault) = self.task(task, running.place)
            {
                decoder.problem(format_args!("running task at {task}: {fault}"));
            }
        }
    }

    fn list(&mut self, head: Addr, place: Place, whose: ListOf) {
        let decoder = self.decoder;
        let mut node = match decoder.pointer(decoder.member(head, F::llist_node_next)) {
            Ok(node) => node,
            Err(fault) => return decoder.problem(format_args!("{whose}: {fault}")),
        };
        while node != head && !node.is_null() && !self.full {
            let address = node.minus(self.offsets.task_node);
            node = match self.task(address, place) {
                Ok(Some(next)) => next,
                Ok(None) => {
                    return decoder.problem(format_args!(
                        "{whose}: the list meets the task at {address} twice"
                    ));
                }
                Err(fault) => {
                    return decoder.problem(format_args!(
                        "{whose}: after the task at {address}: {fault}"
                    ));
                }
            };
        }
    }

    /// Decodes the task at this address; returns the next one's node of its list, or nothing where it is known already.
    fn task(&mut self, address: Addr, place: Place) -> Result<Option<Addr>, Fault> {
        let decoder = self.decoder;
        let index = self.tasks.len();
        if self.is_full() {
            return Ok(Some(Addr(0)));
        }
        match self.by_address.entry(address) {
            Entry::Occupied(_) => return Ok(None),
            Entry::Vacant(new) => new.insert(NOT_A_TASK),
        };
        let impossible = || Fault::Invalid("tasks of impossible size");
        let mut buffer = [0; MAX_TASK];
        let size = usize::try_from(self.offsets.task_size).map_err(|_| impossible())?;
        let bytes = buffer.get_mut(..size).ok_or_else(impossible)?;
        decoder.read(address, bytes)?;
        let bytes = &*bytes;
        let next = self
            .offsets
            .task_node
            .checked_add(decoder.offsets().get(F::llist_node_next));
        let next = next
            .and_then(|at| pointer_in(bytes, at))
            .ok_or_else(impossible)?;
        let mut task = Task {
            id: id(address),
            interpreter: place.interpreter,
            tid: place.tid,
            ..Task::default()
        };
        let filled = self
            .raw(bytes)
            .and_then(|raw| self.fill(&mut task, address, place, &raw));
        match filled {
            Ok(()) => {}
            Err(fault @ Fault::Limit(_)) => {
                decoder.problem(format_args!("after {index} tasks: {fault}"));
                self.full = true;
                return Ok(Some(next));
            }
            Err(fault) => {
                decoder.problem(format_args!("task at {address}: {fault}"));
                // Its memory is no task: an entry would be an invention.
                return Ok(Some(next));
            }
        }
        self.add(address, task);
        Ok(Some(next))
    }

    pub(crate) fn add(&mut self, address: Addr, task: Task) {
        let index = u32::try_from(self.tasks.len()).unwrap_or(NOT_A_TASK);
        self.by_address.insert(address, index);
        if self.tasks.is_empty() {
            // So large that the allocator maps it, and grows it later without a copy.
            self.tasks.reserve(FIRST_TASKS);
        }
        self.tasks.push(task);
    }

    /// Whether a limit was reached, that of tasks too.
    pub(crate) fn is_full(&mut self) -> bool {
        let count = self.tasks.len();
        if !self.full && count >= self.decoder.limits.tasks {
            self.decoder.problem(format_args!(
                "more than {count} tasks: the others are left out"
            ));
            self.full = true;
        }
        self.full
    }

    pub(crate) fn is_known(&self, address: Addr) -> bool {
        self.by_address.contains_key(&address)
    }

    fn running_loop(&mut self, thread: &PyThread, place: Place) {
        let at = thread.address.plus(self.offsets.running_loop);
        match self.decoder.pointer(at) {
            Ok(at) if at.is_null() => {}
            Ok(at) => {
                self.by_loop.insert(at);
                self.loops.push(Loop {
                    id: id(at),
                    tid: place.tid,
                    interpreter: place.interpreter,
                    running: true,
                });
            }
            Err(fault) => self.decoder.problem(format_args!(
                "running loop of thread {}: {fault}",
                thread.native
            )),
        }
    }

    fn running_task(&mut self, thread: &PyThread, place: Place) {
        let at = thread.address.plus(self.offsets.running_task);
        match self.decoder.pointer(at) {
            Ok(task) if task.is_null() => {}
            Ok(task) => self.running.push(Running {
                task,
                place,
                innermost: thread.current_frame,
            }),
            Err(fault) => self.decoder.problem(format_args!(
                "running task of thread {}: {fault}",
                thread.native
            )),
        }
    }

    /// Adds the loop of a task that no thread says it is running.
    fn owning_loop(&mut self, address: Addr, interpreter: i64) {
        if self.by_loop.insert(address) {
            self.loops.push(Loop {
                id: id(address),
                tid: None,
                interpreter,
                running: false,
            });
        }
    }

    /// The head of a future from its bytes.
    fn raw_future(&self, bytes: &[u8]) -> Result<RawFuture, Fault> {
        let offsets = self.offsets;
        let impossible = || Fault::Invalid("futures of impossible size");
        let word = |at| pointer_in(bytes, at).ok_or_else(impossible);
        let flag = |at| byte_in(bytes, at).ok_or_else(impossible);
        let object = self.decoder.offsets();
        let kind = self
            .decoder
            .type_at(word(object.get(F::pyobject_ob_type))?)?;
        if !self.decoder.is_future_type(&kind)? {
            return Err(Fault::Invalid("not a task"));
        }
        // The state stands right before the flag that tells tasks from futures.
        let state = offsets.task_is_task.saturating_sub(4);
        let state = usize::try_from(state).map_err(|_| impossible())?;
        let state = bytes
            .get(state..state.saturating_add(4))
            .ok_or_else(impossible)?;
        Ok(RawFuture {
            kind,
            loop_object: word(object.get(F::pyobject_size))?,
            // `fut_callback0` follows `fut_loop`.
            callback: word(object.get(F::pyobject_size).saturating_add(8))?,
            awaited_by: word(offsets.task_awaited_by)?,
            awaited_by_is_set: flag(offsets.task_awaited_by_is_set)? != 0,
            is_task: flag(offsets.task_is_task)? == 1,
            is_done: state.iter().any(|byte| *byte != 0),
        })
    }

    fn raw(&self, bytes: &[u8]) -> Result<RawTask, Fault> {
        let future = self.raw_future(bytes)?;
        let word = |at| pointer_in(bytes, at).ok_or(Fault::Invalid("tasks of impossible size"));
        Ok(RawTask {
            future,
            coroutine: word(self.offsets.task_coro)?,
            name: word(self.offsets.task_name)?,
            waiter: word(self.offsets.task_coro.saturating_sub(8))?,
        })
    }

    /// The head of the future at this address; `None` where there is something else.
    pub(crate) fn future(&self, address: Addr) -> Result<Option<RawFuture>, Fault> {
        let kind = self.decoder.type_of(address)?;
        if !self.decoder.is_future_type(&kind)? {
            return self.python_future(address, &kind);
        }
        // Up to the last word that both have: a future is smaller than a task.
        let size = self
            .offsets
            .task_awaited_by_is_set
            .max(self.offsets.task_is_task)
            .max(self.offsets.task_awaited_by.saturating_add(7))
            .saturating_add(1);
        let impossible = || Fault::Invalid("futures of impossible size");
        let mut buffer = [0; MAX_TASK];
        let size = usize::try_from(size).map_err(|_| impossible())?;
        let bytes = buffer.get_mut(..size).ok_or_else(impossible)?;
        self.decoder.read(address, bytes)?;
        self.raw_future(bytes).map(Some)
    }

    /// Everything about a task that its own memory tells. Only a limit of the result is an error, and memory that is
    /// no task.
    pub(crate) fn fill(
        &mut self,
        task: &mut Task,
        address: Addr,
        place: Place,
        raw: &RawTask,
    ) -> Result<(), Fault> {
        let decoder = self.decoder;
        if !raw.future.loop_object.is_null() {
            self.owning_loop(raw.future.loop_object, place.interpreter);
            task.loop_id = Some(id(raw.future.loop_object));
        }
        match self.name(raw.name) {
            Ok(name) => task.name = name,
            Err(fault @ Fault::Limit(_)) => return Err(fault),
            Err(fault) => decoder.problem(format_args!("name of the task at {address}: {fault}")),
        }
        decoder.take_result(
            size_of::<Task>()
                .saturating_add(TASK_OVERHEAD)
                .saturating_add(task.name.len()),
        )?;
        // Text only where there is a problem: there may be a million tasks.
        let whose = Whose {
            address,
            name: &Arc::clone(&task.name),
        };
        let mut chain = std::mem::take(&mut self.chain);
        decoder.chain(whose, raw.coroutine, &mut chain);
        let frames = decoder.chain_frames(&chain);
        let filled = frames.and_then(|frames| {
            task.coroutine = self.with_plain_frames(whose, place, &chain, frames)?;
            self.note_held(&chain)?;
            self.waits(task, whose, raw, &chain)
        });
        self.chain = chain;
        filled?;
        match self.awaiters(&raw.future) {
            Ok(awaiters) => task.awaited_by = awaiters,
            Err(fault @ Fault::Limit(_)) => return Err(fault),
            Err(fault) => decoder.problem(format_args!("{whose}: who waits for it: {fault}")),
        }
        Ok(())
    }

    /// What a task waits for, and its state.
    fn waits(
        &mut self,
        task: &mut Task,
        whose: Whose<'_>,
        raw: &RawTask,
        chain: &Chain,
    ) -> Result<(), Fault> {
        let mut is_done = false;
        if !raw.waiter.is_null() {
            match self.waiting_for(raw.waiter, chain) {
                Ok((waiting_for, awaited)) => {
                    is_done = awaited.is_done;
                    if awaited.is_task {
                        self.joins
                            .push(u32::try_from(self.tasks.len()).unwrap_or(NOT_A_TASK));
                    }
                    task.waiting_for = Some(waiting_for);
                }
                Err(fault @ Fault::Limit(_)) => return Err(fault),
                Err(fault) => self
                    .decoder
                    .problem(format_args!("{whose}: what it waits for: {fault}")),
            }
        }
        let running = self
            .running
            .iter()
            .any(|running| id(running.task) == task.id);
        task.state = if running || chain.state == Some(CoroutineState::Executing) {
            TaskState::Running
        } else if chain.state == Some(CoroutineState::Created) {
            TaskState::Created
        } else if raw.waiter.is_null() || is_done {
            TaskState::Ready
        } else {
            TaskState::Waiting
        };
        Ok(())
    }

    /// The frames of a chain, for a task being executed with the plain frames beneath.
    fn with_plain_frames(
        &self,
        whose: Whose<'_>,
        place: Place,
        chain: &Chain,
        frames: Arc<[Frame]>,
    ) -> Result<Arc<[Frame]>, Fault> {
        let Some(frame) = chain.executing else {
            return Ok(frames);
        };
        // The frame chain that it can lie on: of the thread that says so, else of its own.
        let by_task = |running: &&Running| running.task == whose.address;
        let by_thread = |running: &&Running| running.place.tid == place.tid && place.tid.is_some();
        // No thread says so of a task that is written in Python.
        let stack = || {
            self.stacks
                .iter()
                .find(|(at, _)| at.tid.is_some() && *at == place)
        };
        let Some(innermost) = self
            .running
            .iter()
            .find(by_task)
            .or_else(|| self.running.iter().find(by_thread))
            .map(|running| running.innermost)
            .or_else(|| stack().map(|(_, innermost)| *innermost))
        else {
            return Ok(frames);
        };
        let (beneath, met) = self
            .decoder
            .frames(whose, innermost, Some(frame), Locals::None);
        if !met {
            self.decoder.problem(format_args!(
                "{whose}: its frame is not on its thread's stack"
            ));
            return Ok(frames);
        }
        self.decoder
            .take_result(beneath.len().saturating_mul(size_of::<Frame>()))?;
        Ok(frames.iter().cloned().chain(beneath).collect())
    }

    /// A number stands for the names that asyncio gives, anything else is a string.
    pub(crate) fn name(&mut self, name: Addr) -> Result<Arc<str>, Fault> {
        let decoder = self.decoder;
        self.name.clear();
        self.name.push_str("Task-");
        if let Ok(Some(number)) = decoder.counter(name) {
            self.name.push_str(itoa::Buffer::new().format(number));
        } else if decoder.type_of(name)?.is_int() {
            self.name.push_str(&decoder.int(name)?);
        } else {
            let max = decoder.limits.name_bytes;
            return Ok(decoder.string_up_to(name, max)?.into());
        }
        decoder.take_text(self.name.len())?;
        Ok(self.name.as_str().into())
    }

    /// The tasks and futures that wait for this one.
    fn awaiters(&mut self, future: &RawFuture) -> Result<Vec<Id>, Fault> {
        if future.awaited_by.is_null() {
            return Ok(Vec::new());
        }
        let awaiters = if future.awaited_by_is_set {
            let max = self.decoder.limits.awaiters.saturating_sub(self.awaiters);
            let items = self.decoder.set_items(future.awaited_by, max)?;
            items.into_iter().map(id).collect()
        } else {
            vec![id(future.awaited_by)]
        };
        self.awaiters = self.awaiters.saturating_add(awaiters.len());
        self.decoder
            .take_result(awaiters.len().saturating_mul(size_of::<Id>()))?;
        Ok(awaiters)
    }

    /// What two or more tasks wait for, the largest group first.
    fn groups(&self, tasks: &[Task]) -> Vec<WaitingGroup> {
        let waiting = (0_u32..).zip(tasks).filter_map(|(index, task)| {
            let on = task.waiting_for.as_ref()?;
            (task.state == TaskState::Waiting).then_some((on.id, index))
        });
        let mut waiting: Vec<(Id, u32)> = waiting.collect();
        waiting.sort_unstable();
        let mut groups: Vec<&[(Id, u32)]> = waiting
            .chunk_by(|one, other| one.0 == other.0)
            .filter(|group| group.len() > 1)
            .collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
        groups.truncate(MAX_GROUPS);
        let task = |index: u32| tasks.get(usize::try_from(index).ok()?);
        let group = |members: &&[(Id, u32)]| {
            let ids = members.len().saturating_mul(size_of::<Id>());
            self.decoder
                .take_result(size_of::<WaitingGroup>().saturating_add(ids))
                .ok()?;
            let on = task(members.first()?.1)?.waiting_for.as_ref()?;
            let members = || members.iter().filter_map(|member| task(member.1));
            // One may put into a queue from which another one gets.
            let same = members().all(|task| {
                let other = task.waiting_for.as_ref();
                other.is_some_and(|other| other.detail == on.detail)
            });
            Some(WaitingGroup {
                kind: Arc::clone(&on.kind),
                id: on.id,
                detail: on.detail.clone().filter(|_| same),
                tasks: members().map(|task| task.id).collect(),
            })
        };
        groups.iter().filter_map(group).collect()
    }

    /// Puts together what needs every task: who waits for whom, and in which circles.
    fn finish(mut self) -> Tasks {
        let mut tasks = std::mem::take(&mut self.tasks);
        let by_address = std::mem::take(&mut self.by_address);
        let known = |id: Id| {
            let index = by_address.get(&Addr(id.0)).copied();
            index.filter(|index| *index != NOT_A_TASK)
        };
        self.tell_gathers(&mut tasks, known);
        let mut edges = self.tell_holders(&mut tasks);
        for (index, task) in tasks.iter_mut().enumerate() {
            let index = u32::try_from(index).unwrap_or(NOT_A_TASK);
            // Plain futures are no tasks, and tasks that are done stand in no list.
            task.awaited_by.retain(|waiter| match known(*waiter) {
                Some(waiter) => {
                    edges.push((waiter, index));
                    true
                }
                None => false,
            });
            // A set has no order of its own.
            task.awaited_by.sort_unstable();
            task.awaited_by.dedup();
            if let Some(awaited) = task.waiting_for.as_ref().and_then(|w| known(w.id)) {
                edges.push((index, awaited));
            }
        }
        for index in std::mem::take(&mut self.joins) {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            let Some(awaited) = tasks.get(index).and_then(|task| task.waiting_for.as_ref()) else {
                continue;
            };
            let awaited = awaited.id;
            let name = known(awaited)
                .and_then(|other| tasks.get(usize::try_from(other).ok()?))
                .map(|other| Arc::clone(&other.name));
            // Of a task that is done only its own memory tells.
            let name = match name {
                Some(name) => Some(name),
                None => self.name_of(Addr(awaited.0)).ok().flatten(),
            };
            if let Some(waiting_for) = tasks
                .get_mut(index)
                .and_then(|task| task.waiting_for.as_mut())
            {
                waiting_for.detail = name;
            }
        }
        let cycles = graph::cycles(tasks.len(), edges)
            .into_iter()
            .map(|members| {
                members
                    .iter()
                    .filter_map(|n| Some(tasks.get(*n)?.id))
                    .collect()
            })
            .collect();
        Tasks {
            groups: self.groups(&tasks),
            loops: self.loops,
            tasks,
            cycles,
            paused_microseconds: 0,
            stopped: Stopped::Nothing,
            problems: Vec::new(),
        }
    }
}

/// A list of tasks as problems name it.
#[derive(Clone, Copy)]
enum ListOf {
    Thread(u64),
    Interpreter(i64),
}

impl std::fmt::Display for ListOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Thread(native) => write!(f, "tasks of thread {native}"),
            Self::Interpreter(id) => write!(f, "left-over tasks of interpreter {id}"),
        }
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
