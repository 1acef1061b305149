//! Where a target takes requests to run a script (PEP 768). Addresses only: nothing here writes.
//! <https://peps.python.org/pep-0768/>

mod hooks;
pub mod queue;
mod signals;

pub use hooks::Hooks;
pub use queue::{PendingCalls, Queue, pending_calls};
pub use signals::Signals;

use crate::decoder::{Decoder, Fault, HashMap};
use crate::limits::Limits;
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;
use crate::os::OsThread;
use crate::runtime::{GilState, Runtime};
use crate::thread::{PyThread, by_native_id};

/// The bit of `eval_breaker` that makes a thread look for a request.
pub const PLEASE_STOP: u8 = 0x20;

/// The bit of `eval_breaker` that makes the main thread look for signals that have come.
pub const SIGNALS_PENDING: u8 = 1 << 1;

/// The bit of `eval_breaker` that makes the main thread look for pending calls.
pub const CALLS_TO_DO: u8 = 1 << 2;

/// What a target offers for running scripts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Support {
    /// Whether the runtime is shutting down: it runs nothing any more.
    pub finalizing: bool,
    /// Every interpreter, the main one (id 0) first.
    pub interpreters: Vec<InterpreterSupport>,
    /// What could not be read, in words.
    pub problems: Vec<String>,
}

/// What one interpreter offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterpreterSupport {
    /// Its id.
    pub id: i64,
    /// Its address.
    pub address: Addr,
    /// `config.remote_debug`: false is the owner's refusal.
    pub enabled: bool,
    /// Its threads, the main one first.
    pub threads: Vec<ThreadSupport>,
}

/// Where one thread takes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadSupport {
    /// Its thread state.
    pub thread_state: Addr,
    /// The kernel's id in the target's own PID namespace; 0 before it runs.
    pub ns_tid: u64,
    /// The kernel's id in the PID namespace of whoever reads, where it is known.
    pub tid: Option<u64>,
    /// `threading.get_ident()`.
    pub ident: u64,
    /// Whether it is the interpreter's main thread.
    pub main: bool,
    /// `PyThreadState._status`.
    pub status: Status,
    /// Where that stands: a 32-bit word.
    pub status_at: Addr,
    /// The innermost frame, null when it runs no Python code.
    pub current_frame: Addr,
    /// Whether it waits for the GIL, as far as is known of what the kernel said: it comes by itself, and needs no waking.
    /// Never in a build that can run without the GIL.
    pub wants_gil: bool,
    /// A 32-bit int: 1 while a request waits.
    pub pending: Addr,
    /// What stood there.
    pub is_pending: bool,
    /// The buffer for the script's path, with its terminating zero.
    pub path: Addr,
    /// The buffer's size in bytes.
    pub path_size: usize,
    /// A word whose lowest byte holds the events; see [`PLEASE_STOP`].
    pub eval_breaker: Addr,
}

/// The bits of `PyThreadState._status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status(pub u32);

impl Status {
    /// Whether the thread state belongs to a thread.
    pub fn bound(self) -> bool {
        self.0 & (1 << 1) != 0
    }

    /// Whether it is the thread's innermost: a thread inside a subinterpreter has several.
    pub fn bound_gilstate(self) -> bool {
        self.0 & (1 << 3) != 0
    }

    /// Whether it is attached: it holds the GIL.
    pub fn active(self) -> bool {
        self.0 & (1 << 4) != 0
    }
}

/// Where every thread of every interpreter takes requests.
pub fn support<M: Memory + ?Sized>(
    memory: &M,
    runtime: &Runtime,
    os_threads: &[OsThread],
) -> Support {
    let limits = Limits::default();
    let decoder = Decoder::new(memory, runtime, &limits);
    let os = by_native_id(os_threads);
    let finalizing = decoder.member(runtime.address(), F::runtime_state_finalizing);
    let mut support = Support {
        finalizing: decoder.u64(finalizing).is_ok_and(|thread| thread != 0),
        ..Support::default()
    };
    for interpreter in decoder.interpreters() {
        let enabled = decoder.member(
            interpreter.address,
            F::debugger_support_remote_debugging_enabled,
        );
        let enabled = decoder.i32(enabled).unwrap_or_else(|fault| {
            decoder.problem(format_args!(
                "interpreter {}: whether remote debugging is enabled: {fault}",
                interpreter.id
            ));
            0
        });
        let gil = decoder.gil(interpreter.address, interpreter.id);
        let gil = gil.unwrap_or_default();
        let threads = decoder.threads(&interpreter, os_threads);
        support.interpreters.push(InterpreterSupport {
            id: interpreter.id,
            address: interpreter.address,
            enabled: enabled == 1,
            threads: threads
                .iter()
                .filter_map(|thread| match decoder.thread_support(thread, &os, gil) {
                    Ok(thread) => Some(thread),
                    Err(fault) => {
                        decoder.problem(format_args!("thread {}: {fault}", thread.native));
                        None
                    }
                })
                .collect(),
        });
    }
    support.problems = decoder.into_problems();
    support
}

/// Whether the runtime is shutting down; `None` where that cannot be read.
pub fn finalizing<M: Memory + ?Sized>(memory: &M, runtime: &Runtime) -> Option<bool> {
    let mut word = [0; 8];
    let offset = runtime.offsets().get(F::runtime_state_finalizing);
    memory
        .read(runtime.address().plus(offset), &mut word)
        .ok()?;
    Some(word != [0; 8])
}

impl<M: Memory + ?Sized> Decoder<'_, M> {
    fn thread_support(
        &self,
        thread: &PyThread,
        os: &HashMap<u64, &OsThread>,
        gil: Option<GilState>,
    ) -> Result<ThreadSupport, Fault> {
        let os = os.get(&thread.native).copied();
        let base = self.member(thread.address, F::debugger_support_remote_debugger_support);
        let pending = self.member(base, F::debugger_support_debugger_pending_call);
        let path_size = self
            .offsets()
            .get(F::debugger_support_debugger_script_path_size);
        Ok(ThreadSupport {
            thread_state: thread.address,
            ns_tid: thread.native,
            tid: os.map(|os| os.tid),
            ident: thread.ident,
            main: thread.main,
            status: Status(thread.status),
            status_at: self.member(thread.address, F::thread_state_status),
            current_frame: thread.current_frame,
            wants_gil: self.gil_use(thread, os, gil).wants,
            pending,
            is_pending: self.i32(pending)? != 0,
            path: self.member(base, F::debugger_support_debugger_script_path),
            path_size: usize::try_from(path_size)
                .map_err(|_| Fault::Invalid("a path buffer of impossible size"))?,
            eval_breaker: self.member(thread.address, F::debugger_support_eval_breaker),
        })
    }
}
