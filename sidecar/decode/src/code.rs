//! Code objects: the names, the file and the lines of a function.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use crate::decoder::{Decoder, Fault, HashMap};
use crate::linetable;
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;
use crate::waiting::Waits;

/// Copies of the bytecode per thread, free-threaded builds only.
const MAX_COPIES: u64 = 1 << 16;

/// What is known of a code object.
#[derive(Debug)]
pub(crate) struct Code {
    pub(crate) address: Addr,
    /// `co_qualname`.
    pub(crate) function: Arc<str>,
    /// `co_filename`.
    pub(crate) file: Arc<str>,
    /// Whether it is `_Py_InitCleanup`, the code of a frame that the interpreter puts between a class's caller and its
    /// `__init__` once the call is specialized (`CALL_ALLOC_AND_ENTER_INIT`, Python/specialize.c). Nothing in the frame
    /// tells it from a function's; CPython's own traversals leave it out because it never reaches a traceable instruction.
    pub(crate) init_cleanup: bool,
    first_line: i64,
    lines: Vec<u8>,
    known_lines: RefCell<HashMap<u64, Option<i64>>>,
    /// The code unit asked for last and its line.
    last_line: Cell<Option<(u64, Option<i64>)>>,
    pub(crate) variables: OnceCell<Vec<Variable>>,
    pub(crate) variable_count: OnceCell<u64>,
    /// What a task waits for whose coroutine stands in it.
    pub(crate) waits: Waits,
}

/// A local variable of a code object.
#[derive(Debug)]
pub(crate) struct Variable {
    pub(crate) name: String,
    /// The `CO_FAST_*` bits.
    pub(crate) kind: u8,
}

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// The code object at this address, read once.
    pub(crate) fn code(&self, address: Addr) -> Result<Rc<Code>, Fault> {
        if let Some(known) = self.codes.borrow().get(&address) {
            return Ok(Rc::clone(known));
        }
        if self.type_of(address)?.name != "code" {
            return Err(Fault::Invalid("not a code object"));
        }
        let text = |field| {
            self.pointer(self.member(address, field))
                .and_then(|at| self.string_up_to(at, self.limits.name_bytes))
        };
        let function = text(F::code_object_qualname).or_else(|_| text(F::code_object_name))?;
        let file = text(F::code_object_filename).unwrap_or_default();
        let lines = self
            .pointer(self.member(address, F::code_object_linetable))
            .and_then(|at| self.bytes_object(at, self.limits.linetable_bytes))
            .unwrap_or_else(|fault| {
                self.problem(format_args!("lines of {function}: {fault}"));
                Vec::new()
            });
        // It is remembered: code objects may share a long table and are no longer than a few words.
        let text = function.len().saturating_add(file.len());
        self.take_result(
            size_of::<Code>()
                .saturating_add(text)
                .saturating_add(lines.len()),
        )?;
        let first_line = i64::from(self.i32(self.member(address, F::code_object_firstlineno))?);
        let [file_at, name_at, qualname_at] = [
            F::code_object_filename,
            F::code_object_name,
            F::code_object_qualname,
        ]
        .map(|field| self.pointer(self.member(address, field)).ok());
        let code = Rc::new(Code {
            waits: Waits::of(&function, &file),
            address,
            // One string is its file, its name and its qualified name, and it begins on no line.
            init_cleanup: first_line == 0 && file_at == name_at && name_at == qualname_at,
            function: function.into(),
            file: file.into(),
            first_line,
            lines,
            known_lines: RefCell::default(),
            last_line: Cell::new(None),
            variables: OnceCell::new(),
            variable_count: OnceCell::new(),
        });
        self.codes.borrow_mut().insert(address, Rc::clone(&code));
        Ok(code)
    }

    /// The line of the instruction at `instruction`.
    pub(crate) fn line(&self, code: &Code, instruction: Addr, copy: u64) -> Option<i64> {
        let start = if copy == 0 {
            self.member(code.address, F::code_object_co_code_adaptive)
        } else {
            self.bytecode_copy(code, copy)?
        };
        let unit = instruction.0.checked_sub(start.0)?.checked_div(2)?;
        if let Some((last, line)) = code.last_line.get()
            && last == unit
        {
            return line;
        }
        let known = code.known_lines.borrow().get(&unit).copied();
        let line = if let Some(line) = known {
            line
        } else {
            // Each instruction needs a walk of its own, however long the table is.
            if let Err(fault) = self.spend(code.lines.len()) {
                self.problem(format_args!("lines of {}: {fault}", code.function));
                return None;
            }
            let line = linetable::line(&code.lines, code.first_line, unit);
            code.known_lines.borrow_mut().insert(unit, line);
            line
        };
        code.last_line.set(Some((unit, line)));
        line
    }

    /// A thread's own copy of the bytecode, free-threaded builds only: `{count, copies[count]}`.
    fn bytecode_copy(&self, code: &Code, copy: u64) -> Option<Addr> {
        let copies = self
            .pointer(self.member(code.address, F::code_object_co_tlbc))
            .ok()?;
        let count = self.u64(copies).ok()?;
        if copy >= count.min(MAX_COPIES) {
            return None;
        }
        self.pointer(copies.plus(8).plus(copy.checked_mul(8)?)).ok()
    }
}
