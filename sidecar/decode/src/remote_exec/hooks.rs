//! What stands between a request that was accepted and its script: the hook that opens code, and audit hooks.
//!
//! No table of offsets has them. In `_PyRuntime` they follow what its first preconfiguration was (`pycore_runtime_structs.h`):
//! ```text
//! struct {PyMutex mutex; bool requested, world_stopped, is_global; PyEvent stop_event;
//!         Py_ssize_t thread_countdown; PyThreadState *requester;} stoptheworld;
//! struct {int config_init, parse_argv, isolated, use_environment, configure_locale, coerce_c_locale,
//!         coerce_c_locale_warn, utf8_mode, dev_mode, allocator;} preconfig;
//! Py_OpenCodeHookFunction open_code_hook; void *open_code_userdata;
//! struct {PyMutex mutex; struct _Py_AuditHookEntry *head;} audit_hooks;
//! ```
//! An interpreter's own, from `sys.addaudithook`, are a list near its beginning (`pycore_interp_structs.h`):
//! ```text
//! struct {uint64_t wr_seq, rd_seq; struct _qsbr_pad *array; Py_ssize_t size; PyMutex mutex; void *freelist; …} qsbr;
//! struct llist_node asyncio_tasks_head;   leads to itself while it is empty
//! PyMutex asyncio_tasks_lock;
//! struct _obmalloc_state *obmalloc;
//! PyObject *audit_hooks;
//! ```

use crate::decoder::word_in;
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;
use crate::runtime::Runtime;

/// The bytes of the runtime that are searched: the structure begins in the third KiB of ten.
const SEARCHED: u64 = 16 << 10;
/// The bytes of an interpreter that are searched: the structure begins in the third KiB of ten.
const SEARCHED_OF_INTERPRETER: u64 = 16 << 10;
/// Bytes from `stoptheworld` to each.
const PRECONFIG: u64 = 24;
const OPEN_CODE: u64 = 64;
const AUDIT_MUTEX: u64 = 80;
const AUDIT: u64 = 88;
/// The ints of a preconfiguration, with the least and the most that each can be.
const PRECONFIG_BOUNDS: [(i32, i32); 10] = [
    (1, 3),
    (0, 1),
    (0, 1),
    (0, 1),
    (0, 1),
    (-1, 2),
    (-1, 1),
    (-1, 1),
    (-1, 1),
    (0, 16),
];
/// Where addresses of a program end.
const USER_SPACE: u64 = 1 << 56;

/// Whether there are hooks that can keep a script from being run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// Whether `PyFile_SetOpenCodeHook` was called; `None` where that cannot be told.
    pub open_code: Option<bool>,
    /// Whether there is any audit hook, of the runtime's or of the interpreter's own; `None` where that cannot be told.
    pub audit: Option<bool>,
}

impl Hooks {
    /// What there is for a script in the interpreter at this address.
    pub fn of<M: Memory + ?Sized>(memory: &M, runtime: &Runtime, interpreter: Addr) -> Self {
        let global = of_runtime(memory, runtime);
        let own = of_interpreter(memory, runtime, interpreter);
        Self {
            open_code: global.map(|(open_code, _)| open_code),
            audit: match (global.map(|(_, audit)| audit), own) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
        }
    }
}

/// Whether the runtime has a hook to open code, and whether it has audit hooks; `None` where there is not exactly one
/// place that looks like it.
fn of_runtime<M: Memory + ?Sized>(memory: &M, runtime: &Runtime) -> Option<(bool, bool)> {
    let size = runtime.offsets().get(F::runtime_state_size).min(SEARCHED);
    let bytes = read(memory, runtime.address(), size)?;
    let mut places = (0..size).step_by(8).filter_map(|at| hooks_at(&bytes, at));
    let found = places.next()?;
    places.next().is_none().then_some(found)
}

fn hooks_at(bytes: &[u8], at: u64) -> Option<(bool, bool)> {
    let word = |offset: u64| word_in(bytes, at.checked_add(offset)?);
    let [mutex, requested, stopped, is_global, event, padding @ ..] = word(0)?.to_le_bytes();
    // Of all the structures that stop the world this is the only one of the whole runtime.
    if mutex > 3 || requested > 1 || stopped > 1 || is_global != 1 || event > 3 {
        return None;
    }
    let [open_code, userdata, audit] = [word(OPEN_CODE)?, word(72)?, word(AUDIT)?];
    if padding != [0; 3] || word(AUDIT_MUTEX)? > 3 || !is_pointer(open_code) || !is_pointer(audit) {
        return None;
    }
    if open_code == 0 && userdata != 0 {
        return None;
    }
    for (n, (least, most)) in (0_u64..).zip(PRECONFIG_BOUNDS) {
        let pair = word(PRECONFIG.checked_add(n.checked_div(2)?.checked_mul(8)?)?)?.to_le_bytes();
        let (halves, _) = pair.as_chunks::<4>();
        let value = i32::from_le_bytes(*halves.get(usize::try_from(n.checked_rem(2)?).ok()?)?);
        if !(least..=most).contains(&value) {
            return None;
        }
    }
    Some((open_code != 0, audit != 0))
}

/// Whether an interpreter has audit hooks of its own; `None` where there is not exactly one place that looks like it.
fn of_interpreter<M: Memory + ?Sized>(
    memory: &M,
    runtime: &Runtime,
    interpreter: Addr,
) -> Option<bool> {
    if runtime.free_threaded() {
        // Its counters move, and its allocator stands in between.
        return None;
    }
    let size = runtime
        .offsets()
        .get(F::interpreter_state_size)
        .min(SEARCHED_OF_INTERPRETER);
    let bytes = read(memory, interpreter, size)?;
    let mut places = (0..size).step_by(8).filter_map(|at| {
        let word = |offset: u64| word_in(&bytes, at.checked_add(offset)?);
        let head = interpreter.plus(at).plus(56).0;
        let sound = word(0)? == 1
            && word(8)? == 1
            && word(56)? == head
            && word(64)? == head
            && word(72)? <= 3
            && word(80)? != 0
            && is_pointer(word(80)?)
            && is_pointer(word(88)?);
        sound.then_some(word(88)? != 0)
    });
    let found = places.next()?;
    places.next().is_none().then_some(found)
}

/// Whether a word may be a pointer or null.
fn is_pointer(word: u64) -> bool {
    word == 0 || (4096..USER_SPACE).contains(&word)
}

fn read<M: Memory + ?Sized>(memory: &M, at: Addr, size: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(size).ok()?];
    memory.read(at, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands in 3.14.8, from `stoptheworld` on.
    fn runtime(open_code: u64, audit: u64) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        let mut words = vec![1 << 24, 0, 0];
        words.extend([2 | 1 << 32, 1 << 32, 1, 0, 0]);
        words.extend([open_code, 0, 0, audit, 0, 0]);
        bytes.extend(words.iter().flat_map(|word: &u64| word.to_le_bytes()));
        bytes
    }

    #[test]
    fn hooks_of_the_runtime_are_told_from_none() {
        let all = |bytes: &[u8]| -> Vec<(bool, bool)> {
            (0..bytes.len() as u64)
                .step_by(8)
                .filter_map(|at| hooks_at(bytes, at))
                .collect()
        };
        assert_eq!(all(&runtime(0, 0)), [(false, false)]);
        assert_eq!(all(&runtime(0x7f35_ae66_b000, 0)), [(true, false)]);
        assert_eq!(all(&runtime(0, 0x15ce_1590)), [(false, true)]);
        // No address, and a structure of one interpreter only.
        assert_eq!(all(&runtime(17, 0)), []);
        let mut bytes = runtime(0, 0);
        bytes[67] = 0;
        assert_eq!(all(&bytes), []);
        // A preconfiguration that was never read.
        let mut bytes = runtime(0, 0);
        bytes[88] = 0;
        assert_eq!(all(&bytes), []);
        assert_eq!(hooks_at(&runtime(0, 0), u64::MAX - 8), None);
    }
}
