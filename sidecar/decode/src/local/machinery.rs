//! Functions, classes, modules, coroutines, locks and futures: what they are called and how they stand.

use std::ops::ControlFlow;

use crate::decoder::{Decoder, Fault};
use crate::local::kind::Family;
use crate::local::value::Depth;
use crate::memory::{Addr, Memory};
use crate::object::Type;
use crate::offsets::Field as F;

/// Bytes of a built-in function's name.
const MAX_NAME: usize = 128;
/// Names of a module that are looked through for its own.
const MAX_SCANNED: usize = 16;

impl<M: Memory + ?Sized> Decoder<'_, M> {
    pub(crate) fn machinery(
        &self,
        object: Addr,
        kind: &Type,
        family: Family,
        depth: Depth,
    ) -> Result<String, Fault> {
        // The first member after an object's head.
        let head = self.member(object, F::pyobject_size);
        Ok(match family {
            Family::Class => self.class(object)?,
            Family::Function => {
                // Globals, builtins, name, qualified name: Include/cpython/funcobject.h.
                let name = self.name_of(self.pointer(head.plus(24))?)?;
                format!("<function {name} at {object}>")
            }
            Family::BuiltinFunction => self.built_in_function(head)?,
            Family::Method => {
                let function = self.pointer(head)?;
                let receiver = self.pointer(head.plus(8))?;
                let function = match self.type_of(function)?.name.as_str() {
                    "function" => self
                        .name_of(self.pointer(self.member(function, F::pyobject_size).plus(24))?)?,
                    _ => "?".to_owned(),
                };
                format!("<bound method {function} of {}>", self.whose(receiver)?)
            }
            Family::Module => {
                let dict = self.pointer(head)?;
                match self.module_name(dict)? {
                    Some(name) => format!("<module '{}'>", self.name_of(name)?),
                    None => self.by_address(object, kind),
                }
            }
            Family::Code => {
                let name = self.pointer(self.member(object, F::code_object_qualname))?;
                format!("<code object {} at {object}>", self.name_of(name)?)
            }
            Family::Generator => {
                // `gi_qualname` follows `gi_name`.
                let name = self.pointer(self.member(object, F::gen_object_gi_name).plus(8))?;
                format!("<{} object {} at {object}>", kind.name, self.name_of(name)?)
            }
            // A `PyMutex` is a byte whose lowest bit says that it is locked, since 3.14.
            Family::Lock => format!("<{} {} object at {object}>", self.lock(head)?, kind.name),
            Family::RLock => {
                // The mutex, the thread that has it, and how many times more than once: `_PyRecursiveMutex`.
                let locked = self.lock(head)?;
                let (owner, count) = if locked == "locked" {
                    let level = self.u64(head.plus(16))?;
                    (self.u64(head.plus(8))?, level.saturating_add(1))
                } else {
                    (0, 0)
                };
                format!(
                    "<{locked} {} object owner={owner} count={count} at {object}>",
                    kind.name
                )
            }
            Family::Future => self.future(object, kind, depth)?,
            _ => self.by_address(object, kind),
        })
    }

    /// `__name__`, which is the first that a module's dict gets.
    fn module_name(&self, dict: Addr) -> Result<Option<Addr>, Fault> {
        if !self.type_of(dict)?.is_dict() {
            return Err(Fault::Invalid("not a dict"));
        }
        let mut name = None;
        self.first_dict_entries(dict, MAX_SCANNED, |key, value| {
            if self.string_is(key, "__name__") {
                name = Some(value);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(name)
    }

    fn lock(&self, mutex: Addr) -> Result<&'static str, Fault> {
        Ok(if self.u8(mutex)? & 1 == 1 {
            "locked"
        } else {
            "unlocked"
        })
    }

    fn class(&self, object: Addr) -> Result<String, Fault> {
        Ok(format!(
            "<class '{}'>",
            self.full_name(&*self.type_at(object)?)
        ))
    }

    fn whose(&self, object: Addr) -> Result<String, Fault> {
        let kind = self.type_of(object)?;
        Ok(match self.lineage(&kind)?.family {
            Family::Class => self.class(object)?,
            _ => self.by_address(object, &kind),
        })
    }

    /// `PyCFunctionObject`: its definition, which begins with its name, and its `self`.
    fn built_in_function(&self, head: Addr) -> Result<String, Fault> {
        let name = self.c_string(self.pointer(self.pointer(head)?)?, MAX_NAME)?;
        let receiver = self.pointer(head.plus(8))?;
        if receiver.is_null() {
            return Ok(format!("<built-in function {name}>"));
        }
        let kind = self.type_of(receiver)?;
        if self.lineage(&kind)?.family == Family::Module {
            return Ok(format!("<built-in function {name}>"));
        }
        Ok(format!(
            "<built-in method {name} of {} object at {receiver}>",
            self.full_name(&kind)
        ))
    }

    /// A future's state stands right before the flag that tells tasks from futures, a task's name and coroutine where
    /// asyncio's own table says.
    fn future(&self, object: Addr, kind: &Type, depth: Depth) -> Result<String, Fault> {
        let Some(offsets) = self.runtime.asyncio() else {
            return Ok(self.by_address(object, kind));
        };
        let state = self.i32(object.plus(offsets.task_is_task.saturating_sub(4)))?;
        let state = match state {
            0 => "pending",
            1 => "cancelled",
            _ => "finished",
        };
        let class = kind.short_name();
        if self.u8(object.plus(offsets.task_is_task))? != 1 {
            return Ok(format!("<{class} {state} at {object}>"));
        }
        let name = self.pointer(object.plus(offsets.task_name))?;
        let name = if self.type_of(name)?.is_int() {
            format!("'Task-{}'", self.int_up_to(name, 4)?)
        } else {
            self.item(name, depth)?
        };
        let coroutine = self.pointer(object.plus(offsets.task_coro))?;
        let coroutine = if coroutine.is_null() {
            "None".to_owned()
        } else {
            let kind = self.type_of(coroutine)?;
            match self.lineage(&kind)?.family {
                Family::Generator => {
                    let at = self.member(coroutine, F::gen_object_gi_name).plus(8);
                    format!("<{}()>", self.name_of(self.pointer(at)?)?)
                }
                _ => self.by_address(coroutine, &kind),
            }
        };
        Ok(format!(
            "<{class} {state} name={name} coro={coroutine} at {object}>"
        ))
    }
}
