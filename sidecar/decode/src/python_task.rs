//! Tasks and futures written in Python. They stand in no list of the interpreter's: asyncio keeps them in weak sets,
//! those of its own class in `asyncio.tasks`, those of other libraries' classes in the state of `_asyncio`.
//! <https://github.com/python/cpython/blob/3.14/Modules/_asynciomodule.c>

use sidewinder_model::Task;

use crate::decoder::{Decoder, Fault, HashSet};
use crate::memory::{Addr, Memory};
use crate::object::Type;
use crate::offsets::Field as F;
use crate::task::{Place, RawFuture, RawTask, Walk, id};

/// Words of a module object in which its state is looked for: the third in 3.14, the second in 3.15.
const MODULE_WORDS: u64 = 4;

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// The dict of a module object, its first member.
    pub(crate) fn module_dict(&self, module: Addr) -> Result<Option<Addr>, Fault> {
        if self.type_of(module)?.name != "module" {
            return Ok(None);
        }
        self.pointer(self.member(module, F::pyobject_size))
            .map(Some)
    }

    /// A name of a module's.
    fn global(&self, module: Addr, name: &str) -> Result<Option<Addr>, Fault> {
        match self.module_dict(module)? {
            Some(dict) => self.dict_get(dict, name),
            None => Ok(None),
        }
    }

    /// An attribute that is there and not `None`; 0 otherwise.
    fn attribute_or_null(&self, object: Addr, name: &'static str) -> Result<Addr, Fault> {
        match self.attribute(object, name)? {
            Some(value) if self.type_of(value)?.name != "NoneType" => Ok(value),
            _ => Ok(Addr(0)),
        }
    }

    /// The members of a `WeakSet` or a `set`. Of weak references, an object that is gone is `None`.
    fn members(&self, set: Addr) -> Result<Vec<Addr>, Fault> {
        let kind = self.type_of(set)?;
        let data = if kind.name == "set" {
            set
        } else if let Some(data) = self.attribute(set, "data")? {
            data
        } else {
            return Err(Fault::Invalid("not a set of tasks"));
        };
        if self.type_of(data)?.name != "set" {
            return Err(Fault::Invalid("not a set of tasks"));
        }
        let mut members = self.set_items(data, self.limits.tasks)?;
        if kind.name != "set" {
            for member in &mut members {
                // `wr_object` is the first member of a weak reference.
                *member = self.pointer(self.member(*member, F::pyobject_size))?;
            }
        }
        Ok(members)
    }
}

impl<M: Memory + ?Sized> Walk<'_, '_, M> {
    /// The head of a future written in Python; `None` of anything else.
    pub(crate) fn python_future(
        &self,
        object: Addr,
        kind: &std::rc::Rc<Type>,
    ) -> Result<Option<RawFuture>, Fault> {
        let decoder = self.decoder;
        let Some(callbacks) = decoder.attribute(object, "_callbacks")? else {
            return Ok(None);
        };
        let Some(loop_object) = decoder.attribute(object, "_loop")? else {
            return Ok(None);
        };
        // Pending is the class's default.
        let is_done = match decoder.attribute(object, "_state")? {
            Some(state) => !decoder.string_is(state, "PENDING"),
            None => false,
        };
        let is_task = decoder.attribute(object, "_coro")?.is_some();
        Ok(Some(RawFuture {
            kind: std::rc::Rc::clone(kind),
            loop_object,
            callback: self.first_callback(callbacks).unwrap_or(Addr(0)),
            awaited_by: decoder.attribute_or_null(object, "_Future__asyncio_awaited_by")?,
            awaited_by_is_set: true,
            is_task,
            is_done,
        }))
    }

    /// The function of the first entry `(function, context)`.
    fn first_callback(&self, callbacks: Addr) -> Option<Addr> {
        let decoder = self.decoder;
        let list = decoder.type_of(callbacks).ok()?.is_list();
        if !list || decoder.size(callbacks, F::list_object_ob_size).ok()? == 0 {
            return None;
        }
        let items = decoder.member(callbacks, F::list_object_ob_item);
        let entry = decoder.pointer(decoder.pointer(items).ok()?).ok()?;
        if !decoder.type_of(entry).ok()?.is_tuple() {
            return None;
        }
        let item = decoder.member(entry, F::tuple_object_ob_item);
        decoder.pointer(item).ok()
    }

    /// Decodes the tasks that are written in Python, of an interpreter whose `asyncio` may be reached.
    pub(crate) fn python_tasks(&mut self, interpreter: i64, state: Addr) {
        match self.sets_of_tasks(interpreter, state) {
            Ok(sets) => {
                for set in sets {
                    self.python_set(interpreter, set);
                }
            }
            Err(fault) => self.decoder.problem(format_args!(
                "tasks written in Python, interpreter {interpreter}: {fault}"
            )),
        }
    }

    /// Where an interpreter keeps tasks written in Python.
    fn sets_of_tasks(&self, interpreter: i64, state: Addr) -> Result<Vec<Addr>, Fault> {
        let decoder = self.decoder;
        let mut sets = Vec::new();
        let tasks = match self.asyncio_state(interpreter)? {
            Some((asyncio, others)) => {
                sets.extend(others);
                decoder.global(asyncio, "tasks")?
            }
            // A loop runs, and no task of it is written in C.
            None if self
                .loops
                .iter()
                .any(|each| each.interpreter == interpreter) =>
            {
                let modules = decoder.member(state, F::interpreter_state_imports_modules);
                let modules = decoder.pointer(modules)?;
                if modules.is_null() {
                    None
                } else {
                    decoder.dict_get(modules, "asyncio.tasks")?
                }
            }
            None => None,
        };
        if let Some(tasks) = tasks {
            sets.extend(decoder.global(tasks, "_scheduled_tasks")?);
            sets.extend(decoder.global(tasks, "_eager_tasks")?);
        }
        Ok(sets)
    }

    /// From the state of `_asyncio`: the module `asyncio`, and the sets of the tasks of other libraries. A class in C
    /// knows its module.
    fn asyncio_state(&self, interpreter: i64) -> Result<Option<(Addr, [Addr; 2])>, Fault> {
        let decoder = self.decoder;
        let task = self.tasks.iter().find(|t| t.interpreter == interpreter);
        let Some(task) = task.map(|task| Addr(task.id.0)) else {
            return Ok(None);
        };
        let class = decoder.pointer(decoder.member(task, F::pyobject_ob_type))?;
        let Some(base) = decoder.asyncio_base(class)? else {
            return Ok(None);
        };
        let Some(module) = decoder.module_of_class(base)? else {
            return Ok(None);
        };
        for n in 1..MODULE_WORDS {
            let words = decoder.member(module, F::pyobject_size);
            let state = decoder.pointer(words.plus(n.saturating_mul(8)))?;
            // The classes FutureIter, TaskStepMethWrapper, Future and Task, the module, a word, the two sets.
            let mut found = [Addr(0); 8];
            for (at, word) in (0_u64..).zip(&mut found) {
                match decoder.pointer(state.plus(at.saturating_mul(8))) {
                    Ok(value) => *word = value,
                    Err(fault @ Fault::Limit(_)) => return Err(fault),
                    Err(_) => break,
                }
            }
            let [_, _, future, task, asyncio, _, tasks, eager] = found;
            if base == future || base == task {
                return Ok(Some((asyncio, [tasks, eager])));
            }
        }
        Err(Fault::Invalid("the state of _asyncio was not found"))
    }

    fn python_set(&mut self, interpreter: i64, set: Addr) {
        let members = match self.decoder.members(set) {
            Ok(members) => members,
            Err(fault) => {
                return self.decoder.problem(format_args!(
                    "tasks written in Python, interpreter {interpreter}: {fault}"
                ));
            }
        };
        let mut seen = HashSet::default();
        for address in members {
            if self.is_known(address) || !seen.insert(address) {
                continue;
            }
            if self.is_full() {
                return;
            }
            if let Err(fault) = self.python_task(interpreter, address) {
                self.decoder
                    .problem(format_args!("task at {address}: {fault}"));
                if matches!(fault, Fault::Limit(_)) {
                    self.full = true;
                }
            }
        }
    }

    fn python_task(&mut self, interpreter: i64, address: Addr) -> Result<(), Fault> {
        let decoder = self.decoder;
        let kind = decoder.type_of(address)?;
        // Nobody holds it any more.
        if kind.name == "NoneType" {
            return Ok(());
        }
        let Some(future) = self.python_future(address, &kind)?.filter(|f| f.is_task) else {
            decoder.problem(format_args!(
                "task at {address}: a {} has not the attributes of asyncio's tasks",
                kind.short_name()
            ));
            return Ok(());
        };
        if future.is_done {
            return Ok(());
        }
        let raw = RawTask {
            coroutine: decoder.attribute_or_null(address, "_coro")?,
            name: decoder
                .attribute(address, "_name")?
                .ok_or(Fault::Invalid("it has no name"))?,
            waiter: decoder.attribute_or_null(address, "_fut_waiter")?,
            future,
        };
        let loop_id = id(raw.future.loop_object);
        let tid = self
            .loops
            .iter()
            .find(|each| each.id == loop_id)
            .and_then(|each| each.tid);
        let place = Place { interpreter, tid };
        let mut task = Task {
            id: id(address),
            interpreter,
            tid,
            ..Task::default()
        };
        self.fill(&mut task, address, place, &raw)?;
        self.add(address, task);
        Ok(())
    }
}
