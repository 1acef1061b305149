//! Dicts, and the attributes of instances, which stand in dicts or in the order of a class's keys.

use std::cell::RefCell;
use std::ops::ControlFlow;

use super::{InlineValues, Type};
use crate::decoder::{Decoder, Fault};
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;

/// The header of a dict's keys. The layout has been the same since 3.12: `Include/internal/pycore_dict.h`.
struct Keys {
    entries: Addr,
    count: usize,
    /// Bytes of an entry: `{hash, key, value}`, or without the hash where all keys are strings.
    width: usize,
    /// Whether the values stand elsewhere.
    split: bool,
}

/// In which order the values of a split table are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// That of the class's keys, which is enough to find one.
    OfKeys,
    /// That in which they were set.
    OfValues,
}

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// Visits the entries of a dict in insertion order.
    pub(crate) fn dict_entries(
        &self,
        dict: Addr,
        visit: impl FnMut(Addr, Addr) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        if !self.type_of(dict)?.is_dict() {
            return Err(Fault::Invalid("not a dict"));
        }
        let keys = self.pointer(self.member(dict, F::dict_object_ma_keys))?;
        let values = self.pointer(self.member(dict, F::dict_object_ma_values))?;
        self.keys_entries(keys, values, visit)
    }

    /// The header of a keys object.
    fn keys(&self, keys: Addr) -> Result<Keys, Fault> {
        let header = self.bytes(keys, 32)?;
        let byte = |n: usize| header.get(n).copied().unwrap_or(0);
        let (log2_index_bytes, kind) = (byte(9), byte(10));
        let count = header
            .as_chunks::<8>()
            .0
            .get(3)
            .and_then(|w| usize::try_from(i64::from_le_bytes(*w)).ok())
            .ok_or(Fault::Invalid("a dict of impossible size"))?;
        if log2_index_bytes > 40 || kind > 2 {
            return Err(Fault::Invalid("not a dict's keys"));
        }
        Ok(Keys {
            entries: keys
                .plus(32)
                .plus(1_u64.checked_shl(u32::from(log2_index_bytes)).unwrap_or(0)),
            count,
            width: if kind == 0 { 24 } else { 16 },
            split: kind == 2,
        })
    }

    /// The place of a name among keys that are strings.
    fn key_index(&self, keys: Addr, name: &str) -> Result<Option<u64>, Fault> {
        let keys = self.keys(keys)?;
        let key_at = keys.width.saturating_sub(16);
        let count = keys.count.min(self.limits.dict_entries);
        let mut index = 0_u64;
        let mut found = None;
        self.entries(keys.entries, count, keys.width, |entry| {
            let key = entry
                .get(key_at..)
                .and_then(|entry| entry.first_chunk::<8>())
                .map_or(Addr(0), |word| Addr(u64::from_le_bytes(*word)));
            if !key.is_null() && self.string_is(key, name) {
                found = Some(index);
                return ControlFlow::Break(());
            }
            index = index.saturating_add(1);
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Visits the first entries of a dict in insertion order, empty ones of removed keys counted.
    pub(crate) fn first_dict_entries(
        &self,
        dict: Addr,
        max: usize,
        visit: impl FnMut(Addr, Addr) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let keys = self.pointer(self.member(dict, F::dict_object_ma_keys))?;
        let values = self.pointer(self.member(dict, F::dict_object_ma_values))?;
        self.first_keys_entries(keys, values, max, Order::OfValues, visit)
            .map(drop)
    }

    /// Visits the entries of a keys object, with the values of a split table where there are some.
    fn keys_entries(
        &self,
        keys: Addr,
        values: Addr,
        visit: impl FnMut(Addr, Addr) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let max = self.limits.dict_entries;
        if self.first_keys_entries(keys, values, max, Order::OfKeys, visit)? > max {
            self.problem("a dict has more entries than the limit: the others are left out");
        }
        Ok(())
    }

    /// Visits at most so many entries of a keys object, with the values of a split table where there are some; the number
    /// is that of all.
    pub(crate) fn first_keys_entries(
        &self,
        keys: Addr,
        values: Addr,
        max: usize,
        order: Order,
        mut visit: impl FnMut(Addr, Addr) -> ControlFlow<()>,
    ) -> Result<usize, Fault> {
        let Keys {
            entries,
            count: all,
            width,
            split,
        } = self.keys(keys)?;
        let count = all.min(max);
        if split && !values.is_null() {
            return self
                .split_entries(entries, count, values, order, visit)
                .map(|()| all);
        }
        self.entries(entries, count, width, |entry| {
            let (words, _) = entry.as_chunks::<8>();
            let (key, value) = match words {
                [_, key, value] | [key, value] => {
                    (u64::from_le_bytes(*key), u64::from_le_bytes(*value))
                }
                _ => return ControlFlow::Break(()),
            };
            if key == 0 || value == 0 {
                return ControlFlow::Continue(());
            }
            visit(Addr(key), Addr(value))
        })?;
        Ok(all)
    }

    /// Visits the entries of a split table: the keys are the class's, the values the instance's. `_PyDictValues` is how
    /// many values there is room for, how many there are, two flags, the values, and in which order they were set.
    fn split_entries(
        &self,
        keys: Addr,
        count: usize,
        values: Addr,
        order: Order,
        mut visit: impl FnMut(Addr, Addr) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let count = count.min(usize::from(u8::MAX));
        let first = values.plus(8);
        let order = match order {
            Order::OfKeys => (0..=u8::MAX).take(count).collect(),
            Order::OfValues => {
                let [capacity, used, ..] = self.u32(values)?.to_le_bytes();
                let room = u64::from(capacity).saturating_mul(8);
                self.bytes(first.plus(room), usize::from(used.min(capacity)))?
            }
        };
        let keys = self.bytes(keys, count.saturating_mul(16))?;
        let (keys, _) = keys.as_chunks::<16>();
        for index in order {
            let Some(key) = keys.get(usize::from(index)) else {
                continue;
            };
            let (key, _) = key.as_chunks::<8>();
            let key = Addr(key.first().map_or(0, |key| u64::from_le_bytes(*key)));
            let value = self.pointer(first.plus(u64::from(index).saturating_mul(8)))?;
            if !key.is_null() && !value.is_null() && visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The value of a dict whose keys are strings.
    pub(crate) fn dict_get(&self, dict: Addr, name: &str) -> Result<Option<Addr>, Fault> {
        let mut found = None;
        self.dict_entries(dict, |key, value| {
            self.take_if_named(key, value, name, &mut found)
        })?;
        Ok(found)
    }

    fn take_if_named(
        &self,
        key: Addr,
        value: Addr,
        name: &str,
        found: &mut Option<Addr>,
    ) -> ControlFlow<()> {
        if self.string_is(key, name) {
            *found = Some(value);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// An attribute that an instance of a class written in Python has in its own dict or inline values.
    pub(crate) fn attribute(
        &self,
        object: Addr,
        name: &'static str,
    ) -> Result<Option<Addr>, Fault> {
        let class = self.pointer(self.member(object, F::pyobject_ob_type))?;
        let kind = self.type_at(class)?;
        if !kind.managed_dict() {
            return Ok(None);
        }
        // Before the object stand its garbage collector's header (two words, GIL builds only), then the managed dict.
        let dict = self.pointer(object.minus(if self.runtime.free_threaded() { 8 } else { 24 }))?;
        if !kind.inline_values() {
            return if dict.is_null() {
                Ok(None)
            } else {
                self.dict_get(dict, name)
            };
        }
        let inline = self.inline_values(class, &kind)?;
        let values = if dict.is_null() {
            // Values are valid where their fourth byte says so.
            let values = object.plus(inline.basic_size);
            if self.u8(values.plus(3))? == 0 {
                return Ok(None);
            }
            values
        } else {
            // A dict that somebody asked for goes on with the object's own values, until it gets keys of its own.
            let keys = self.pointer(self.member(dict, F::dict_object_ma_keys))?;
            let values = self.pointer(self.member(dict, F::dict_object_ma_values))?;
            if keys != inline.keys || values.is_null() {
                return self.dict_get(dict, name);
            }
            values
        };
        let known = inline.known.borrow().iter().find(|k| k.0 == name).copied();
        let index = if let Some((_, index)) = known {
            index
        } else {
            let index = self.key_index(inline.keys, name)?;
            inline.known.borrow_mut().push((name, index));
            index
        };
        let Some(index) = index else {
            return Ok(None);
        };
        let value = self.pointer(values.plus(8).plus(index.saturating_mul(8)))?;
        Ok(Some(value).filter(|value| !value.is_null()))
    }

    fn inline_values<'t>(&self, class: Addr, kind: &'t Type) -> Result<&'t InlineValues, Fault> {
        if let Some(known) = kind.inline.get() {
            return Ok(known);
        }
        // `tp_basicsize` follows `tp_name`.
        let basic_size = self.u64(self.member(class, F::type_object_tp_name).plus(8))?;
        if basic_size > 1 << 20 {
            return Err(Fault::Invalid("objects of impossible size"));
        }
        let keys = self.pointer(class.plus(self.cached_keys_offset()))?;
        Ok(kind.inline.get_or_init(|| InlineValues {
            basic_size,
            keys,
            known: RefCell::default(),
        }))
    }

    /// Visits the attributes that an instance of a class written in Python has in its own dict or inline values, at
    /// most so many.
    pub(crate) fn attributes(
        &self,
        object: Addr,
        max: usize,
        order: Order,
        visit: impl FnMut(Addr, Addr) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let kind = self.type_of(object)?;
        if !kind.managed_dict() {
            return Ok(());
        }
        // Before the object stand its garbage collector's header (two words, GIL builds only), then the managed dict.
        let dict = self.pointer(object.minus(if self.runtime.free_threaded() { 8 } else { 24 }))?;
        if !dict.is_null() {
            if !self.type_of(dict)?.is_dict() {
                return Err(Fault::Invalid("not a dict"));
            }
            return self.first_dict_entries(dict, max, visit);
        }
        if !kind.inline_values() {
            return Ok(());
        }
        // `tp_basicsize` follows `tp_name`. Values are valid where their fourth byte says so.
        let basic_size = self.u64(self.member(kind.address, F::type_object_tp_name).plus(8))?;
        let values = object.plus(basic_size);
        if basic_size > 1 << 20 || self.u8(values.plus(3))? == 0 {
            return Ok(());
        }
        let keys = self.pointer(kind.address.plus(self.cached_keys_offset()))?;
        self.first_keys_entries(keys, values, max, order, visit)
            .map(drop)
    }

    /// `PyHeapTypeObject.ht_cached_keys`. 3.14's table has no word for it: it follows the type, its 55 slots of
    /// methods and three names, of which the last is `ht_qualname`.
    pub(crate) fn cached_keys_offset(&self) -> u64 {
        self.offsets()
            .find(F::heap_type_object_ht_cached_keys)
            .unwrap_or(self.offsets().get(F::type_object_size).saturating_add(464))
    }
}
