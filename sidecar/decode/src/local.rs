//! Local variables of a frame, read without running anything in the target.

use std::ops::ControlFlow;

use sidewinder_model::{Local, Locals};

use crate::code::{Code, Variable};
use crate::decoder::{Decoder, Fault};
use crate::frame::RawFrame;
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;
use crate::text;

// The kinds of a variable, `CO_FAST_*` in Include/internal/pycore_code.h.
const HIDDEN: u8 = 0x10;
const CELL: u8 = 0x40;
const FREE: u8 = 0x80;

/// What stands for a value whose name says that it is a secret.
const MASKED: &str = "<masked>";

/// Names of secrets: a part of the variable's name, split at underscores.
const SECRET_PARTS: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "secrets",
    "token",
    "tokens",
    "key",
    "keys",
    "apikey",
    "credential",
    "credentials",
    "authorization",
    "auth",
    "cookie",
    "cookies",
    "jwt",
    "bearer",
    "otp",
    "pin",
];

/// Text that makes a name a secret's wherever it stands in it.
const SECRET_WORDS: &[&str] = &[
    "password",
    "passwd",
    "secret",
    "token",
    "apikey",
    "authorization",
    "credential",
];

/// Whether a variable's name says that its value is a secret.
pub(crate) fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| name.contains(word))
        || name.split('_').any(|part| SECRET_PARTS.contains(&part))
}

impl<M: Memory + ?Sized> Decoder<'_, M> {
    pub(crate) fn locals(&self, frame: &RawFrame, code: &Code, wanted: Locals) -> Vec<Local> {
        let mut locals = Vec::new();
        let variables = code.variables.get_or_init(|| {
            self.variables(code).unwrap_or_else(|fault| {
                self.problem(format_args!("variables of {}: {fault}", code.function));
                Vec::new()
            })
        });
        let values = self.member(frame.address, F::interpreter_frame_localsplus);
        for (n, variable) in variables.iter().enumerate() {
            let at = values.plus(u64::try_from(n).unwrap_or(u64::MAX).saturating_mul(8));
            match self.variable(variable, at, wanted) {
                Ok(Some(local)) => locals.push(local),
                Ok(None) => {}
                Err(fault) => self.problem(format_args!(
                    "{} of {}: {fault}",
                    variable.name, code.function
                )),
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
        if dict.is_null() || !self.type_of(dict)?.is_dict() {
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
            match self.string(key).and_then(|name| {
                // The machinery of modules is of no interest.
                if name.starts_with("__") && name.ends_with("__") {
                    return Ok(None);
                }
                self.local(name, value, wanted).map(Some)
            }) {
                Ok(local) => locals.extend(local),
                Err(fault @ Fault::Limit(_)) => {
                    failed = Some(fault);
                    return ControlFlow::Break(());
                }
                Err(_) => {}
            }
            ControlFlow::Continue(())
        })?;
        failed.map_or(Ok(()), Err)
    }

    fn variables(&self, code: &Code) -> Result<Vec<Variable>, Fault> {
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
        let reference = self.u64(at)?;
        // References carry their kind in the two low bits: 3 is a small int in place, a lone 1 is null.
        if reference & 3 == 3 {
            let value = reference.cast_signed() >> 2;
            return self
                .shown(variable.name.clone(), "int".to_owned(), wanted, || {
                    Ok(Some(value.to_string()))
                })
                .map(Some);
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
            return Ok(Some(Local {
                name: variable.name.clone(),
                type_name: "unbound".to_owned(),
                value: None,
            }));
        }
        self.local(variable.name.clone(), object, wanted).map(Some)
    }

    fn local(&self, name: String, object: Addr, wanted: Locals) -> Result<Local, Fault> {
        let kind = self.type_of(object)?;
        self.shown(name, kind.short_name().to_owned(), wanted, || {
            self.value(object).map(Some)
        })
    }

    fn shown(
        &self,
        name: String,
        type_name: String,
        wanted: Locals,
        value: impl FnOnce() -> Result<Option<String>, Fault>,
    ) -> Result<Local, Fault> {
        self.take_text(name.len().saturating_add(type_name.len()))?;
        let value = match wanted {
            Locals::Values if is_secret(&name) => Some(MASKED.to_owned()),
            Locals::Values => value()?,
            Locals::None | Locals::Types => None,
        };
        Ok(Local {
            name,
            type_name,
            value,
        })
    }

    /// A value as Python would write it, where that needs no code of the target; otherwise its length or address.
    fn value(&self, object: Addr) -> Result<String, Fault> {
        let kind = self.type_of(object)?;
        let length = |n: usize| format!("{} of {n}", kind.short_name());
        let value = match kind.name.as_str() {
            "NoneType" => "None".to_owned(),
            "ellipsis" => "Ellipsis".to_owned(),
            "bool" => if self.small_int(object)? == 0 {
                "False"
            } else {
                "True"
            }
            .to_owned(),
            "float" => text::float(self.f64(self.member(object, F::float_object_ob_fval))?),
            "set" | "frozenset" => length(self.size(object, F::set_object_used)?),
            _ if kind.is_int() => self.int(object)?,
            _ if kind.is_str() => text::quoted(&self.string(object)?),
            _ if kind.is_bytes() => {
                let size = self.size(object, F::bytes_object_ob_size)?;
                let read = size.min(self.limits.string_bytes);
                let quoted = text::quoted_bytes(
                    &self.bytes(self.member(object, F::bytes_object_ob_sval), read)?,
                );
                if read < size {
                    format!("{quoted}… ({size} bytes)")
                } else {
                    quoted
                }
            }
            _ if kind.is_list() => length(self.size(object, F::list_object_ob_size)?),
            _ if kind.is_tuple() => length(self.size(object, F::tuple_object_ob_size)?),
            // `ma_used` is the first member after the object's head.
            _ if kind.is_dict() => length(self.size(object, F::pyobject_size)?),
            _ if kind.is_type() => {
                let name = self.pointer(self.member(object, F::type_object_tp_name))?;
                format!(
                    "<class '{}'>",
                    self.c_string(name, self.limits.string_bytes)?
                )
            }
            _ => format!("<{} at {object}>", kind.short_name()),
        };
        let clipped = text::clip(&value, self.limits.string_bytes.saturating_mul(2));
        self.take_text(clipped.len())?;
        Ok(clipped)
    }
}

#[cfg(test)]
mod tests {
    use super::is_secret;

    #[test]
    fn names_of_secrets() {
        for name in [
            "password",
            "db_password",
            "API_KEY",
            "access_token",
            "accessToken",
            "Authorization",
            "auth",
            "client_secret",
            "key",
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in [
            "author",
            "monkey",
            "keyboard",
            "passenger",
            "pinned",
            "result",
            "keyed",
        ] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
