//! Interpreters and their threads: the document of `stacks`.

use std::ops::ControlFlow;

use sidewinder_model::{Interpreter, Locals, Stacks, Stopped, Thread, ThreadState};

use crate::decoder::{Decoder, Fault, HashMap, HashSet};
use crate::limits::Limits;
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;
use crate::os::OsThread;
use crate::runtime::{GilState, Runtime};

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
        let threads = decoder
            .threads(&interpreter, os_threads)
            .into_iter()
            .filter(|thread| thread.native != 0 || !thread.current_frame.is_null())
            .map(|thread| {
                decoder.thread(
                    &thread,
                    os.get(&thread.native).copied(),
                    gil,
                    &names,
                    locals,
                )
            })
            .collect();
        interpreters.push(Interpreter {
            id: interpreter.id,
            threads,
        });
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
        names: &HashMap<u64, String>,
        locals: Locals,
    ) -> Thread {
        let name = names
            .get(&thread.ident)
            .cloned()
            .or_else(|| os.map(|os| os.name.clone()))
            .unwrap_or_default();
        let whose = format!("thread {} ({name})", thread.native);
        if os.is_none() {
            self.problem(format_args!("{whose}: the kernel has no such thread"));
        }
        let holds = gil.is_some_and(|gil| gil.locked && gil.holder == thread.address);
        let (frames, _) = self.frames(&whose, thread.current_frame, None, locals);
        Thread {
            tid: os.map_or(0, |os| os.tid),
            ident: format!("{:#x}", thread.ident),
            name,
            main: thread.main,
            holds_gil: (!self.runtime.free_threaded()).then_some(holds),
            state: os.map_or(ThreadState::Blocked, |os| self.state(os, gil, holds)),
            syscall: os.and_then(|os| os.syscall.clone()),
            frames,
        }
    }

    /// A thread that waits for the GIL sleeps on a futex inside the lock, five milliseconds at a time.
    fn state(&self, os: &OsThread, gil: Option<GilState>, holds: bool) -> ThreadState {
        if self.runtime.free_threaded() || holds {
            return os.state;
        }
        let waits_for_gil = gil.is_some_and(|gil| {
            os.futex
                .is_some_and(|futex| (gil.gil.0..gil.gil.plus(self.gil_bytes()).0).contains(&futex))
        });
        if waits_for_gil {
            ThreadState::Runnable
        } else {
            os.state
        }
    }

    /// `threading._active`: the full names of threads by ident, where `threading` is imported. The kernel has 15 bytes.
    pub(crate) fn thread_names(&self, interpreter: Addr) -> HashMap<u64, String> {
        let mut names = HashMap::default();
        let mut read = || -> Result<(), Fault> {
            let modules =
                self.pointer(self.member(interpreter, F::interpreter_state_imports_modules))?;
            if modules.is_null() {
                return Ok(());
            }
            let Some(module) = self.dict_get(modules, "threading")? else {
                return Ok(());
            };
            if self.type_of(module)?.name != "module" {
                return Ok(());
            }
            let dict = self.pointer(self.member(module, F::pyobject_size))?;
            let Some(active) = self.dict_get(dict, "_active")? else {
                return Ok(());
            };
            self.dict_entries(active, |ident, thread| {
                let name = self.attribute(thread, "_name").and_then(|name| match name {
                    Some(name) => self.string(name).map(Some),
                    None => Ok(None),
                });
                if let (Ok(ident), Ok(Some(name))) = (self.small_int(ident), name) {
                    names.insert(ident, name);
                }
                ControlFlow::Continue(())
            })
        };
        if let Err(fault) = read() {
            self.problem(format_args!("names of threads: {fault}"));
        }
        names
    }
}
