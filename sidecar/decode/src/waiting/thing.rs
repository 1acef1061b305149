//! What is known of the objects that tasks wait for.

use std::fmt::Write as _;
use std::sync::Arc;

use sidewinder_model::{Id, Task};

use super::{Thing, Variable, Waits, unless_limit};
use crate::coroutine::Link;
use crate::decoder::{Decoder, Fault};
use crate::memory::{Addr, Memory};
use crate::object::Type;
use crate::offsets::Field as F;
use crate::task::{Walk, id};
use crate::text;

/// Children of one `gather` whose states are counted, and of all together.
const MAX_CHILDREN: usize = 1024;
const MAX_ALL_CHILDREN: usize = 1 << 18;
/// Entries of a set's table that are looked at for them.
const MAX_SCANNED: usize = 16_384;
/// Children that are named.
const NAMED: usize = 3;
/// Bytes of a name within a description.
const NAME_BYTES: usize = 80;

impl Waits {
    /// The kind as it is shown, asyncio's own name of the class where there is one.
    const fn kind(self) -> &'static str {
        match self {
            Self::Lock => "Lock",
            Self::Event => "Event",
            Self::Semaphore => "Semaphore",
            Self::Condition => "Condition",
            Self::Barrier => "Barrier",
            Self::QueueGet | Self::QueuePut | Self::QueueJoin => "Queue",
            Self::Sleep => "Sleep",
            Self::Wait => "Wait",
            Self::AsCompleted => "AsCompleted",
            Self::TaskGroup => "TaskGroup",
            Self::Socket => "Socket",
            Self::StreamRead | Self::StreamDrain | Self::StreamClosed => "Stream",
            Self::Subprocess => "Subprocess",
            Self::Server => "Server",
            Self::Shield => "Shield",
            Self::ToThread | Self::Lookup | Self::Chained | Self::WorkItem => "Executor",
            Self::Elsewhere | Self::Within | Self::Enter | Self::Release => "Future",
        }
    }

    /// Whether the kind is the class of the object, so that another class is worth a word.
    const fn is_class(self) -> bool {
        matches!(
            self,
            Self::Lock
                | Self::Event
                | Self::Semaphore
                | Self::Condition
                | Self::Barrier
                | Self::QueueGet
                | Self::QueuePut
                | Self::QueueJoin
                | Self::TaskGroup
                | Self::Server
        )
    }
}

impl Thing {
    /// A thing of which only the kind is known.
    pub(super) const fn unknown(waits: Waits) -> Self {
        Self {
            kind: waits.kind(),
            detail: None,
        }
    }
}

/// What is said of an object, separated by commas.
#[derive(Default)]
struct Words(String);

impl Words {
    fn push(&mut self, word: impl std::fmt::Display) {
        let separator = if self.0.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(self.0, "{separator}{word}");
    }
}

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// An attribute that must be there.
    fn own(&self, object: Addr, name: &'static str) -> Result<Addr, Fault> {
        self.attribute(object, name)?
            .ok_or(Fault::Invalid("an object without its attributes"))
    }

    fn number(&self, object: Addr, name: &'static str) -> Result<u64, Fault> {
        self.small_int(self.own(object, name)?)
    }

    /// The items of a `deque`, a `list` or nothing at all.
    fn items(&self, object: Addr, name: &'static str) -> Result<usize, Fault> {
        let items = self.own(object, name)?;
        let kind = self.type_of(items)?;
        match kind.name.as_str() {
            "NoneType" => Ok(0),
            "collections.deque" => self.size(items, F::pyobject_size),
            _ if kind.is_list() => self.size(items, F::list_object_ob_size),
            _ => Err(Fault::Invalid("neither a deque nor a list")),
        }
    }

    /// The descriptor of a transport: of a socket, or of a pipe.
    fn transport(&self, transport: Addr, words: &mut Words) -> Result<(), Fault> {
        // Under TLS lies the transport of the socket.
        let transport = match self.attribute(transport, "_ssl_protocol")? {
            Some(protocol) => self.own(protocol, "_transport")?,
            None => transport,
        };
        let fd = match self.attribute(transport, "_sock_fd")? {
            Some(fd) => fd,
            None => self.own(transport, "_fileno")?,
        };
        words.push(format_args!("fd {}", self.small_int(fd)?));
        // The only slot of asyncio's `BaseTransport`, so the first word of all that derive from it.
        let extra = self.pointer(self.member(transport, F::pyobject_size))?;
        if let Some(peer) = self.dict_get(extra, "peername")?
            && let Some(peer) = self.socket_address(peer)?
        {
            words.push(format_args!("peer {peer}"));
        }
        Ok(())
    }

    /// An address as the `socket` module gives it: `(host, port, …)` or a path. An empty path is nobody's name.
    fn socket_address(&self, address: Addr) -> Result<Option<String>, Fault> {
        let kind = self.type_of(address)?;
        if kind.is_str() {
            let path = self.string_up_to(address, NAME_BYTES)?;
            return Ok(Some(path).filter(|path| !path.is_empty()));
        }
        if !kind.is_tuple() || self.size(address, F::tuple_object_ob_size)? < 2 {
            return Ok(None);
        }
        let items = self.member(address, F::tuple_object_ob_item);
        let host = self.string_up_to(self.pointer(items)?, NAME_BYTES)?;
        let port = self.small_int(self.pointer(items.plus(8))?)?;
        Ok(Some(if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }))
    }

    /// A number of seconds in a variable.
    fn seconds(&self, link: &Link, name: &str) -> Result<Option<String>, Fault> {
        let seconds = match self.variable_of(link, name)? {
            Some(Variable::Int(seconds)) => seconds.to_string(),
            Some(Variable::Object(seconds)) => {
                let kind = self.type_of(seconds)?;
                if kind.name == "float" {
                    text::float(self.f64(self.member(seconds, F::float_object_ob_fval))?)
                } else if kind.is_int() {
                    self.int(seconds)?
                } else {
                    return Ok(None);
                }
            }
            None => return Ok(None),
        };
        Ok(Some(format!("{seconds} s")))
    }

    /// The descriptor in a socket object, the first word of its C structure; `None` when it is closed.
    fn socket_fd(&self, socket: Addr) -> Result<Option<i32>, Fault> {
        if !self.type_of(socket)?.name.contains("socket") {
            return Ok(None);
        }
        let fd = self.i32(self.member(socket, F::pyobject_size))?;
        Ok(Some(fd).filter(|fd| *fd >= 0))
    }
}

impl<M: Memory + ?Sized> Walk<'_, '_, M> {
    /// An object and what is known of it. What cannot be read is left out.
    pub(super) fn thing(&mut self, object: Addr, link: &Link) -> Result<Thing, Fault> {
        let waits = link.code.waits;
        let mut words = Words::default();
        let described = self.describe(object, link, &mut words);
        unless_limit(described.map(Some))?;
        Ok(Thing {
            kind: waits.kind(),
            detail: if words.0.is_empty() {
                None
            } else {
                Some(self.text(&words.0)?)
            },
        })
    }

    fn describe(&mut self, object: Addr, link: &Link, words: &mut Words) -> Result<(), Fault> {
        let decoder = self.decoder;
        let waits = link.code.waits;
        let kind: std::rc::Rc<Type> = decoder.type_of(object)?;
        if waits.is_class() && kind.short_name() != waits.kind() {
            words.push(text::clip(kind.short_name(), NAME_BYTES));
        }
        let waiting = |words: &mut Words| {
            let waiters = decoder.items(object, "_waiters")?;
            words.push(format_args!("{waiters} waiting"));
            Ok(())
        };
        match waits {
            Waits::Lock => {
                let locked = decoder.number(object, "_locked")? != 0;
                words.push(if locked { "locked" } else { "not locked" });
                waiting(words)
            }
            Waits::Event => waiting(words),
            Waits::Semaphore => {
                words.push(format_args!("value {}", decoder.number(object, "_value")?));
                waiting(words)
            }
            Waits::Condition => {
                waiting(words)?;
                let lock = decoder.own(object, "_lock")?;
                let locked = decoder.number(lock, "_locked")? != 0;
                words.push(if locked {
                    "its lock is locked"
                } else {
                    "its lock is not locked"
                });
                Ok(())
            }
            Waits::Barrier => {
                let count = decoder.number(object, "_count")?;
                let parties = decoder.number(object, "_parties")?;
                words.push(format_args!("{count} of {parties} parties"));
                Ok(())
            }
            Waits::QueueGet | Waits::QueuePut | Waits::QueueJoin => {
                self.queue(object, waits, words)
            }
            Waits::Sleep => {
                if let Some(delay) = decoder.seconds(link, "delay")? {
                    words.push(delay);
                }
                Ok(())
            }
            Waits::Wait => self.waits_for_some(link, words),
            Waits::AsCompleted => self.pending(decoder.own(object, "_todo")?, words),
            Waits::TaskGroup => self.pending(decoder.own(object, "_tasks")?, words),
            Waits::Socket => {
                let name = link.code.function.rsplit('.').next().unwrap_or_default();
                words.push(name.trim_start_matches('_').trim_start_matches("sock_"));
                if let Some(fd) = decoder.socket_fd(object)? {
                    words.push(format_args!("fd {fd}"));
                }
                if let Some(address) = decoder.object_of(link, "address")?
                    && let Some(address) = decoder.socket_address(address)?
                {
                    words.push(format_args!("to {address}"));
                }
                Ok(())
            }
            Waits::StreamRead | Waits::StreamDrain | Waits::StreamClosed => {
                words.push(match waits {
                    Waits::StreamRead => "read",
                    Waits::StreamDrain => "drain",
                    _ => "close",
                });
                decoder.transport(decoder.own(object, "_transport")?, words)
            }
            Waits::Subprocess => {
                // Of a `Process`, whatever its transport; else it is the transport.
                let pid = match decoder.attribute(object, "pid")? {
                    Some(pid) => decoder.small_int(pid)?,
                    None => decoder.number(object, "_pid")?,
                };
                words.push(format_args!("pid {pid}"));
                Ok(())
            }
            Waits::Server
            | Waits::Elsewhere
            | Waits::Within
            | Waits::Enter
            | Waits::Release
            | Waits::ToThread
            | Waits::Lookup
            | Waits::Shield
            | Waits::Chained
            | Waits::WorkItem => Ok(()),
        }
    }

    fn queue(&self, queue: Addr, waits: Waits, words: &mut Words) -> Result<(), Fault> {
        let decoder = self.decoder;
        let operation = match waits {
            Waits::QueueGet => "get",
            Waits::QueuePut => "put",
            _ => "join",
        };
        words.push(operation);
        // A class derived from it may keep its items in any other way.
        if let Some(items) = unless_limit(decoder.items(queue, "_queue").map(Some))? {
            match decoder.number(queue, "_maxsize") {
                Ok(max) if max > 0 => words.push(format_args!("{items} of {max} items")),
                _ => words.push(format_args!("{items} items")),
            }
        }
        match waits {
            Waits::QueueGet => {
                let getters = decoder.items(queue, "_getters")?;
                words.push(format_args!("{getters} waiting"));
            }
            Waits::QueuePut => {
                let putters = decoder.items(queue, "_putters")?;
                words.push(format_args!("{putters} waiting"));
            }
            _ => {
                let unfinished = decoder.number(queue, "_unfinished_tasks")?;
                words.push(format_args!("{unfinished} unfinished"));
            }
        }
        if decoder.number(queue, "_is_shutdown")? != 0 {
            words.push("shut down");
        }
        Ok(())
    }

    /// `asyncio.wait`: how many of the set are pending, and whether one of them is enough.
    fn waits_for_some(&mut self, link: &Link, words: &mut Words) -> Result<(), Fault> {
        let decoder = self.decoder;
        let Some(awaited) = decoder.object_of(link, "fs")? else {
            return Ok(());
        };
        if let Some(found) = self.children(awaited)? {
            words.push(found);
        }
        if let Some(when) = decoder.object_of(link, "return_when")? {
            for (name, shown) in [
                ("FIRST_COMPLETED", "first completed"),
                ("FIRST_EXCEPTION", "first exception"),
            ] {
                if decoder.string_is(when, name) {
                    words.push(shown);
                }
            }
        }
        if let Some(timeout) = decoder.seconds(link, "timeout")? {
            words.push(format_args!("timeout {timeout}"));
        }
        Ok(())
    }

    /// A set whose members are all pending.
    fn pending(&mut self, set: Addr, words: &mut Words) -> Result<(), Fault> {
        let decoder = self.decoder;
        if decoder.type_of(set)?.name != "set" {
            return Ok(());
        }
        let count = decoder.size(set, F::set_object_used)?;
        let mut names = String::new();
        for task in decoder.first_set_items(set, NAMED, MAX_SCANNED)?.0 {
            if let Some(name) = unless_limit(self.name_of(task))? {
                add_name(&mut names, &name);
            }
        }
        let more = if count > NAMED && !names.is_empty() {
            ", …"
        } else {
            ""
        };
        words.push(format_args!("{count} pending{names}{more}"));
        Ok(())
    }

    /// How many of the futures in a list or a set are pending.
    pub(super) fn children(&mut self, children: Addr) -> Result<Option<String>, Fault> {
        Ok(match self.items_of(children)? {
            Some(Items::Listed(children)) => Some(self.states_of(&children, |_| None)?),
            Some(Items::Counted(count)) => Some(format!("{count} children")),
            None => None,
        })
    }

    /// What each `gather` waits for, now that the tasks are known.
    pub(crate) fn tell_gathers(&mut self, tasks: &mut [Task], known: impl Fn(Id) -> Option<u32>) {
        for (index, children) in std::mem::take(&mut self.known.gathers) {
            let name = |child: Addr| {
                let task = tasks.get(usize::try_from(known(id(child))?).ok()?)?;
                Some(Arc::clone(&task.name))
            };
            let text = self
                .states_of(&children, name)
                .and_then(|text| self.text(&text));
            let task = usize::try_from(index).ok().and_then(|n| tasks.get_mut(n));
            let waiting_for = task.and_then(|task| task.waiting_for.as_mut());
            match (text, waiting_for) {
                (Ok(text), Some(waiting_for)) => waiting_for.detail = Some(text),
                (Err(fault @ Fault::Limit(_)), _) => {
                    return self.decoder.problem(format_args!("gather: {fault}"));
                }
                (Ok(_) | Err(_), _) => {}
            }
        }
    }

    /// The members of a list or a set, where they are not too many.
    pub(super) fn items_of(&mut self, children: Addr) -> Result<Option<Items>, Fault> {
        let decoder = self.decoder;
        let kind = decoder.type_of(children)?;
        let is_list = kind.is_list();
        if !is_list && kind.name != "set" {
            return Ok(None);
        }
        let count = if is_list {
            decoder.size(children, F::list_object_ob_size)?
        } else {
            decoder.size(children, F::set_object_used)?
        };
        let read = self.known.children.saturating_add(count);
        if count > MAX_CHILDREN || read > MAX_ALL_CHILDREN {
            return Ok(Some(Items::Counted(count)));
        }
        self.known.children = read;
        let items = if is_list {
            let items = decoder.pointer(decoder.member(children, F::list_object_ob_item))?;
            let bytes = decoder.bytes(items, count.saturating_mul(8))?;
            let (words, _) = bytes.as_chunks::<8>();
            words
                .iter()
                .map(|word| Addr(u64::from_le_bytes(*word)))
                .collect()
        } else {
            decoder.first_set_items(children, count, MAX_SCANNED)?.0
        };
        Ok(Some(Items::Listed(items)))
    }

    /// How many of these are pending, and the names of the first few; `known` names tasks that are.
    fn states_of(
        &mut self,
        children: &[Addr],
        known: impl Fn(Addr) -> Option<Arc<str>>,
    ) -> Result<String, Fault> {
        let count = children.len();
        let mut pending = 0_usize;
        let mut names = String::new();
        for child in children.iter().copied() {
            if let Some(name) = known(child) {
                pending = pending.saturating_add(1);
                if pending <= NAMED {
                    add_name(&mut names, &name);
                }
                continue;
            }
            let future = self.future(child)?;
            if future.as_ref().is_some_and(|child| child.is_done) {
                continue;
            }
            pending = pending.saturating_add(1);
            if pending <= NAMED
                && let Some(future) = future.filter(|future| future.is_task)
                && let Some(name) = unless_limit(self.task_name(child, &future).map(Some))?
            {
                add_name(&mut names, &name);
            }
        }
        let mut text = format!("{pending} of {count} pending{names}");
        if pending > NAMED && !names.is_empty() {
            text.push_str(", …");
        }
        Ok(text)
    }
}

/// Names behind a number: `: one, two`.
/// The members of a collection that a task waits for.
pub(super) enum Items {
    Listed(Vec<Addr>),
    /// Too many to look at.
    Counted(usize),
}

fn add_name(names: &mut String, name: &str) {
    names.push_str(if names.is_empty() { ": " } else { ", " });
    names.push_str(&text::clip(name, NAME_BYTES));
}
