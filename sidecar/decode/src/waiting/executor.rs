//! Futures that get their result from elsewhere: a thread of an executor, or a task of another loop.

use sidewinder_model::WaitingFor;

use super::{Waits, unless_limit};
use crate::coroutine::Link;
use crate::decoder::{Decoder, Fault, HashMap, HashSet};
use crate::frame::RawFrame;
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;
use crate::task::{Walk, id};
use crate::text;

/// Callables within callables that are followed to a name.
const MAX_WRAPPED: usize = 4;
/// Callbacks of a future looked at.
const MAX_CALLBACKS: usize = 16;
/// Bytes of a name within a description.
const NAME_BYTES: usize = 80;

/// What the threads of executors run: by the future of each piece of work, the thread and the function.
pub(crate) type Workers = HashMap<Addr, (Option<u64>, Option<String>)>;

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// A variable of a frame that is on a thread's stack.
    fn variable_in(&self, frame: &RawFrame, name: &str) -> Result<Option<Addr>, Fault> {
        let code = self.code(frame.executable)?;
        let link = Link {
            code,
            line: None,
            frame: frame.address,
            stack_pointer: frame.stack_pointer,
        };
        self.object_of(&link, name)
    }

    /// The name of something that can be called.
    fn callable(&self, callable: Addr) -> Result<Option<String>, Fault> {
        let mut callable = callable;
        for _ in 0..MAX_WRAPPED {
            let kind = self.type_of(callable)?;
            let first = self.member(callable, F::pyobject_size);
            match kind.name.as_str() {
                "function" => {
                    let Some(code) = self.function_code(callable)? else {
                        return Ok(None);
                    };
                    return Ok(Some(text::clip(&code.function, NAME_BYTES)));
                }
                // `im_func` and `partial.fn` are the first words of their objects.
                "method" => callable = self.pointer(first)?,
                "functools.partial" => {
                    let inner = self.pointer(first)?;
                    // `to_thread` calls `Context.run` with the function.
                    callable = if self.type_of(inner)?.name == "builtin_function_or_method"
                        && let Some(argument) = self.first_item(self.pointer(first.plus(8))?)?
                        && self.is_callable(argument)?
                    {
                        argument
                    } else {
                        inner
                    };
                }
                "builtin_function_or_method" => {
                    // `m_ml`, whose first word is the name.
                    let name = self.pointer(self.pointer(first)?)?;
                    return self.c_string(name, NAME_BYTES).map(Some);
                }
                _ if kind.is_type() => {
                    let name = self.pointer(self.member(callable, F::type_object_tp_name))?;
                    return self.c_string(name, NAME_BYTES).map(Some);
                }
                _ => return Ok(Some(text::clip(kind.short_name(), NAME_BYTES))),
            }
        }
        Ok(None)
    }

    fn is_callable(&self, object: Addr) -> Result<bool, Fault> {
        Ok(matches!(
            self.type_of(object)?.name.as_str(),
            "function" | "method" | "functools.partial" | "builtin_function_or_method"
        ))
    }

    fn first_item(&self, tuple: Addr) -> Result<Option<Addr>, Fault> {
        if !self.type_of(tuple)?.is_tuple() || self.size(tuple, F::tuple_object_ob_size)? == 0 {
            return Ok(None);
        }
        self.pointer(self.member(tuple, F::tuple_object_ob_item))
            .map(Some)
    }
}

impl<M: Memory + ?Sized> Walk<'_, '_, M> {
    /// A future that gets its result from `source`, and whether that is a task.
    pub(super) fn chained(
        &mut self,
        object: Addr,
        source: Addr,
        link: Option<&Link>,
    ) -> Result<(WaitingFor, bool), Fault> {
        if let Some(task) = unless_limit(self.submitted(source))? {
            let waiting_for = WaitingFor {
                kind: self.kind("Task"),
                id: id(task),
                detail: None,
                future: Some(id(object)),
                held_by: None,
            };
            return Ok((waiting_for, true));
        }
        let detail = unless_limit(self.work(source, link))?;
        let detail = detail.filter(|detail| !detail.is_empty());
        let waiting_for = WaitingFor {
            kind: self.kind("Executor"),
            id: id(source),
            detail: detail.map(|detail| self.text(&detail)).transpose()?,
            future: Some(id(object)),
            held_by: None,
        };
        Ok((waiting_for, false))
    }

    /// The task behind a future of `run_coroutine_threadsafe`: it is what cancels it.
    fn submitted(&self, source: Addr) -> Result<Option<Addr>, Fault> {
        let decoder = self.decoder;
        let Some(callbacks) = decoder.attribute(source, "_done_callbacks")? else {
            return Ok(None);
        };
        if !decoder.type_of(callbacks)?.is_list() {
            return Ok(None);
        }
        let count = decoder.size(callbacks, F::list_object_ob_size)?;
        let items = decoder.pointer(decoder.member(callbacks, F::list_object_ob_item))?;
        let bytes = decoder.bytes(items, count.min(MAX_CALLBACKS).saturating_mul(8))?;
        for word in bytes.as_chunks::<8>().0 {
            let callback = Addr(u64::from_le_bytes(*word));
            let Some(code) = decoder.function_code(callback)? else {
                continue;
            };
            if code.waits == Waits::Chained
                && let Some(task) = decoder.closure(callback, &code, "source")?
                && self.future(task)?.is_some_and(|task| task.is_task)
            {
                return Ok(Some(task));
            }
        }
        Ok(None)
    }

    /// What an executor was given to do, and how far it is.
    fn work(&mut self, source: Addr, link: Option<&Link>) -> Result<Option<String>, Fault> {
        let decoder = self.decoder;
        let mut workers = match self.known.workers.take() {
            Some(workers) => workers,
            None => self.workers()?,
        };
        let worker = workers.get_mut(&source);
        let (thread, function) = match worker {
            Some((tid, function)) => (*tid, function.clone()),
            None => (None, None),
        };
        self.known.workers = Some(workers);
        let mut words = Vec::new();
        match link {
            Some(link) if link.code.waits == Waits::ToThread => {
                if let Some(called) = decoder.object_of(link, "func")? {
                    words.extend(unless_limit(decoder.callable(called))?);
                }
            }
            Some(link) if link.code.waits == Waits::Lookup => {
                let name = link.code.function.rsplit('.').next().unwrap_or_default();
                let host = match decoder.object_of(link, "host")? {
                    Some(host) => unless_limit(decoder.string_up_to(host, NAME_BYTES).map(Some))?,
                    None => None,
                };
                words.push(match host {
                    Some(host) => format!("{name} {host}"),
                    None => name.to_owned(),
                });
            }
            _ => words.extend(function),
        }
        match (thread, decoder.attribute(source, "_state")?) {
            (Some(tid), _) => words.push(format!("running in thread {tid}")),
            (None, Some(state)) => {
                words.push(decoder.string_up_to(state, 32)?.to_ascii_lowercase());
            }
            (None, None) => {}
        }
        Ok(Some(words.join(", ")))
    }

    /// Finds the threads that run something for an executor, in all stacks, once.
    fn workers(&self) -> Result<Workers, Fault> {
        let decoder = self.decoder;
        let mut workers = Workers::default();
        for (place, innermost) in &self.stacks {
            let mut seen = HashSet::default();
            let mut next = *innermost;
            while !next.is_null() && seen.len() < decoder.limits.frames && seen.insert(next) {
                let frame = match decoder.raw_frame(next) {
                    Ok(frame) => frame,
                    Err(fault @ Fault::Limit(_)) => return Err(fault),
                    Err(_) => break,
                };
                if frame.is_python()
                    && let Some((future, function)) = unless_limit(self.work_item(&frame))?
                {
                    workers.insert(future, (place.tid, function));
                }
                next = frame.previous;
            }
        }
        Ok(workers)
    }

    /// The future and the function of a frame that runs a piece of work.
    fn work_item(&self, frame: &RawFrame) -> Result<Option<(Addr, Option<String>)>, Fault> {
        let decoder = self.decoder;
        if decoder.code(frame.executable)?.waits != Waits::WorkItem {
            return Ok(None);
        }
        let Some(item) = decoder.variable_in(frame, "self")? else {
            return Ok(None);
        };
        let Some(future) = decoder.attribute(item, "future")? else {
            return Ok(None);
        };
        // `task` is `(function, arguments, keywords)`.
        let task = match decoder.attribute(item, "task")? {
            Some(task) => decoder.first_item(task)?,
            None => None,
        };
        let function = match task {
            Some(function) => unless_limit(decoder.callable(function))?,
            None => None,
        };
        Ok(Some((future, function)))
    }
}
