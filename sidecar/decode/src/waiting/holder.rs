//! Who holds a lock. asyncio does not note it, but a frame does that is suspended in the body of `async with lock`: on
//! its stack lie the function that will release the lock and the lock. Who acquired it in another way is not known.

use std::sync::Arc;

use sidewinder_model::{Id, Task};

use super::{Waits, unless_limit};
use crate::code::Code;
use crate::coroutine::{Chain, Link};
use crate::decoder::{Decoder, Fault, HashMap};
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;
use crate::task::{Walk, id};
use crate::text;

/// Words of a frame's stack looked at, from the top.
const MAX_STACK: u64 = 64;
/// Holders that are named.
const NAMED: usize = 3;
/// Bytes of a name within a description.
const NAME_BYTES: usize = 80;

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// How many variables a frame of this code has: its stack begins behind them.
    fn variable_count(&self, code: &Code) -> Result<u64, Fault> {
        if let Some(known) = code.variable_count.get() {
            return Ok(*known);
        }
        let names = self.pointer(self.member(code.address, F::code_object_localsplusnames))?;
        let count = self.size(names, F::tuple_object_ob_size)?;
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        Ok(*code.variable_count.get_or_init(|| count))
    }

    /// The locks whose release is pending on the stack of a suspended frame, the last entered last.
    fn entered(&self, link: &Link) -> Result<Vec<Addr>, Fault> {
        let variables = self.variable_count(&link.code)?;
        let start = self
            .member(link.frame, F::interpreter_frame_localsplus)
            .plus(variables.saturating_mul(8));
        // On top lies what is awaited.
        let below = self.runtime.version.awaited_below_stackpointer;
        let end = link.stack_pointer.minus(below);
        let words = end.0.saturating_sub(start.0) / 8;
        if words < 2 {
            return Ok(Vec::new());
        }
        let words = words.min(MAX_STACK);
        let at = end.minus(words.saturating_mul(8));
        let bytes = self.bytes(at, usize::try_from(words.saturating_mul(8)).unwrap_or(0))?;
        let (words, _) = bytes.as_chunks::<8>();
        let mut found = Vec::new();
        for (function, lock) in words.iter().zip(words.iter().skip(1)) {
            let function = u64::from_le_bytes(*function);
            if function & 3 == 3 || Addr(function).untagged().is_null() {
                continue;
            }
            let code = unless_limit(self.function_code(Addr(function).untagged()))?;
            if code.is_some_and(|code| code.waits == Waits::Release) {
                found.push(Addr(u64::from_le_bytes(*lock)).untagged());
            }
        }
        Ok(found)
    }

    /// Every lock that the frames of a chain hold.
    fn held(&self, chain: &Chain) -> Result<Vec<Addr>, Fault> {
        let mut held = Vec::new();
        let mut condition = None;
        for (n, link) in chain.links.iter().enumerate() {
            // The stack of a frame that is being executed stands elsewhere.
            if chain.executing == Some(link.frame) {
                break;
            }
            let mut entered = unless_limit(self.entered(link).map(Some))?.unwrap_or_default();
            let next = chain.links.get(n.saturating_add(1));
            // Who is still entering the last one does not hold it.
            if next.is_some_and(|next| next.code.waits == Waits::Enter) {
                entered.pop();
            }
            for entered in entered {
                if condition.is_none() {
                    condition = Some(unless_limit(self.condition(chain))?);
                }
                // A wait for a condition has released its lock.
                if condition.flatten() == Some(entered) {
                    continue;
                }
                let lock = unless_limit(self.attribute(entered, "_lock"))?;
                held.push(lock.unwrap_or(entered));
            }
        }
        Ok(held)
    }

    /// The condition that a chain waits for, or whose lock it waits for to come back: nothing else is awaited in it.
    fn condition(&self, chain: &Chain) -> Result<Option<Addr>, Fault> {
        let mut innermost = chain.links.iter().rev().take(2);
        match innermost.find(|link| link.code.waits == Waits::Condition) {
            Some(link) => self.object_of(link, "self"),
            None => Ok(None),
        }
    }
}

impl<M: Memory + ?Sized> Walk<'_, '_, M> {
    /// Notes the locks that the next task holds.
    pub(crate) fn note_held(&mut self, chain: &Chain) -> Result<(), Fault> {
        let held = self.decoder.held(chain)?;
        if held.is_empty() {
            return Ok(());
        }
        let task = u32::try_from(self.tasks.len()).unwrap_or(u32::MAX);
        self.decoder
            .take_result(held.len().saturating_mul(size_of::<(Addr, u32)>()))?;
        let held = held.into_iter().map(|lock| (lock, task));
        self.known.held.extend(held);
        Ok(())
    }

    /// Tells the tasks that wait for a lock or a semaphore who holds it. Returns, by the tasks' indices, who waits for
    /// whom because of a lock: of a semaphore any of its holders may let a waiter go on.
    pub(crate) fn tell_holders(&mut self, tasks: &mut [Task]) -> Vec<(u32, u32)> {
        let mut held = std::mem::take(&mut self.known.held);
        held.sort_unstable();
        held.dedup();
        let mut holders: HashMap<Id, &[(Addr, u32)]> = HashMap::default();
        for group in held.chunk_by(|one, other| one.0 == other.0) {
            if let Some((lock, _)) = group.first() {
                holders.insert(id(*lock), group);
            }
        }
        let mut edges = Vec::new();
        if holders.is_empty() {
            return edges;
        }
        // One text for all that wait for a lock.
        let mut told: HashMap<Id, (Arc<[Id]>, Arc<str>)> = HashMap::default();
        for index in 0..tasks.len() {
            let Some(on) = tasks.get(index).and_then(|t| t.waiting_for.as_ref()) else {
                continue;
            };
            let is_lock = &*on.kind == "Lock";
            if !is_lock && &*on.kind != "Semaphore" {
                continue;
            }
            let Some(group) = holders.get(&on.id) else {
                continue;
            };
            let lock = on.id;
            let (held_by, detail) = if let Some(known) = told.get(&lock) {
                known.clone()
            } else {
                let new = described(tasks, group, on.detail.as_deref());
                let taken = size_of_val(&*new.0).saturating_add(new.1.len());
                let fits = self.decoder.take_text(new.1.len());
                if fits.and_then(|()| self.decoder.take_result(taken)).is_err() {
                    return edges;
                }
                told.insert(lock, new.clone());
                new
            };
            if let (true, [(_, holder)]) = (is_lock, *group) {
                edges.push((u32::try_from(index).unwrap_or(u32::MAX), *holder));
            }
            if let Some(on) = tasks.get_mut(index).and_then(|t| t.waiting_for.as_mut()) {
                on.held_by = Some(held_by);
                on.detail = Some(detail);
            }
        }
        edges
    }
}

/// The ids of a lock's holders, and its description with their names.
fn described(tasks: &[Task], group: &[(Addr, u32)], detail: Option<&str>) -> (Arc<[Id]>, Arc<str>) {
    let holders = group
        .iter()
        .filter_map(|(_, holder)| tasks.get(usize::try_from(*holder).ok()?));
    let mut text = detail.map_or_else(String::new, |detail| format!("{detail}, "));
    for (n, holder) in holders.clone().take(NAMED).enumerate() {
        text.push_str(if n == 0 { "held by " } else { " and " });
        text.push_str(&text::clip(&holder.name, NAME_BYTES));
    }
    if group.len() > NAMED {
        text.push_str(" and others");
    }
    (holders.map(|holder| holder.id).collect(), text.into())
}
