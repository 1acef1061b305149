//! CPython's own table of its structures' offsets (`_Py_DebugOffsets`), checked before it is believed.
//!
//! The table is the first member of `_PyRuntime`: 64-bit words whose order is fixed within a minor version. A new minor
//! version is a new [`Version`] here, nothing else.
//! <https://github.com/python/cpython/blob/3.14/Include/internal/pycore_debug_offsets.h>

use crate::memory::{Addr, Memory, ReadError};

/// The first eight bytes of the table, `xdebugpy`.
pub(crate) const COOKIE: [u8; 8] = *b"xdebugpy";

/// No structure of the interpreter is larger; a table that says so is damaged.
const MAX_STRUCTURE: u64 = 16 << 20;

macro_rules! fields {
    ($($name:ident $(in $size:ident + $width:literal)?,)*) => {
        /// A word of the table, named as in CPython's header: group, then member.
        #[expect(non_camel_case_types, missing_docs, reason = "the names are those of CPython's header")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Field { $($name,)* }

        const FIELDS: usize = [$(Field::$name,)*].len();

        /// Members with the structure that must contain them and the bytes read there.
        const CONTAINED: &[(Field, Field, u64)] = &[$($((Field::$name, Field::$size, $width),)?)*];
    };
}

fields! {
    cookie,
    version,
    free_threaded,
    runtime_state_size,
    runtime_state_finalizing in runtime_state_size + 8,
    runtime_state_interpreters_head in runtime_state_size + 8,
    interpreter_state_size,
    interpreter_state_id in interpreter_state_size + 8,
    interpreter_state_next in interpreter_state_size + 8,
    interpreter_state_threads_head in interpreter_state_size + 8,
    interpreter_state_threads_main in interpreter_state_size + 8,
    interpreter_state_gc in interpreter_state_size + 0,
    interpreter_state_imports_modules in interpreter_state_size + 8,
    interpreter_state_sysdict in interpreter_state_size + 8,
    interpreter_state_builtins in interpreter_state_size + 8,
    interpreter_state_ceval_gil in interpreter_state_size + 8,
    interpreter_state_gil_runtime_state in interpreter_state_size + 0,
    interpreter_state_gil_runtime_state_enabled in interpreter_state_size + 0,
    interpreter_state_gil_runtime_state_locked in interpreter_state_size + 4,
    interpreter_state_gil_runtime_state_holder in interpreter_state_size + 8,
    interpreter_state_code_object_generation in interpreter_state_size + 8,
    interpreter_state_tlbc_generation in interpreter_state_size + 4,
    thread_state_size,
    thread_state_prev in thread_state_size + 8,
    thread_state_next in thread_state_size + 8,
    thread_state_interp in thread_state_size + 8,
    thread_state_current_frame in thread_state_size + 8,
    thread_state_base_frame in thread_state_size + 8,
    thread_state_last_profiled_frame in thread_state_size + 8,
    thread_state_last_profiled_frame_seq in thread_state_size + 8,
    thread_state_thread_id in thread_state_size + 8,
    thread_state_native_thread_id in thread_state_size + 8,
    thread_state_datastack_chunk in thread_state_size + 8,
    thread_state_status in thread_state_size + 4,
    thread_state_holds_gil in thread_state_size + 4,
    thread_state_gil_requested in thread_state_size + 4,
    thread_state_current_exception in thread_state_size + 8,
    thread_state_exc_state in thread_state_size + 8,
    err_stackitem_exc_value,
    interpreter_frame_size,
    interpreter_frame_previous in interpreter_frame_size + 8,
    interpreter_frame_executable in interpreter_frame_size + 8,
    interpreter_frame_instr_ptr in interpreter_frame_size + 8,
    interpreter_frame_localsplus in interpreter_frame_size + 0,
    interpreter_frame_owner in interpreter_frame_size + 1,
    interpreter_frame_stackpointer in interpreter_frame_size + 8,
    interpreter_frame_tlbc_index in interpreter_frame_size + 4,
    code_object_size,
    code_object_filename in code_object_size + 8,
    code_object_name in code_object_size + 8,
    code_object_qualname in code_object_size + 8,
    code_object_linetable in code_object_size + 8,
    code_object_firstlineno in code_object_size + 4,
    code_object_argcount in code_object_size + 4,
    code_object_localsplusnames in code_object_size + 8,
    code_object_localspluskinds in code_object_size + 8,
    code_object_co_code_adaptive in code_object_size + 0,
    code_object_co_tlbc in code_object_size + 8,
    pyobject_size,
    pyobject_ob_type in pyobject_size + 8,
    type_object_size,
    type_object_tp_name in type_object_size + 8,
    type_object_tp_repr in type_object_size + 8,
    type_object_tp_flags in type_object_size + 8,
    type_object_tp_basicsize in type_object_size + 8,
    type_object_tp_dictoffset in type_object_size + 8,
    heap_type_object_size,
    heap_type_object_ht_cached_keys in heap_type_object_size + 8,
    tuple_object_size,
    tuple_object_ob_item in tuple_object_size + 8,
    tuple_object_ob_size,
    list_object_size,
    list_object_ob_item in list_object_size + 8,
    list_object_ob_size,
    set_object_size,
    set_object_used in set_object_size + 8,
    set_object_table in set_object_size + 8,
    set_object_mask in set_object_size + 8,
    dict_object_size,
    dict_object_ma_keys in dict_object_size + 8,
    dict_object_ma_values in dict_object_size + 8,
    float_object_size,
    float_object_ob_fval in float_object_size + 8,
    long_object_size,
    long_object_lv_tag in long_object_size + 8,
    long_object_ob_digit in long_object_size + 4,
    bytes_object_size,
    bytes_object_ob_size,
    bytes_object_ob_sval in bytes_object_size + 1,
    unicode_object_size,
    unicode_object_state in unicode_object_size + 4,
    unicode_object_length in unicode_object_size + 8,
    unicode_object_asciiobject_size,
    unicode_object_compactunicodeobject_size,
    gc_size,
    gc_collecting in gc_size + 4,
    gc_frame in gc_size + 8,
    gc_generation_stats_size,
    gc_generation_stats in gc_size + 0,
    gen_object_size,
    gen_object_gi_name in gen_object_size + 8,
    gen_object_gi_iframe in gen_object_size + 0,
    gen_object_gi_frame_state in gen_object_size + 1,
    llist_node_next,
    llist_node_prev,
    debugger_support_eval_breaker in thread_state_size + 8,
    debugger_support_remote_debugger_support in thread_state_size + 0,
    debugger_support_remote_debugging_enabled in interpreter_state_size + 4,
    debugger_support_debugger_pending_call,
    debugger_support_debugger_script_path,
    debugger_support_debugger_script_path_size,
}

/// The members of `_asyncio`'s own table, the same in 3.14 and 3.15.
pub(crate) const ASYNCIO_WORDS: usize = 13;

/// What one minor version of CPython looks like beyond what its table says.
#[derive(Debug)]
pub(crate) struct Version {
    /// The minor version.
    pub(crate) minor: u32,
    /// The order of the table's words.
    words: &'static [Field],
    /// The values of `gi_frame_state`.
    pub(crate) generator: GeneratorStates,
    /// How far below the stack pointer the awaited object of a suspended frame lies, in bytes.
    pub(crate) awaited_below_stackpointer: u64,
    /// How far before `thread_state.thread_id` the thread's `current_exception` lies, in bytes, for tables that have no
    /// word for it. In all versions `exc_info`, the innermost handled exception, follows it.
    pub(crate) current_exception_before_thread_id: u64,
}

/// The values of `gi_frame_state`.
#[derive(Debug)]
pub(crate) struct GeneratorStates {
    pub(crate) created: i8,
    pub(crate) suspended: i8,
    pub(crate) awaiting: [i8; 2],
    pub(crate) executing: i8,
}

use Field as F;

/// Every version that can be decoded.
pub(crate) const VERSIONS: &[Version] = &[
    Version {
        minor: 14,
        words: &[
            F::cookie,
            F::version,
            F::free_threaded,
            F::runtime_state_size,
            F::runtime_state_finalizing,
            F::runtime_state_interpreters_head,
            F::interpreter_state_size,
            F::interpreter_state_id,
            F::interpreter_state_next,
            F::interpreter_state_threads_head,
            F::interpreter_state_threads_main,
            F::interpreter_state_gc,
            F::interpreter_state_imports_modules,
            F::interpreter_state_sysdict,
            F::interpreter_state_builtins,
            F::interpreter_state_ceval_gil,
            F::interpreter_state_gil_runtime_state,
            F::interpreter_state_gil_runtime_state_enabled,
            F::interpreter_state_gil_runtime_state_locked,
            F::interpreter_state_gil_runtime_state_holder,
            F::interpreter_state_code_object_generation,
            F::interpreter_state_tlbc_generation,
            F::thread_state_size,
            F::thread_state_prev,
            F::thread_state_next,
            F::thread_state_interp,
            F::thread_state_current_frame,
            F::thread_state_thread_id,
            F::thread_state_native_thread_id,
            F::thread_state_datastack_chunk,
            F::thread_state_status,
            F::interpreter_frame_size,
            F::interpreter_frame_previous,
            F::interpreter_frame_executable,
            F::interpreter_frame_instr_ptr,
            F::interpreter_frame_localsplus,
            F::interpreter_frame_owner,
            F::interpreter_frame_stackpointer,
            F::interpreter_frame_tlbc_index,
            F::code_object_size,
            F::code_object_filename,
            F::code_object_name,
            F::code_object_qualname,
            F::code_object_linetable,
            F::code_object_firstlineno,
            F::code_object_argcount,
            F::code_object_localsplusnames,
            F::code_object_localspluskinds,
            F::code_object_co_code_adaptive,
            F::code_object_co_tlbc,
            F::pyobject_size,
            F::pyobject_ob_type,
            F::type_object_size,
            F::type_object_tp_name,
            F::type_object_tp_repr,
            F::type_object_tp_flags,
            F::tuple_object_size,
            F::tuple_object_ob_item,
            F::tuple_object_ob_size,
            F::list_object_size,
            F::list_object_ob_item,
            F::list_object_ob_size,
            F::set_object_size,
            F::set_object_used,
            F::set_object_table,
            F::set_object_mask,
            F::dict_object_size,
            F::dict_object_ma_keys,
            F::dict_object_ma_values,
            F::float_object_size,
            F::float_object_ob_fval,
            F::long_object_size,
            F::long_object_lv_tag,
            F::long_object_ob_digit,
            F::bytes_object_size,
            F::bytes_object_ob_size,
            F::bytes_object_ob_sval,
            F::unicode_object_size,
            F::unicode_object_state,
            F::unicode_object_length,
            F::unicode_object_asciiobject_size,
            F::gc_size,
            F::gc_collecting,
            F::gen_object_size,
            F::gen_object_gi_name,
            F::gen_object_gi_iframe,
            F::gen_object_gi_frame_state,
            F::llist_node_next,
            F::llist_node_prev,
            F::debugger_support_eval_breaker,
            F::debugger_support_remote_debugger_support,
            F::debugger_support_remote_debugging_enabled,
            F::debugger_support_debugger_pending_call,
            F::debugger_support_debugger_script_path,
            F::debugger_support_debugger_script_path_size,
        ],
        generator: GeneratorStates {
            created: -3,
            suspended: -2,
            awaiting: [-1, -1],
            executing: 0,
        },
        awaited_below_stackpointer: 8,
        current_exception_before_thread_id: 40,
    },
    // 3.15 keeps one more word above the awaited object.
    Version {
        minor: 15,
        words: &[
            F::cookie,
            F::version,
            F::free_threaded,
            F::runtime_state_size,
            F::runtime_state_finalizing,
            F::runtime_state_interpreters_head,
            F::interpreter_state_size,
            F::interpreter_state_id,
            F::interpreter_state_next,
            F::interpreter_state_threads_head,
            F::interpreter_state_threads_main,
            F::interpreter_state_gc,
            F::interpreter_state_imports_modules,
            F::interpreter_state_sysdict,
            F::interpreter_state_builtins,
            F::interpreter_state_ceval_gil,
            F::interpreter_state_gil_runtime_state,
            F::interpreter_state_gil_runtime_state_enabled,
            F::interpreter_state_gil_runtime_state_locked,
            F::interpreter_state_gil_runtime_state_holder,
            F::interpreter_state_code_object_generation,
            F::interpreter_state_tlbc_generation,
            F::thread_state_size,
            F::thread_state_prev,
            F::thread_state_next,
            F::thread_state_interp,
            F::thread_state_current_frame,
            F::thread_state_base_frame,
            F::thread_state_last_profiled_frame,
            F::thread_state_last_profiled_frame_seq,
            F::thread_state_thread_id,
            F::thread_state_native_thread_id,
            F::thread_state_datastack_chunk,
            F::thread_state_status,
            F::thread_state_holds_gil,
            F::thread_state_gil_requested,
            F::thread_state_current_exception,
            F::thread_state_exc_state,
            F::err_stackitem_exc_value,
            F::interpreter_frame_size,
            F::interpreter_frame_previous,
            F::interpreter_frame_executable,
            F::interpreter_frame_instr_ptr,
            F::interpreter_frame_localsplus,
            F::interpreter_frame_owner,
            F::interpreter_frame_stackpointer,
            F::interpreter_frame_tlbc_index,
            F::code_object_size,
            F::code_object_filename,
            F::code_object_name,
            F::code_object_qualname,
            F::code_object_linetable,
            F::code_object_firstlineno,
            F::code_object_argcount,
            F::code_object_localsplusnames,
            F::code_object_localspluskinds,
            F::code_object_co_code_adaptive,
            F::code_object_co_tlbc,
            F::pyobject_size,
            F::pyobject_ob_type,
            F::type_object_size,
            F::type_object_tp_name,
            F::type_object_tp_repr,
            F::type_object_tp_flags,
            F::type_object_tp_basicsize,
            F::type_object_tp_dictoffset,
            F::heap_type_object_size,
            F::heap_type_object_ht_cached_keys,
            F::tuple_object_size,
            F::tuple_object_ob_item,
            F::tuple_object_ob_size,
            F::list_object_size,
            F::list_object_ob_item,
            F::list_object_ob_size,
            F::set_object_size,
            F::set_object_used,
            F::set_object_table,
            F::set_object_mask,
            F::dict_object_size,
            F::dict_object_ma_keys,
            F::dict_object_ma_values,
            F::float_object_size,
            F::float_object_ob_fval,
            F::long_object_size,
            F::long_object_lv_tag,
            F::long_object_ob_digit,
            F::bytes_object_size,
            F::bytes_object_ob_size,
            F::bytes_object_ob_sval,
            F::unicode_object_size,
            F::unicode_object_state,
            F::unicode_object_length,
            F::unicode_object_asciiobject_size,
            F::unicode_object_compactunicodeobject_size,
            F::gc_size,
            F::gc_collecting,
            F::gc_frame,
            F::gc_generation_stats_size,
            F::gc_generation_stats,
            F::gen_object_size,
            F::gen_object_gi_name,
            F::gen_object_gi_iframe,
            F::gen_object_gi_frame_state,
            F::llist_node_next,
            F::llist_node_prev,
            F::debugger_support_eval_breaker,
            F::debugger_support_remote_debugger_support,
            F::debugger_support_remote_debugging_enabled,
            F::debugger_support_debugger_pending_call,
            F::debugger_support_debugger_script_path,
            F::debugger_support_debugger_script_path_size,
        ],
        generator: GeneratorStates {
            created: 0,
            suspended: 1,
            awaiting: [2, 3],
            executing: 4,
        },
        awaited_below_stackpointer: 16,
        current_exception_before_thread_id: 40,
    },
];

impl Version {
    /// The version with this `3.minor`, if it is known.
    pub(crate) fn known(minor: u32) -> Option<&'static Version> {
        VERSIONS.iter().find(|v| v.minor == minor)
    }
}

/// Where the members of the interpreter's structures lie, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offsets {
    values: [u64; FIELDS],
    present: [bool; FIELDS],
}

/// Why a table was not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OffsetsError {
    /// The table could not be read.
    #[error("cannot read the debug offsets")]
    Read(#[from] ReadError),
    /// A word contradicts another.
    #[error("debug offset {field:?} is {value:#x}, outside its structure of {size:#x} bytes")]
    OutOfBounds {
        /// The word.
        field: Field,
        /// What it says.
        value: u64,
        /// The structure's size as the table says.
        size: u64,
    },
    /// A structure has an impossible size.
    #[error("debug offset {field:?} says a structure has {value} bytes")]
    Size {
        /// The word.
        field: Field,
        /// What it says.
        value: u64,
    },
}

impl Offsets {
    /// Reads and checks the table at `at`.
    pub(crate) fn read<M: Memory + ?Sized>(
        memory: &M,
        at: Addr,
        version: &Version,
    ) -> Result<Self, OffsetsError> {
        let mut bytes = vec![0; version.words.len().saturating_mul(8)];
        memory.read(at, &mut bytes)?;
        Self::parse(&bytes, version)
    }

    fn parse(bytes: &[u8], version: &Version) -> Result<Self, OffsetsError> {
        let mut offsets = Self {
            values: [0; FIELDS],
            present: [false; FIELDS],
        };
        let (words, _) = bytes.as_chunks::<8>();
        for (field, word) in version.words.iter().zip(words) {
            let slot = *field as usize;
            if let (Some(value), Some(present)) =
                (offsets.values.get_mut(slot), offsets.present.get_mut(slot))
            {
                *value = u64::from_le_bytes(*word);
                *present = true;
            }
        }
        offsets.check()?;
        Ok(offsets)
    }

    fn check(&self) -> Result<(), OffsetsError> {
        for &(field, size_field, width) in CONTAINED {
            let Some(value) = self.find(field) else {
                continue;
            };
            let size = self.get(size_field);
            if size == 0 || size > MAX_STRUCTURE {
                return Err(OffsetsError::Size {
                    field: size_field,
                    value: size,
                });
            }
            // Generator frames and inline arrays continue past the structure's fixed part; their start must lie in it.
            if value.checked_add(width).is_none_or(|end| end > size) {
                return Err(OffsetsError::OutOfBounds { field, value, size });
            }
        }
        for field in [
            F::llist_node_next,
            F::llist_node_prev,
            F::debugger_support_debugger_pending_call,
            F::debugger_support_debugger_script_path,
        ] {
            let value = self.get(field);
            if value > 64 {
                return Err(OffsetsError::OutOfBounds {
                    field,
                    value,
                    size: 64,
                });
            }
        }
        let path = self.get(F::debugger_support_debugger_script_path_size);
        if path > 64 << 10 {
            return Err(OffsetsError::Size {
                field: F::debugger_support_debugger_script_path_size,
                value: path,
            });
        }
        Ok(())
    }

    /// The word's value, 0 where this version has no such word.
    pub fn get(&self, field: Field) -> u64 {
        self.values.get(field as usize).copied().unwrap_or(0)
    }

    /// The word's value where this version has it.
    pub fn find(&self, field: Field) -> Option<u64> {
        self.present
            .get(field as usize)
            .copied()
            .unwrap_or(false)
            .then(|| self.get(field))
    }
}

/// Where asyncio keeps its tasks: the `AsyncioDebug` table of `_asyncio`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AsyncioOffsets {
    pub(crate) task_size: u64,
    pub(crate) task_name: u64,
    pub(crate) task_awaited_by: u64,
    pub(crate) task_is_task: u64,
    pub(crate) task_awaited_by_is_set: u64,
    pub(crate) task_coro: u64,
    pub(crate) task_node: u64,
    pub(crate) interpreter_tasks_head: u64,
    pub(crate) running_loop: u64,
    pub(crate) running_task: u64,
    pub(crate) thread_tasks_head: u64,
}

impl AsyncioOffsets {
    /// Bytes of the table.
    pub(crate) const BYTES: usize = ASYNCIO_WORDS * 8;
    /// How far into the table the size of the interpreter state stands, which is what a search looks for.
    pub(crate) const INTERPRETER_SIZE_AT: u64 = 56;

    /// Believes the table only where it agrees with the interpreter's: it has neither cookie nor version of its own.
    pub(crate) fn parse(bytes: &[u8; Self::BYTES], offsets: &Offsets) -> Option<Self> {
        let (words, _) = bytes.as_chunks::<8>();
        let word = |n: usize| words.get(n).map(|w| u64::from_le_bytes(*w));
        let (task_size, interpreter_size, thread_size) = (word(0)?, word(7)?, word(9)?);
        if interpreter_size != offsets.get(F::interpreter_state_size)
            || !(100..=4096).contains(&task_size)
            || thread_size > MAX_STRUCTURE
        {
            return None;
        }
        let within = |n: usize, width: u64, size: u64| {
            word(n).filter(|v| v.checked_add(width).is_some_and(|end| end <= size))
        };
        Some(Self {
            task_size,
            task_name: within(1, 8, task_size)?,
            task_awaited_by: within(2, 8, task_size)?,
            task_is_task: within(3, 1, task_size)?,
            task_awaited_by_is_set: within(4, 1, task_size)?,
            // The future a task waits for stands in the word before its coroutine.
            task_coro: within(5, 8, task_size).filter(|v| *v >= 8)?,
            task_node: within(6, 16, task_size)?,
            interpreter_tasks_head: within(8, 16, interpreter_size)?,
            running_loop: within(10, 8, thread_size)?,
            running_task: within(11, 8, thread_size)?,
            thread_tasks_head: within(12, 16, thread_size)?,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The words of a live 3.14.8, GIL build, x86-64.
    pub(crate) const WORDS_3_14_8: [u64; 95] = [
        u64::from_le_bytes(COOKIE),
        0x030e_08f0,
        0x0,
        0x4d4c8,
        0x310,
        0x328,
        0x37248,
        0x1c70,
        0x1c68,
        0x1cb0,
        0x1cc0,
        0x1cf0,
        0x1e08,
        0x1df8,
        0x1e00,
        0x10,
        0x1e68,
        0x0,
        0x1e78,
        0x1e70,
        0x1f38,
        0x0,
        0x340,
        0x0,
        0x8,
        0x10,
        0x48,
        0x98,
        0xa0,
        0xe8,
        0x20,
        0x58,
        0x8,
        0x0,
        0x38,
        0x50,
        0x4a,
        0x40,
        0x0,
        0xd8,
        0x70,
        0x78,
        0x80,
        0x88,
        0x44,
        0x34,
        0x60,
        0x68,
        0xd0,
        0x0,
        0x10,
        0x8,
        0x1a0,
        0x18,
        0x58,
        0xa8,
        0x28,
        0x20,
        0x10,
        0x28,
        0x18,
        0x10,
        0xc8,
        0x18,
        0x28,
        0x20,
        0x30,
        0x20,
        0x28,
        0x18,
        0x10,
        0x20,
        0x10,
        0x18,
        0x28,
        0x10,
        0x20,
        0x40,
        0x20,
        0x10,
        0x28,
        0x108,
        0xc0,
        0xa0,
        0x18,
        0x48,
        0x43,
        0x0,
        0x8,
        0x18,
        0x130,
        0x1f8c,
        0x0,
        0x4,
        0x200,
    ];
    /// The words of a live 3.15.2, GIL build, x86-64.
    const WORDS_3_15_2: [u64; 111] = [
        u64::from_le_bytes(COOKIE),
        0x030f_02f0,
        0x0,
        0x549c0,
        0x390,
        0x3a8,
        0x373b8,
        0x1c68,
        0x1c60,
        0x1ca8,
        0x1cb8,
        0x1ce8,
        0x1da8,
        0x1d98,
        0x1da0,
        0x10,
        0x1e38,
        0x0,
        0x1e48,
        0x1e40,
        0x1f08,
        0x0,
        0x378,
        0x0,
        0x8,
        0x10,
        0x48,
        0x50,
        0x58,
        0x60,
        0xb0,
        0xb8,
        0x100,
        0x20,
        0x24,
        0x28,
        0x88,
        0x120,
        0x0,
        0x58,
        0x8,
        0x0,
        0x38,
        0x50,
        0x4a,
        0x40,
        0x0,
        0xd8,
        0x70,
        0x78,
        0x80,
        0x88,
        0x44,
        0x34,
        0x60,
        0x68,
        0xd0,
        0x0,
        0x10,
        0x8,
        0x1a8,
        0x18,
        0x58,
        0xa8,
        0x20,
        0x120,
        0x3b0,
        0x378,
        0x28,
        0x20,
        0x10,
        0x28,
        0x18,
        0x10,
        0xc8,
        0x18,
        0x28,
        0x20,
        0x30,
        0x20,
        0x28,
        0x18,
        0x10,
        0x20,
        0x10,
        0x18,
        0x28,
        0x10,
        0x20,
        0x40,
        0x20,
        0x10,
        0x28,
        0x38,
        0xb0,
        0x70,
        0x78,
        0x460,
        0x68,
        0xa0,
        0x18,
        0x48,
        0x43,
        0x0,
        0x8,
        0x18,
        0x158,
        0x1f5c,
        0x0,
        0x4,
        0x200,
    ];

    pub(crate) fn bytes(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    #[test]
    fn tables_of_released_versions_are_believed() {
        let v14 = Offsets::parse(&bytes(&WORDS_3_14_8), Version::known(14).unwrap()).unwrap();
        assert_eq!(v14.get(F::code_object_linetable), 136);
        assert_eq!(v14.get(F::debugger_support_debugger_script_path_size), 512);
        assert_eq!(v14.find(F::thread_state_base_frame), None);
        let v15 = Offsets::parse(&bytes(&WORDS_3_15_2), Version::known(15).unwrap()).unwrap();
        assert_eq!(v15.get(F::thread_state_native_thread_id), 184);
        assert_eq!(v15.find(F::thread_state_base_frame), Some(80));
    }

    #[test]
    fn an_offset_outside_its_structure_is_refused() {
        let version = Version::known(14).unwrap();
        for &(field, size, _) in CONTAINED {
            let Some(slot) = version.words.iter().position(|f| *f == field) else {
                continue;
            };
            let mut words = WORDS_3_14_8;
            words[slot] = u64::MAX - 3;
            let error = Offsets::parse(&bytes(&words), version).unwrap_err();
            assert!(
                matches!(error, OffsetsError::OutOfBounds { field: f, .. } if f == field),
                "{field:?} in {size:?}: {error}"
            );
        }
    }

    #[test]
    fn an_impossible_size_is_refused() {
        let mut words = WORDS_3_14_8;
        words[39] = 1 << 40;
        assert!(matches!(
            Offsets::parse(&bytes(&words), Version::known(14).unwrap()),
            Err(OffsetsError::Size { .. })
        ));
    }
}
