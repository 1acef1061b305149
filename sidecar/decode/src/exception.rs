//! The exception that a thread raises or handles.

use sidewinder_model::CurrentException;

use crate::decoder::{Decoder, Fault};
use crate::local::secret::is_secret_text;
use crate::local::value::MASKED;
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;

/// Handled exceptions that are looked at for one that is there: each generator that runs inside another has a place.
const MAX_HANDLED: usize = 4096;
/// The longest message, in bytes.
const MAX_MESSAGE: usize = 200;

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// The exception that the thread raises, else the innermost one it handles.
    pub(crate) fn current_exception(
        &self,
        thread: Addr,
    ) -> Result<Option<CurrentException>, Fault> {
        let raised_at = match self.offsets().find(F::thread_state_current_exception) {
            Some(offset) => thread.plus(offset),
            None => self
                .member(thread, F::thread_state_thread_id)
                .minus(self.runtime.version.current_exception_before_thread_id),
        };
        let raised = self.pointer(raised_at)?;
        if !raised.is_null() {
            return self.describe_exception(raised);
        }
        // `struct _err_stackitem {PyObject *exc_value; struct _err_stackitem *previous_item;}`
        let value = self.offsets().find(F::err_stackitem_exc_value).unwrap_or(0);
        let mut item = self.pointer(raised_at.plus(8))?;
        for _ in 0..MAX_HANDLED {
            if item.is_null() {
                return Ok(None);
            }
            let handled = self.pointer(item.plus(value))?;
            if !handled.is_null()
                && let Some(found) = self.describe_exception(handled)?
            {
                return Ok(Some(found));
            }
            item = self.pointer(item.plus(value).plus(8))?;
        }
        Err(Fault::Limit("exceptions being handled"))
    }

    /// `None` for what is no exception: a place where none is handled holds `None`.
    fn describe_exception(&self, value: Addr) -> Result<Option<CurrentException>, Fault> {
        let kind = self.type_of(value)?;
        if !kind.is_exception() {
            return Ok(None);
        }
        let described = CurrentException {
            type_name: self.full_name(&kind),
            message: self.exception_message(value),
        };
        self.take_text(described.type_name.len())?;
        Ok(Some(described))
    }

    /// `args[0]`, where it is a string, masked where it looks like a secret. `args` is the second member after the object's head, behind the dict.
    fn exception_message(&self, value: Addr) -> Option<String> {
        let args = self
            .pointer(self.member(value, F::pyobject_size).plus(8))
            .ok()?;
        if !self.type_of(args).ok()?.is_tuple()
            || self.size(args, F::tuple_object_ob_size).ok()? == 0
        {
            return None;
        }
        let first = self
            .pointer(self.member(args, F::tuple_object_ob_item))
            .ok()?;
        let message = self.string_up_to(first, MAX_MESSAGE).ok()?;
        let cut = message.ends_with('…');
        Some(if is_secret_text(&message, cut) {
            MASKED.to_owned()
        } else {
            message
        })
    }
}
