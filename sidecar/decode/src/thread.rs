//! Interpreters and their threads: the document of `stacks`.

use sidewinder_model::{Collection, Interpreter, Locals, Stacks, Stopped, Thread, ThreadState};

use crate::decoder::{Decoder, Fault, HashMap, HashSet};
use crate::limits::Limits;
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;
use crate::os::OsThread;
use crate::runtime::{GilState, Runtime};
use crate::thread_name::ThreadNames;

// Bits of `PyThreadState._status`.
const CLEARED: u32 = 1 << 6;
const FINALIZED: u32 = 1 << 7;

/// One interpreter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InterpreterState {
    pub(crate) address: Addr,
    pub(crate) id: i64,
}

/// One thread state: a thread in one interpreter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PyThread {
    pub(crate) address: Addr,
    /// `threading.get_ident()`.
    pub(crate) ident: u64,
    /// The kernel's id in the target's PID namespace; 0 before the thread runs.
    pub(crate) native: u64,
    pub(crate) status: u32,
    pub(crate) current_frame: Addr,
    pub(crate) main: bool,
}

/// What a thread has to do with its interpreter's GIL.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GilUse {
    /// It has it.
    pub(crate) holds: bool,
    /// The kernel saw it asleep for it, which may be over.
    pub(crate) sleeps: bool,
    /// It waits for it.
    pub(crate) wants: bool,
}

/// Every thread of every interpreter with its stack.
pub fn stacks<M: Memory + ?Sized>(
    memory: &M,
    runtime: &Runtime,
    os_threads: &[OsThread],
    locals: Locals,
    limits: &Limits,
) -> Stacks {
    let decoder = Decoder::new(memory, runtime, limits);
    let os = by_native_id(os_threads);
    let mut interpreters = Vec::new();
    let mut main_names = ThreadNames::default();
    for interpreter in decoder.interpreters() {
        let gil = decoder
            .gil(interpreter.address, interpreter.id)
            .unwrap_or_else(|fault| {
                decoder.problem(format_args!(
                    "GIL of interpreter {}: {fault}",
                    interpreter.id
                ));
                None
            });
        let names = decoder.thread_names(interpreter.address);
        let states: Vec<PyThread> = decoder
            .threads(&interpreter, os_threads)
            .into_iter()
            .filter(|thread| thread.native != 0 || !thread.current_frame.is_null())
            .collect();
        let threads: Vec<Thread> = states
            .iter()
            .map(|state| {
                let os = os.get(&state.native).copied();
                let name = names
                    .of(state)
                    // A thread that has come from the main interpreter has its name there.
                    .or_else(|| main_names.of_ident(state.ident))
                    .or_else(|| os.map(|os| os.name.as_str()))
                    .unwrap_or_default();
                decoder.thread(state, os, gil, name, locals)
            })
            .collect();
        let (collecting_garbage, collection) =
            decoder.collection(interpreter.address, &states, &threads);
        interpreters.push(Interpreter {
            id: interpreter.id,
            collecting_garbage,
            collection,
            threads,
        });
        if interpreter.id == 0 {
            main_names = names;
        }
    }
    Stacks {
        python: runtime.version(),
        interpreters,
        paused_microseconds: 0,
        stopped: Stopped::Nothing,
        problems: decoder.into_problems(),
    }
}

/// The kernel's threads by the id that CPython knows them by.
pub(crate) fn by_native_id(os_threads: &[OsThread]) -> HashMap<u64, &OsThread> {
    os_threads
        .iter()
        .map(|thread| (thread.ns_tid, thread))
        .collect()
}

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// Every interpreter, the main one first.
    pub(crate) fn interpreters(&self) -> Vec<InterpreterState> {
        let mut found = Vec::new();
        let mut seen = HashSet::default();
        let head = self.member(self.runtime.address(), F::runtime_state_interpreters_head);
        let mut next = self.pointer(head).unwrap_or_else(|fault| {
            self.problem(format_args!("interpreters: {fault}"));
            Addr(0)
        });
        while !next.is_null() {
            if found.len() >= self.limits.interpreters || !seen.insert(next) {
                self.problem(format_args!(
                    "more than {} interpreters, or a circle of them",
                    found.len()
                ));
                break;
            }
            let read = self
                .i64(self.member(next, F::interpreter_state_id))
                .and_then(|id| {
                    Ok((
                        id,
                        self.pointer(self.member(next, F::interpreter_state_next))?,
                    ))
                });
            match read {
                Ok((id, after)) => {
                    found.push(InterpreterState { address: next, id });
                    next = after;
                }
                Err(fault) => {
                    self.problem(format_args!("interpreter at {next}: {fault}"));
                    break;
                }
            }
        }
        found.sort_by_key(|interpreter| interpreter.id);
        found
    }

    /// The threads of an interpreter, the main one first, then in the order they were started.
    pub(crate) fn threads(
        &self,
        interpreter: &InterpreterState,
        os_threads: &[OsThread],
    ) -> Vec<PyThread> {
        let mut found: Vec<PyThread> = Vec::new();
        let mut seen = HashSet::default();
        let pointer = |field| self.pointer(self.member(interpreter.address, field));
        let mut next = pointer(F::interpreter_state_threads_head).unwrap_or_else(|fault| {
            self.problem(format_args!(
                "threads of interpreter {}: {fault}",
                interpreter.id
            ));
            Addr(0)
        });
        while !next.is_null() {
            let met = self.threads.get();
            if met >= self.limits.threads || !seen.insert(next) {
                self.problem(format_args!(
                    "interpreter {}: more than {met} threads, or a circle of them",
                    interpreter.id
                ));
                break;
            }
            self.threads.set(met.saturating_add(1));
            match self.py_thread(next) {
                Ok((thread, after)) => {
                    if thread.status & (CLEARED | FINALIZED) == 0 {
                        found.push(thread);
                    }
                    next = after;
                }
                Err(fault) => {
                    self.problem(format_args!("thread state at {next}: {fault}"));
                    break;
                }
            }
        }
        // New threads are put at the head.
        found.reverse();
        let main = pointer(F::interpreter_state_threads_main).unwrap_or(Addr(0));
        if let Some(at) = Self::main_index(&found, main, interpreter.id, os_threads) {
            if let Some(thread) = found.get_mut(at) {
                thread.main = true;
            }
            if let Some(before) = found.get_mut(..=at) {
                before.rotate_right(1);
            }
        }
        found
    }

    /// Which thread is the main one. Once the main script has ended, `threads_main` is null although the main thread
    /// waits for the others; then it is the one whose kernel id is the process's.
    fn main_index(
        threads: &[PyThread],
        main: Addr,
        interpreter: i64,
        os_threads: &[OsThread],
    ) -> Option<usize> {
        if !main.is_null() {
            return threads.iter().position(|thread| thread.address == main);
        }
        let leader = os_threads.first().filter(|_| interpreter == 0)?.ns_tid;
        threads.iter().position(|thread| thread.native == leader)
    }

    fn py_thread(&self, address: Addr) -> Result<(PyThread, Addr), Fault> {
        let thread = PyThread {
            address,
            ident: self.u64(self.member(address, F::thread_state_thread_id))?,
            native: self.u64(self.member(address, F::thread_state_native_thread_id))?,
            status: self.u32(self.member(address, F::thread_state_status))?,
            current_frame: self.pointer(self.member(address, F::thread_state_current_frame))?,
            main: false,
        };
        Ok((
            thread,
            self.pointer(self.member(address, F::thread_state_next))?,
        ))
    }

    fn thread(
        &self,
        thread: &PyThread,
        os: Option<&OsThread>,
        gil: Option<GilState>,
        name: &str,
        locals: Locals,
    ) -> Thread {
        let whose = format!("thread {} ({name})", thread.native);
        if os.is_none() {
            self.problem(format_args!("{whose}: the kernel has no such thread"));
        }
        let has_gil = !self.runtime.free_threaded();
        let GilUse {
            holds,
            sleeps: sleeps_for_gil,
            wants,
        } = self.gil_use(thread, os, gil);
        let (mut state, mut syscall) = os.map_or((ThreadState::Blocked, None), |os| {
            (os.state, os.syscall.clone())
        });
        if wants {
            state = ThreadState::Runnable;
            if sleeps_for_gil {
                if let (Some(syscall), Some(futex)) = (&mut syscall, os.and_then(|os| os.futex)) {
                    syscall.detail = Some(format!("futex {futex:#x}, the GIL"));
                }
            } else {
                // It has come back from where the kernel saw it.
                syscall = None;
            }
        } else if holds && sleeps_for_gil {
            // It has got since what it waited for when the kernel was asked.
            state = ThreadState::Running;
            syscall = None;
        }
        let exception = self
            .current_exception(thread.address)
            .unwrap_or_else(|fault| {
                self.problem(format_args!("{whose}: its exception: {fault}"));
                None
            });
        let (frames, _) = self.frames(&whose, thread.current_frame, None, locals);
        Thread {
            tid: os.map_or(0, |os| os.tid),
            ident: format!("{:#x}", thread.ident),
            name: name.to_owned(),
            main: thread.main,
            holds_gil: has_gil.then_some(holds),
            wants_gil: has_gil.then_some(wants),
            state,
            syscall,
            exception,
            frames,
        }
    }

    pub(crate) fn gil_use(
        &self,
        thread: &PyThread,
        os: Option<&OsThread>,
        gil: Option<GilState>,
    ) -> GilUse {
        if self.runtime.free_threaded() {
            return GilUse::default();
        }
        let holds = gil.is_some_and(|gil| gil.locked && gil.holder == thread.address);
        let sleeps = os.zip(gil).is_some_and(|(os, gil)| self.in_gil(os, gil));
        GilUse {
            holds,
            sleeps,
            wants: !holds && (sleeps || self.requests_gil(thread)),
        }
    }

    /// A thread that waits for the GIL sleeps on a futex inside the lock, five milliseconds at a time.
    fn in_gil(&self, os: &OsThread, gil: GilState) -> bool {
        let end = gil.gil.plus(self.gil_bytes());
        os.futex
            .is_some_and(|futex| (gil.gil.0..end.0).contains(&futex))
    }

    /// 3.15 keeps for each thread whether it asks for the GIL.
    fn requests_gil(&self, thread: &PyThread) -> bool {
        self.offsets()
            .find(F::thread_state_gil_requested)
            .and_then(|at| self.i32(thread.address.plus(at)).ok())
            .is_some_and(|requested| requested != 0)
    }

    /// Whether the garbage collector is at work, and where it was begun.
    fn collection(
        &self,
        interpreter: Addr,
        states: &[PyThread],
        threads: &[Thread],
    ) -> (bool, Option<Collection>) {
        let collector = self.member(interpreter, F::interpreter_state_gc);
        let collecting = self
            .i32(self.member(collector, F::gc_collecting))
            .unwrap_or_else(|fault| {
                self.problem(format_args!("garbage collector: {fault}"));
                0
            });
        if collecting == 0 {
            return (false, None);
        }
        let begun_at = self
            .offsets()
            .find(F::gc_frame)
            .and_then(|at| self.pointer(collector.plus(at)).ok())
            .filter(|frame| !frame.is_null());
        let Some(begun_at) = begun_at else {
            return (true, None);
        };
        let found = states.iter().zip(threads).find_map(|(state, thread)| {
            let (inner, met) = self.frames(
                "garbage collection",
                state.current_frame,
                Some(begun_at),
                Locals::None,
            );
            let frame = thread
                .frames
                .len()
                .checked_sub(inner.len())?
                .checked_sub(1)?;
            met.then_some(Collection {
                tid: thread.tid,
                frame,
            })
        });
        (true, found)
    }
}
