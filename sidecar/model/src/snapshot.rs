//! What a Python process was doing at one instant: the documents that `stacks` and `tasks` print.
//!
//! Ids of objects in the target are strings of the form `0x7f12…`. Frames are innermost last, as in a traceback.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The address of an object in the target: what tells tasks, futures and loops apart. In JSON the string `0x7f12…`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64);

impl Id {
    /// Bytes of the longest one as text.
    pub const TEXT: usize = 18;

    /// The address as text, written into the end of `buffer`: answers hold hundreds of thousands of them.
    pub fn text<'b>(&self, buffer: &'b mut [u8; Self::TEXT]) -> &'b str {
        const DIGITS: [u8; 16] = *b"0123456789abcdef";
        let mut rest = self.0;
        for place in buffer.iter_mut().rev() {
            *place = DIGITS[(rest & 15) as usize];
            rest >>= 4;
        }
        let start = Self::TEXT.saturating_sub(self.text_len());
        for (place, byte) in buffer.iter_mut().skip(start).zip(*b"0x") {
            *place = byte;
        }
        let text = buffer.get(start..).unwrap_or_default();
        std::str::from_utf8(text).unwrap_or_default()
    }

    /// Bytes of its text.
    pub fn text_len(&self) -> usize {
        let digits = (u64::BITS - self.0.leading_zeros()).div_ceil(4).max(1);
        digits as usize + 2
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text(&mut [0; Self::TEXT]))
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text(&mut [0; Self::TEXT]))
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or_else(|| de::Error::invalid_value(de::Unexpected::Str(&text), &"an address, 0x…"))
    }
}

/// One Python frame. Names are shared: a snapshot has many frames of few functions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The code object's `co_qualname`.
    pub function: Arc<str>,
    /// The code object's `co_filename`, as the target knows it.
    pub file: Arc<str>,
    /// The line that is being executed; `None` where the location table has none.
    pub line: Option<i64>,
    /// Local variables, present when they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locals: Option<Vec<Local>>,
}

/// One local variable of a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// The variable's name.
    pub name: String,
    /// The name of the value's type; `unbound` when the variable has no value.
    #[serde(rename = "type")]
    pub type_name: String,
    /// The value, clipped, present when values were asked for and the type can be shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// The threads of every interpreter of one process: the document of `stacks`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stacks {
    /// The interpreter's version, for example `3.14.8`.
    pub python: String,
    /// Every interpreter, the main one (id 0) first.
    pub interpreters: Vec<Interpreter>,
    /// How long a thread of the target was held still for this document, in microseconds.
    pub paused_microseconds: u64,
    /// Which threads were held still for it.
    #[serde(default)]
    pub stopped: Stopped,
    /// What could not be read, in words. Empty when everything was.
    pub problems: Vec<String>,
}

/// Which threads of a target were held still while it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stopped {
    /// None: no Python thread ran meanwhile, or none could be stopped, which a problem says.
    #[default]
    Nothing,
    /// The thread that held the GIL, one for each GIL that was held.
    GilHolder,
    /// Every thread that runs Python.
    AllThreads,
}

/// One interpreter and its threads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interpreter {
    /// `PyInterpreterState.id`; 0 is the main interpreter.
    pub id: i64,
    /// Whether its garbage collector was at work, which no other of its threads can run beside in a build with a GIL
    /// but while it runs a finalizer or a callback.
    #[serde(default)]
    pub collecting_garbage: bool,
    /// Where the collection was begun; known from 3.15 on.
    #[serde(default)]
    pub collection: Option<Collection>,
    /// Its threads, the main thread first, then in the order they were started.
    pub threads: Vec<Thread>,
}

/// Where a garbage collection was begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Collection {
    /// The kernel's id of the thread that does it.
    pub tid: u64,
    /// Which of that thread's frames it was begun from, 0 being the outermost. Frames further in are of finalizers and
    /// callbacks.
    pub frame: usize,
}

/// One Python thread.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Thread {
    /// The kernel's thread id in the PID namespace of whoever reads.
    pub tid: u64,
    /// Python's own thread id (`threading.get_ident()`), as `0x…`.
    pub ident: String,
    /// Python's full thread name where it could be read, otherwise the kernel's 15 bytes.
    pub name: String,
    /// Whether this is the interpreter's main thread.
    pub main: bool,
    /// Whether it held the GIL; `None` where that cannot be known (free-threaded builds).
    pub holds_gil: Option<bool>,
    /// Whether it waited for the GIL; `None` where that cannot be known (free-threaded builds).
    #[serde(default)]
    pub wants_gil: Option<bool>,
    /// What the kernel was doing with it.
    pub state: ThreadState,
    /// The system call it was blocked in.
    pub syscall: Option<Syscall>,
    /// The exception it was raising, else the innermost one that it was handling, as `sys.exception()` has it.
    #[serde(default)]
    pub exception: Option<CurrentException>,
    /// Its frames, innermost last.
    pub frames: Vec<Frame>,
}

/// An exception on its way, or one that an `except` or `finally` block has caught and not left yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurrentException {
    /// The qualified name of its type, with the module but for builtins.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Its first argument, clipped, where that is a string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What the kernel was doing with a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ThreadState {
    /// On a CPU, or ready to run, and executing Python or C code.
    Running,
    /// Able to run but waiting for the GIL.
    Runnable,
    /// Blocked in the kernel.
    #[default]
    Blocked,
}

/// A system call a thread was blocked in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Syscall {
    /// Its name, for example `futex`, or `syscall 999` where the number is not known.
    pub name: String,
    /// The interesting argument, for example `fd 7: TCP socket 10.0.0.7:41394 -> 10.0.0.2:5432, ESTABLISHED`, or `None`.
    pub detail: Option<String>,
}

/// Every asyncio task of every loop of one process: the document of `tasks`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tasks {
    /// Event loops that run, or that own a task.
    pub loops: Vec<Loop>,
    /// Every task that is not done.
    pub tasks: Vec<Task>,
    /// Groups of tasks that wait for each other, or for locks that these hold, each as the ids of one strongly connected
    /// component.
    pub cycles: Vec<Vec<Id>>,
    /// What two or more tasks wait for, with those tasks, the largest group first; at most 1 000 of them.
    #[serde(default)]
    pub groups: Vec<WaitingGroup>,
    /// How long a thread of the target was held still for this document, in microseconds.
    pub paused_microseconds: u64,
    /// Which threads were held still for it.
    #[serde(default)]
    pub stopped: Stopped,
    /// What could not be read, in words. Empty when everything was.
    pub problems: Vec<String>,
}

/// One event loop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loop {
    /// The loop object's address.
    pub id: Id,
    /// The kernel's id of the thread it runs in; `None` when it does not run.
    pub tid: Option<u64>,
    /// The interpreter it belongs to.
    pub interpreter: i64,
    /// Whether the loop was running.
    pub running: bool,
}

/// One asyncio task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// The task object's address.
    pub id: Id,
    /// `Task.get_name()`.
    pub name: Arc<str>,
    /// The id of its loop, or `None` where it could not be read.
    #[serde(rename = "loop")]
    pub loop_id: Option<Id>,
    /// The kernel's id of the thread that created it; `None` when that thread has ended.
    pub tid: Option<u64>,
    /// The interpreter it belongs to.
    pub interpreter: i64,
    /// Where it stands.
    pub state: TaskState,
    /// Its coroutine stack, innermost last; a running task's goes on through the plain frames beneath. Shared by the
    /// tasks that stand at the same place.
    pub coroutine: Arc<[Frame]>,
    /// The ids of the tasks that wait for this one.
    pub awaited_by: Vec<Id>,
    /// What it waits for now.
    pub waiting_for: Option<WaitingFor>,
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskState {
    /// Its coroutine has not begun.
    Created,
    /// It waits for a future.
    #[default]
    Waiting,
    /// What it waited for is there; its loop has not come round to it yet.
    Ready,
    /// Its loop is executing it.
    Running,
}

/// The object a task waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitingFor {
    /// What it is: `Task`, `Gather`, `Wait`, `AsCompleted`, `TaskGroup`, `Shield`, `Lock`, `Event`, `Semaphore`,
    /// `Condition`, `Barrier`, `Queue`, `Sleep`, `Executor`, `Socket`, `Stream`, `Subprocess`, `Server`, or `Future`
    /// where nothing more is known; of other awaitables the name of the type.
    pub kind: Arc<str>,
    /// Its address, the same for all tasks that wait for it.
    pub id: Id,
    /// What is known beyond that, for example the awaited task's name.
    pub detail: Option<Arc<str>>,
    /// The address of the future that the task awaits, where that is not the object itself: each waiter has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub future: Option<Id>,
    /// The ids of the tasks that hold a `Lock` or `Semaphore`, as far as they entered it by `async with`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<Arc<[Id]>>,
}

/// Tasks that wait for the same object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingGroup {
    /// What the object is, as in [`WaitingFor`].
    pub kind: Arc<str>,
    /// Its address.
    pub id: Id,
    /// What is known beyond that.
    pub detail: Option<Arc<str>>,
    /// The ids of the tasks, two or more.
    pub tasks: Vec<Id>,
}

#[cfg(test)]
mod tests {
    use super::Id;

    #[test]
    fn an_id_is_written_and_read_as_an_address() {
        for id in [0, 1, 0xf, 0x10, 0x7f12_3456_789a, u64::MAX] {
            assert_eq!(Id(id).to_string(), format!("{id:#x}"));
            let json = serde_json::to_string(&Id(id)).unwrap();
            assert_eq!(json, format!("\"{id:#x}\""));
            assert_eq!(serde_json::from_str::<Id>(&json).unwrap(), Id(id));
        }
        for wrong in ["\"\"", "\"12\"", "\"0x\"", "\"0x1g\"", "18"] {
            assert!(serde_json::from_str::<Id>(wrong).is_err(), "{wrong}");
        }
    }
}
