//! What a task waits for when it is not a task: the lock, the queue, the socket behind a bare future.
//!
//! asyncio's primitives make a future of their own for each that waits, so the future says nothing. The coroutine that
//! awaits it does: its code tells what is waited for, and its variables hold the object. Where no coroutine tells, the
//! function that the future calls first when it is done may: `shield` and `run_in_executor` leave theirs there.
//! <https://github.com/python/cpython/tree/3.14/Lib/asyncio>

mod executor;
mod holder;
mod thing;

use thing::Items;

use std::sync::Arc;

use sidewinder_model::WaitingFor;

use crate::code::Code;
use crate::coroutine::{Chain, Link};
use crate::decoder::{Decoder, Fault, HashMap};
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;
use crate::task::{RawFuture, Walk, id};

pub(crate) use executor::Workers;

// The kinds of a variable, `CO_FAST_*` in Include/internal/pycore_code.h.
const CELL: u8 = 0x40;
const FREE: u8 = 0x80;

/// Things kept with their descriptions: thousands of tasks may wait for one.
const MAX_THINGS: usize = 4096;

/// What a task waits for whose innermost coroutine of asyncio stands in a code object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Waits {
    /// Code that says nothing.
    Elsewhere,
    /// asyncio's own code that passes on what is awaited in it.
    Within,
    Lock,
    Event,
    Semaphore,
    Condition,
    Barrier,
    QueueGet,
    QueuePut,
    QueueJoin,
    Sleep,
    Wait,
    AsCompleted,
    TaskGroup,
    /// A function that a thread of an executor runs.
    ToThread,
    /// A name or address that a thread of an executor looks up.
    Lookup,
    Socket,
    StreamRead,
    StreamDrain,
    StreamClosed,
    Subprocess,
    Server,
    /// The callback of the future that `shield` gives out.
    Shield,
    /// The callback of a future that gets its result from one of another kind or loop.
    Chained,
    /// Where a lock is acquired that `async with` will release, and where it is released.
    Enter,
    Release,
    /// The function in which a thread of an executor calls what it was given.
    WorkItem,
}

/// `(module, co_qualname, what is waited for in it)`.
const CODE: &[(&str, &str, Waits)] = &[
    ("locks", "Lock.acquire", Waits::Lock),
    ("locks", "_ContextManagerMixin.__aenter__", Waits::Enter),
    ("locks", "_ContextManagerMixin.__aexit__", Waits::Release),
    ("locks", "Event.wait", Waits::Event),
    ("locks", "Semaphore.acquire", Waits::Semaphore),
    ("locks", "Condition.wait", Waits::Condition),
    ("locks", "Barrier.wait", Waits::Barrier),
    ("queues", "Queue.get", Waits::QueueGet),
    ("queues", "Queue.put", Waits::QueuePut),
    ("queues", "Queue.join", Waits::QueueJoin),
    ("tasks", "sleep", Waits::Sleep),
    ("tasks", "_wait", Waits::Wait),
    (
        "tasks",
        "_AsCompletedIterator._wait_for_one",
        Waits::AsCompleted,
    ),
    (
        "tasks",
        "shield.<locals>._outer_done_callback",
        Waits::Shield,
    ),
    (
        "futures",
        "_chain_future.<locals>._call_check_cancel",
        Waits::Chained,
    ),
    ("taskgroups", "TaskGroup._aexit", Waits::TaskGroup),
    ("threads", "to_thread", Waits::ToThread),
    ("base_events", "BaseEventLoop.getaddrinfo", Waits::Lookup),
    ("base_events", "BaseEventLoop.getnameinfo", Waits::Lookup),
    ("base_events", "Server.serve_forever", Waits::Server),
    ("base_events", "Server.wait_closed", Waits::Server),
    ("streams", "StreamReader._wait_for_data", Waits::StreamRead),
    ("streams", "StreamWriter.drain", Waits::StreamDrain),
    (
        "streams",
        "FlowControlMixin._drain_helper",
        Waits::StreamDrain,
    ),
    ("streams", "StreamWriter.wait_closed", Waits::StreamClosed),
    ("subprocess", "Process.wait", Waits::Subprocess),
    ("subprocess", "Process.communicate", Waits::Subprocess),
    (
        "base_subprocess",
        "BaseSubprocessTransport._wait",
        Waits::Subprocess,
    ),
];

/// The name of asyncio's module that a file holds, in a folder, a zip file or frozen.
fn asyncio_module(file: &str) -> Option<&str> {
    if let Some(frozen) = file.strip_prefix("<frozen asyncio.") {
        return frozen.strip_suffix('>');
    }
    let (folder, name) = file.rsplit_once('/')?;
    let before = folder.strip_suffix("asyncio")?;
    let module = name.strip_suffix(".py").or(name.strip_suffix(".pyc"));
    module.filter(|_| before.is_empty() || before.ends_with('/'))
}

impl Waits {
    /// What a code object says by its name and its file.
    pub(crate) fn of(function: &str, file: &str) -> Self {
        if function == "_WorkItem.run" && file.ends_with("concurrent/futures/thread.py") {
            return Self::WorkItem;
        }
        let Some(module) = asyncio_module(file) else {
            return Self::Elsewhere;
        };
        let socket = function.rsplit_once('.').is_some_and(|(class, name)| {
            class.ends_with("EventLoop") && name.starts_with("sock_")
                || name == "_sock_sendfile_native"
        });
        if socket && matches!(module, "selector_events" | "unix_events") {
            return Self::Socket;
        }
        CODE.iter()
            .find(|(file, name, _)| *file == module && *name == function)
            .map_or(Self::Within, |(_, _, waits)| *waits)
    }
}

/// The coroutine that tells what is waited for: the outermost of asyncio's own at the chain's inner end, so that a
/// `Barrier` is not taken for its condition. But who waits for a lock to come back to a condition waits for the lock.
fn telling(chain: &Chain) -> Option<&Link> {
    let mut telling = None;
    for link in chain.links.iter().rev() {
        match link.code.waits {
            Waits::Elsewhere | Waits::Shield | Waits::Chained | Waits::WorkItem => break,
            Waits::Within | Waits::Enter | Waits::Release => {}
            Waits::Lock | Waits::Semaphore => return Some(link),
            _ => telling = Some(link),
        }
    }
    telling
}

/// An object that tasks wait for, as they show it.
#[derive(Clone, Debug)]
pub(crate) struct Thing {
    kind: &'static str,
    detail: Option<Arc<str>>,
}

/// What was learnt of the objects that tasks wait for.
#[derive(Debug, Default)]
pub(crate) struct Known {
    kinds: HashMap<&'static str, Arc<str>>,
    /// By the object, or for a delay by the reference to it.
    things: HashMap<(u64, Waits), Thing>,
    /// Bare futures that several wait for, with how many do.
    shared: HashMap<Addr, Option<Arc<str>>>,
    /// Children whose states were read.
    children: usize,
    /// Tasks, by their index, that wait for a `gather` of these.
    gathers: Vec<(u32, Vec<Addr>)>,
    workers: Option<Workers>,
    /// Locks and the tasks, by their index, that are in the body of an `async with` of them.
    held: Vec<(Addr, u32)>,
}

/// What an awaited object says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Awaited {
    pub(crate) is_done: bool,
    pub(crate) is_task: bool,
}

/// What a variable of a frame refers to.
#[derive(Clone, Copy, Debug)]
enum Variable {
    Int(i64),
    Object(Addr),
}

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// The word of a frame that holds a variable, with what the variable is; `None` where the code has no such one.
    fn slot(&self, link: &Link, name: &str) -> Result<Option<(u64, u8)>, Fault> {
        let variables = self.variables(&link.code)?;
        let Some((index, variable)) = (0_u64..).zip(variables).find(|(_, v)| v.name == name) else {
            return Ok(None);
        };
        let slots = self.member(link.frame, F::interpreter_frame_localsplus);
        let word = self.u64(slots.plus(index.saturating_mul(8)))?;
        Ok(Some((word, variable.kind)))
    }

    /// The value of a variable of a suspended coroutine.
    fn variable_of(&self, link: &Link, name: &str) -> Result<Option<Variable>, Fault> {
        let Some((word, kind)) = self.slot(link, name)? else {
            return Ok(None);
        };
        // References carry their kind in the two low bits: 3 is a small int in place, a lone 1 is null.
        if word & 3 == 3 {
            return Ok(Some(Variable::Int(word.cast_signed() >> 2)));
        }
        let mut object = Addr(word).untagged();
        if kind & (CELL | FREE) != 0 && !object.is_null() && self.type_of(object)?.name == "cell" {
            object = self.pointer(self.member(object, F::pyobject_size))?;
        }
        Ok(Some(object)
            .filter(|object| !object.is_null())
            .map(Variable::Object))
    }

    fn object_of(&self, link: &Link, name: &str) -> Result<Option<Addr>, Fault> {
        Ok(match self.variable_of(link, name)? {
            Some(Variable::Object(object)) => Some(object),
            Some(Variable::Int(_)) | None => None,
        })
    }

    /// The code of a function written in Python; `None` of anything else.
    /// `func_code` follows four words of the head that 3.14 and 3.15 have, `func_closure` three words later.
    fn function_code(&self, function: Addr) -> Result<Option<std::rc::Rc<Code>>, Fault> {
        if self.type_of(function)?.name != "function" {
            return Ok(None);
        }
        let code = self.pointer(self.member(function, F::pyobject_size).plus(32))?;
        self.code(code).map(Some)
    }

    /// What a function's closure holds under a name.
    fn closure(&self, function: Addr, code: &Code, name: &str) -> Result<Option<Addr>, Fault> {
        let free = self.variables(code)?.iter().filter(|v| v.kind & FREE != 0);
        let Some((index, _)) = (0_u64..).zip(free).find(|(_, v)| v.name == name) else {
            return Ok(None);
        };
        let cells = self.pointer(self.member(function, F::pyobject_size).plus(56))?;
        if cells.is_null() || !self.type_of(cells)?.is_tuple() {
            return Ok(None);
        }
        let count = self.size(cells, F::tuple_object_ob_size)?;
        if u64::try_from(count).is_ok_and(|count| index >= count) {
            return Ok(None);
        }
        let items = self.member(cells, F::tuple_object_ob_item);
        let cell = self.pointer(items.plus(index.saturating_mul(8)))?;
        if self.type_of(cell)?.name != "cell" {
            return Ok(None);
        }
        let object = self.pointer(self.member(cell, F::pyobject_size))?;
        Ok(Some(object).filter(|object| !object.is_null()))
    }
}

/// What is only an addition is left out where it cannot be read; a limit ends the whole.
fn unless_limit<T>(found: Result<Option<T>, Fault>) -> Result<Option<T>, Fault> {
    match found {
        Err(fault @ Fault::Limit(_)) => Err(fault),
        Err(_) => Ok(None),
        found => found,
    }
}

impl<M: Memory + ?Sized> Walk<'_, '_, M> {
    /// What a task with these coroutines waits for, that awaits this object; a task's name follows when all are known.
    pub(crate) fn waiting_for(
        &mut self,
        object: Addr,
        chain: &Chain,
    ) -> Result<(WaitingFor, Awaited), Fault> {
        let Some(future) = self.future(object)? else {
            let waiting_for = WaitingFor {
                kind: Arc::clone(&self.decoder.type_of(object)?.short),
                id: id(object),
                ..WaitingFor::default()
            };
            let awaited = Awaited {
                is_done: false,
                is_task: false,
            };
            return Ok((waiting_for, awaited));
        };
        let awaited = Awaited {
            is_done: future.is_done,
            is_task: future.is_task,
        };
        let mut detail = None;
        if !future.is_task {
            if let Some(link) = telling(chain)
                && let Some(found) = unless_limit(self.told(object, &future, link))?
            {
                return Ok((found, awaited));
            }
            if let Some(known) = self.known.shared.get(&object) {
                detail.clone_from(known);
            } else {
                if let Some(found) = unless_limit(self.of_class(object, &future))? {
                    return Ok((found, awaited));
                }
                let called = self.called_back(object, &future, None);
                if let Some((found, is_task)) = unless_limit(called)? {
                    return Ok((found, Awaited { is_task, ..awaited }));
                }
                if future.awaited_by_is_set {
                    detail = unless_limit(self.other_waiters(&future))?;
                    if self.known.shared.len() >= MAX_THINGS {
                        self.known.shared.clear();
                    }
                    self.known.shared.insert(object, detail.clone());
                }
            }
        }
        let waiting_for = WaitingFor {
            kind: Arc::clone(&future.kind.short),
            id: id(object),
            detail,
            future: None,
            held_by: None,
        };
        Ok((waiting_for, awaited))
    }

    /// What the coroutine says that awaits the future.
    fn told(
        &mut self,
        object: Addr,
        future: &RawFuture,
        link: &Link,
    ) -> Result<Option<WaitingFor>, Fault> {
        let decoder = self.decoder;
        let waits = link.code.waits;
        // Without the object, what is waited for is known all the same.
        let held_in = |name| unless_limit(decoder.object_of(link, name));
        let (key, of) = match waits {
            Waits::ToThread | Waits::Lookup => {
                let found = self.called_back(object, future, Some(link))?;
                return Ok(found.map(|(found, _)| found));
            }
            Waits::Wait => (object.0, object),
            // Most delays are constants, the same object for all.
            Waits::Sleep => match unless_limit(decoder.slot(link, "delay"))? {
                Some((word, _)) => (word, object),
                None => (object.0, object),
            },
            _ => {
                let of = held_in(if waits == Waits::Socket {
                    "sock"
                } else {
                    "self"
                })?;
                let of = of.unwrap_or(object);
                (of.0, of)
            }
        };
        let thing = match self.known.things.get(&(key, waits)) {
            Some(known) => known.clone(),
            // In place of the object stands its future: only what the coroutine says is known.
            None if of == object && !matches!(waits, Waits::Wait | Waits::Sleep) => {
                Thing::unknown(waits)
            }
            None => {
                let thing = self.thing(of, link)?;
                if self.known.things.len() >= MAX_THINGS {
                    self.known.things.clear();
                }
                self.known.things.insert((key, waits), thing.clone());
                thing
            }
        };
        Ok(Some(WaitingFor {
            kind: self.kind(thing.kind),
            id: id(of),
            detail: thing.detail,
            held_by: None,
            future: (of != object).then_some(id(object)),
        }))
    }

    /// A kind's name, shared by all that show it.
    fn kind(&mut self, kind: &'static str) -> Arc<str> {
        let known = self.known.kinds.entry(kind);
        Arc::clone(known.or_insert_with(|| kind.into()))
    }

    /// Text that a result shows.
    fn text(&self, text: &str) -> Result<Arc<str>, Fault> {
        self.decoder.take_text(text.len())?;
        self.decoder.take_result(text.len())?;
        Ok(text.into())
    }

    /// What the future's own class says: the one that `gather` gives out.
    fn of_class(&mut self, object: Addr, future: &RawFuture) -> Result<Option<WaitingFor>, Fault> {
        match &*future.kind.short {
            "_GatheringFuture" => {}
            // uvloop's, whose coroutines are written in C.
            kind @ ("_SyncSocketReaderFuture" | "_SyncSocketWriterFuture") => {
                let operation = if kind.contains("Reader") {
                    "read"
                } else {
                    "write"
                };
                return Ok(Some(WaitingFor {
                    kind: self.kind("Socket"),
                    id: id(object),
                    detail: Some(self.text(operation)?),
                    ..WaitingFor::default()
                }));
            }
            _ => return Ok(None),
        }
        let children = self.decoder.attribute(object, "_children")?;
        // The children are mostly tasks, of which more is known once every task was read.
        let items = match children {
            Some(children) => unless_limit(self.items_of(children))?,
            None => None,
        };
        let detail = match items {
            Some(Items::Listed(children)) => {
                let task = u32::try_from(self.tasks.len()).unwrap_or(u32::MAX);
                let bytes = children.len().saturating_mul(size_of::<Addr>());
                self.decoder.take_result(bytes)?;
                self.known.gathers.push((task, children));
                None
            }
            Some(Items::Counted(count)) => Some(self.text(&format!("{count} children"))?),
            None => None,
        };
        Ok(Some(WaitingFor {
            kind: self.kind("Gather"),
            id: id(object),
            detail,
            future: None,
            held_by: None,
        }))
    }

    /// What the function says that the future calls first when it is done, and whether that is a task.
    fn called_back(
        &mut self,
        object: Addr,
        future: &RawFuture,
        link: Option<&Link>,
    ) -> Result<Option<(WaitingFor, bool)>, Fault> {
        let decoder = self.decoder;
        if future.callback.is_null() {
            return Ok(None);
        }
        let Some(code) = decoder.function_code(future.callback)? else {
            return Ok(None);
        };
        let closure = |name| decoder.closure(future.callback, &code, name);
        match code.waits {
            Waits::Shield => {
                let Some(inner) = closure("inner")? else {
                    return Ok(None);
                };
                let name = unless_limit(self.name_of(inner))?;
                let waiting_for = WaitingFor {
                    kind: self.kind("Shield"),
                    id: id(inner),
                    detail: name.map(|name| self.text(&name)).transpose()?,
                    future: Some(id(object)),
                    held_by: None,
                };
                Ok(Some((waiting_for, false)))
            }
            Waits::Chained => match closure("source")? {
                Some(source) => self.chained(object, source, link).map(Some),
                None => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// How many wait for a future.
    fn other_waiters(&self, future: &RawFuture) -> Result<Option<Arc<str>>, Fault> {
        let waiters = self.decoder.size(future.awaited_by, F::set_object_used)?;
        (waiters > 1)
            .then(|| self.text(&format!("{waiters} waiters")))
            .transpose()
    }

    /// The name of a task, `None` of any other object.
    pub(crate) fn name_of(&mut self, task: Addr) -> Result<Option<Arc<str>>, Fault> {
        match self.future(task)? {
            Some(future) if future.is_task => self.task_name(task, &future).map(Some),
            _ => Ok(None),
        }
    }

    fn task_name(&mut self, task: Addr, future: &RawFuture) -> Result<Arc<str>, Fault> {
        let decoder = self.decoder;
        let name = if decoder.is_future_type(&future.kind)? {
            decoder.pointer(task.plus(self.offsets.task_name))?
        } else {
            let name = decoder.attribute(task, "_name")?;
            name.ok_or(Fault::Invalid("it has no name"))?
        };
        self.name(name)
    }
}

#[cfg(test)]
mod tests {
    use super::{Waits, asyncio_module};

    #[test]
    fn code_is_asyncios_wherever_it_was_loaded_from() {
        for file in [
            "/usr/lib/python3.14/asyncio/locks.py",
            "/opt/python314.zip/asyncio/locks.pyc",
            "asyncio/locks.py",
            "<frozen asyncio.locks>",
        ] {
            assert_eq!(asyncio_module(file), Some("locks"), "{file}");
            assert_eq!(Waits::of("Lock.acquire", file), Waits::Lock, "{file}");
            assert_eq!(Waits::of("Lock.release", file), Waits::Within, "{file}");
        }
        for file in [
            "/usr/lib/python3.14/threading.py",
            "/app/myasyncio/locks.py",
            "/app/asyncio.py",
            "<frozen importlib._bootstrap>",
            "",
        ] {
            assert_eq!(asyncio_module(file), None, "{file}");
            assert_eq!(Waits::of("Lock.acquire", file), Waits::Elsewhere, "{file}");
        }
        let selector = "/usr/lib/python3.15/asyncio/selector_events.py";
        let socket = |function| Waits::of(function, selector);
        assert_eq!(socket("BaseSelectorEventLoop.sock_recv"), Waits::Socket);
        assert_eq!(socket("_SelectorSocketTransport.close"), Waits::Within);
    }
}
