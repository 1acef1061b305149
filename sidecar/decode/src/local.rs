//! Local variables of a frame, read without running anything in the target.

use std::ops::ControlFlow;

use sidewinder_model::{Local, Locals};

use crate::code::{Code, Variable};
use crate::decoder::{Decoder, Fault};
use crate::frame::RawFrame;
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;

mod container;
mod instance;
pub(crate) mod kind;
mod machinery;
mod number;
pub(crate) mod secret;
pub(crate) mod value;

use secret::is_secret_name;
use value::MASKED;

// The kinds of a variable, `CO_FAST_*` in Include/internal/pycore_code.h.
const HIDDEN: u8 = 0x10;
const CELL: u8 = 0x40;
const FREE: u8 = 0x80;

/// The type of a variable whose memory could not be read.
const UNREADABLE: &str = "unreadable";
/// The name under which names are shown that do not live in a dict.
const MAPPING: &str = "<locals>";

impl<M: Memory + ?Sized> Decoder<'_, M> {
    pub(crate) fn locals(&self, frame: &RawFrame, code: &Code, wanted: Locals) -> Vec<Local> {
        let mut locals = Vec::new();
        let variables = self.variables(code).unwrap_or_else(|fault| {
            self.problem(format_args!("variables of {}: {fault}", code.function));
            &[]
        });
        let values = self.member(frame.address, F::interpreter_frame_localsplus);
        for (n, variable) in variables.iter().enumerate() {
            let at = values.plus(u64::try_from(n).unwrap_or(u64::MAX).saturating_mul(8));
            match self.variable(variable, at, wanted) {
                Ok(Some(local)) => locals.push(local),
                Ok(None) => {}
                Err(fault) => {
                    self.problem(format_args!(
                        "{} of {}: {fault}",
                        variable.name, code.function
                    ));
                    if matches!(fault, Fault::Limit(_)) {
                        return locals;
                    }
                    locals.push(unreadable(variable.name.clone()));
                }
            }
        }
        if let Err(fault) = self.names(frame, wanted, &mut locals) {
            self.problem(format_args!("names of {}: {fault}", code.function));
        }
        locals
    }

    /// Names of modules, classes and executed code live in a dict: `f_locals`, two words before `instr_ptr`.
    fn names(
        &self,
        frame: &RawFrame,
        wanted: Locals,
        locals: &mut Vec<Local>,
    ) -> Result<(), Fault> {
        let at = self
            .offsets()
            .get(F::interpreter_frame_instr_ptr)
            .saturating_sub(16);
        let dict = self.pointer(frame.address.plus(at))?.untagged();
        if dict.is_null() {
            return Ok(());
        }
        if !self.type_of(dict)?.is_dict() {
            // `exec` takes any mapping, and only its own code knows what it holds.
            locals.push(self.local(MAPPING.to_owned(), dict, wanted)?);
            return Ok(());
        }
        let mut failed = None;
        self.dict_entries(dict, |key, value| {
            if locals.len() >= self.limits.locals {
                self.problem(format_args!(
                    "more than {} variables in one frame",
                    self.limits.locals
                ));
                return ControlFlow::Break(());
            }
            let Ok(name) = self.string(key) else {
                return ControlFlow::Continue(());
            };
            // The machinery of modules is of no interest.
            if is_dunder(&name) {
                return ControlFlow::Continue(());
            }
            match self.local(name.clone(), value, wanted) {
                Ok(local) => locals.push(local),
                Err(fault @ Fault::Limit(_)) => {
                    failed = Some(fault);
                    return ControlFlow::Break(());
                }
                Err(fault) => {
                    self.problem(format_args!("{name}: {fault}"));
                    locals.push(unreadable(name));
                }
            }
            ControlFlow::Continue(())
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// The variables of a code object in the order of a frame's slots, read once.
    pub(crate) fn variables<'c>(&self, code: &'c Code) -> Result<&'c [Variable], Fault> {
        if let Some(known) = code.variables.get() {
            return Ok(known);
        }
        let variables = self.read_variables(code)?;
        Ok(code.variables.get_or_init(|| variables))
    }

    fn read_variables(&self, code: &Code) -> Result<Vec<Variable>, Fault> {
        let names = self.pointer(self.member(code.address, F::code_object_localsplusnames))?;
        let kinds = self.pointer(self.member(code.address, F::code_object_localspluskinds))?;
        if !self.type_of(names)?.is_tuple() {
            return Err(Fault::Invalid("names are not a tuple"));
        }
        let count = self.size(names, F::tuple_object_ob_size)?;
        if count > self.limits.locals {
            self.problem(format_args!(
                "{} has more than {} variables",
                code.function, self.limits.locals
            ));
        }
        let kinds = self.bytes_object(kinds, self.limits.linetable_bytes)?;
        let items = self.member(names, F::tuple_object_ob_item);
        kinds
            .iter()
            .take(count.min(self.limits.locals))
            .enumerate()
            .map(|(n, kind)| {
                let at = items.plus(u64::try_from(n).unwrap_or(u64::MAX).saturating_mul(8));
                Ok(Variable {
                    name: self.string(self.pointer(at)?)?,
                    kind: *kind,
                })
            })
            .collect()
    }

    fn variable(
        &self,
        variable: &Variable,
        at: Addr,
        wanted: Locals,
    ) -> Result<Option<Local>, Fault> {
        // Cells in which a class body keeps what `super()` and annotations need.
        if variable.kind & CELL != 0 && is_dunder(&variable.name) {
            return Ok(None);
        }
        let reference = self.u64(at)?;
        // References carry their kind in the two low bits: 3 is a small int in place, a lone 1 is null.
        if reference & 3 == 3 {
            let number = (reference.cast_signed() >> 2).to_string();
            self.take_local(&variable.name, &number)?;
            return Ok(Some(Local {
                name: variable.name.clone(),
                type_name: "int".to_owned(),
                value: (wanted == Locals::Values).then(|| {
                    if is_secret_name(&variable.name) {
                        MASKED.to_owned()
                    } else {
                        number
                    }
                }),
            }));
        }
        let mut object = Addr(reference).untagged();
        if !object.is_null()
            && variable.kind & (CELL | FREE) != 0
            && self.type_of(object)?.name == "cell"
        {
            object = self.pointer(self.member(object, F::pyobject_size))?;
        }
        if object.is_null() {
            // Variables of comprehensions exist only while these run.
            if variable.kind & HIDDEN != 0 {
                return Ok(None);
            }
            self.take_local(&variable.name, "unbound")?;
            return Ok(Some(Local {
                name: variable.name.clone(),
                type_name: "unbound".to_owned(),
                value: None,
            }));
        }
        self.local(variable.name.clone(), object, wanted).map(Some)
    }

    /// Whether one more value may be shown.
    fn take_value(&self) -> bool {
        let values = self.values.get();
        if values >= self.limits.values {
            self.problem(format_args!(
                "more than {values} variables: of the others only the types are shown"
            ));
            return false;
        }
        self.values.set(values.saturating_add(1));
        true
    }

    /// Takes what a variable costs, with its name and another text.
    fn take_local(&self, name: &str, other: &str) -> Result<(), Fault> {
        let text = name.len().saturating_add(other.len());
        self.take_text(text)?;
        self.take_result(size_of::<Local>())
    }

    fn local(&self, name: String, object: Addr, wanted: Locals) -> Result<Local, Fault> {
        let type_name = self.full_name(&*self.type_of(object)?);
        self.take_local(&name, &type_name)?;
        let value = match wanted {
            Locals::Values if self.take_value() => Some(self.value(&name, object)?),
            Locals::Values | Locals::None | Locals::Types => None,
        };
        Ok(Local {
            name,
            type_name,
            value,
        })
    }
}

fn unreadable(name: String) -> Local {
    Local {
        name,
        type_name: UNREADABLE.to_owned(),
        value: None,
    }
}

fn is_dunder(name: &str) -> bool {
    name.starts_with("__") && name.ends_with("__")
}
