//! The names that the module `threading` has for threads. The kernel knows 15 bytes of them.

use std::ops::ControlFlow;

use crate::decoder::{Decoder, Fault, HashMap};
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;
use crate::thread::PyThread;

/// The names of one interpreter's threads.
#[derive(Debug, Default)]
pub(crate) struct ThreadNames {
    by_ident: HashMap<u64, String>,
    /// By the kernel's id; `None` where several claim it.
    by_native: HashMap<u64, Option<String>>,
    main: Option<String>,
}

impl ThreadNames {
    /// The name of a thread of this interpreter.
    pub(crate) fn of(&self, thread: &PyThread) -> Option<&str> {
        // gevent puts greenlets' idents into the table, the main thread's too.
        let main = || self.main.as_deref().filter(|_| thread.main);
        let native = || self.by_native.get(&thread.native)?.as_deref();
        self.of_ident(thread.ident).or_else(main).or_else(native)
    }

    /// The name of the thread with this `threading.get_ident()`.
    pub(crate) fn of_ident(&self, ident: u64) -> Option<&str> {
        self.by_ident.get(&ident).map(String::as_str)
    }
}

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// `threading._active`, and `threading._main_thread`, where `threading` is imported in this interpreter.
    pub(crate) fn thread_names(&self, interpreter: Addr) -> ThreadNames {
        let mut names = ThreadNames::default();
        if let Err(fault) = self.read_thread_names(interpreter, &mut names) {
            self.problem(format_args!("names of threads: {fault}"));
        }
        names
    }

    fn read_thread_names(&self, interpreter: Addr, names: &mut ThreadNames) -> Result<(), Fault> {
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
        if let Some(main) = self.dict_get(dict, "_main_thread")? {
            names.main = self.thread_name(main);
        }
        let Some(active) = self.dict_get(dict, "_active")? else {
            return Ok(());
        };
        self.dict_entries(active, |ident, thread| {
            let Some(name) = self.thread_name(thread) else {
                return ControlFlow::Continue(());
            };
            let native = self.attribute(thread, "_native_id").ok().flatten();
            if let Some(native) = native.and_then(|native| self.small_int(native).ok()) {
                names
                    .by_native
                    .entry(native)
                    .and_modify(|known| *known = None)
                    .or_insert_with(|| Some(name.clone()));
            }
            if let Ok(ident) = self.small_int(ident) {
                names.by_ident.insert(ident, name);
            }
            ControlFlow::Continue(())
        })
    }

    fn thread_name(&self, thread: Addr) -> Option<String> {
        let name = self.attribute(thread, "_name").ok()??;
        self.string_up_to(name, self.limits.name_bytes).ok()
    }
}
