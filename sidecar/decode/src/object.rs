//! Python's built-in objects: types, strings, numbers, dicts and instance attributes.

use std::cell::OnceCell;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use crate::coroutine::Awaitable;
use crate::decoder::{Decoder, Fault, HashMap};
use crate::memory::{Addr, Memory, PAGE};
use crate::offsets::Field as F;
use crate::text;

/// No type's name is longer.
const MAX_TYPE_NAME: usize = 512;
/// Digits of 30 bits beyond which an int is shown by its size: more than a thousand decimal digits.
const MAX_DIGITS: usize = 128;
/// Classes between one and asyncio's.
const MAX_BASES: usize = 64;
/// The largest set table looked at, in entries.
const MAX_SET_TABLE: u64 = 1 << 24;

/// What is known of a type object.
#[derive(Debug)]
pub(crate) struct Type {
    /// `tp_name`: for types written in C with its module, for classes without.
    pub(crate) name: String,
    /// `type.__name__`, shared with the results that name it.
    pub(crate) short: Arc<str>,
    /// What its objects are to a chain of awaits.
    pub(crate) awaitable: Awaitable,
    flags: u64,
    address: Addr,
    /// Whether it is asyncio's future written in C, or derived from it.
    future: OnceCell<bool>,
}

impl Type {
    /// `type.__name__`.
    pub(crate) fn short_name(&self) -> &str {
        &self.short
    }

    fn has(&self, bit: u32) -> bool {
        self.flags
            .checked_shr(bit)
            .is_some_and(|flags| flags & 1 == 1)
    }

    // The bits of tp_flags, Include/object.h.
    fn inline_values(&self) -> bool {
        self.has(2)
    }
    fn managed_dict(&self) -> bool {
        self.has(4)
    }
    pub(crate) fn is_int(&self) -> bool {
        self.has(24)
    }
    pub(crate) fn is_list(&self) -> bool {
        self.has(25)
    }
    pub(crate) fn is_tuple(&self) -> bool {
        self.has(26)
    }
    pub(crate) fn is_bytes(&self) -> bool {
        self.has(27)
    }
    pub(crate) fn is_str(&self) -> bool {
        self.has(28)
    }
    pub(crate) fn is_dict(&self) -> bool {
        self.has(29)
    }
    pub(crate) fn is_type(&self) -> bool {
        self.has(31)
    }
}

/// The types that were met.
#[derive(Debug, Default)]
pub(crate) struct Types {
    known: HashMap<Addr, Rc<Type>>,
    /// Those used last, by some bits of their address: most objects are of a few types.
    recent: [Option<Rc<Type>>; 16],
}

impl Types {
    fn recent(&mut self, at: Addr) -> Option<&mut Option<Rc<Type>>> {
        self.recent.get_mut(usize::try_from((at.0 >> 5) & 15).ok()?)
    }

    fn get(&mut self, at: Addr) -> Option<Rc<Type>> {
        if let Some(Some(recent)) = self.recent(at)
            && recent.address == at
        {
            return Some(Rc::clone(recent));
        }
        let known = Rc::clone(self.known.get(&at)?);
        if let Some(recent) = self.recent(at) {
            *recent = Some(Rc::clone(&known));
        }
        Some(known)
    }

    fn insert(&mut self, found: Rc<Type>) {
        self.known.insert(found.address, found);
    }
}

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// The type of the object at this address.
    pub(crate) fn type_of(&self, object: Addr) -> Result<Rc<Type>, Fault> {
        self.type_at(self.pointer(self.member(object, F::pyobject_ob_type))?)
    }

    /// The type at this address.
    pub(crate) fn type_at(&self, at: Addr) -> Result<Rc<Type>, Fault> {
        if let Some(known) = self.types.borrow_mut().get(at) {
            return Ok(known);
        }
        // Garbage is caught here: the type of a type is a type.
        let meta = self.pointer(self.member(at, F::pyobject_ob_type))?;
        let meta_flags = self.u64(self.member(meta, F::type_object_tp_flags))?;
        if meta_flags & (1 << 31) == 0 {
            return Err(Fault::Invalid("not a Python object"));
        }
        let name = self.pointer(self.member(at, F::type_object_tp_name))?;
        let name = self.c_string(name, MAX_TYPE_NAME)?;
        let found = Rc::new(Type {
            awaitable: Awaitable::of(&name),
            short: name.rsplit('.').next().unwrap_or(&name).into(),
            name,
            flags: self.u64(self.member(at, F::type_object_tp_flags))?,
            address: at,
            future: OnceCell::new(),
        });
        self.types.borrow_mut().insert(Rc::clone(&found));
        Ok(found)
    }

    /// Whether objects of this type have the layout of asyncio's future: tasks have it, and classes derived from either.
    pub(crate) fn is_future_type(&self, kind: &Type) -> Result<bool, Fault> {
        if let Some(known) = kind.future.get() {
            return Ok(*known);
        }
        let mut at = kind.address;
        let mut future = false;
        for _ in 0..MAX_BASES {
            let name = self.pointer(self.member(at, F::type_object_tp_name))?;
            let name = self.c_string(name, MAX_TYPE_NAME)?;
            if name == "_asyncio.Future" || name == "_asyncio.Task" {
                future = true;
                break;
            }
            // `tp_base` follows `tp_flags` after ten other words.
            at = self.pointer(self.member(at, F::type_object_tp_flags).plus(88))?;
            if at.is_null() {
                break;
            }
        }
        Ok(*kind.future.get_or_init(|| future))
    }

    /// A string that ends with a zero byte.
    pub(crate) fn c_string(&self, at: Addr, max: usize) -> Result<String, Fault> {
        let mut bytes = Vec::new();
        let mut at = at;
        while bytes.len() < max {
            // Up to the end of the page, behind which nothing may be mapped.
            let page = PAGE as u64;
            let rest = page.saturating_sub(at.page_offset()).min(64);
            let len = usize::try_from(rest).unwrap_or(1).max(1);
            let piece = self.bytes(at, len)?;
            if let Some(end) = piece.iter().position(|b| *b == 0) {
                bytes.extend_from_slice(piece.get(..end).unwrap_or_default());
                return Ok(text::clip(&String::from_utf8_lossy(&bytes), max));
            }
            bytes.extend_from_slice(&piece);
            at = at.plus(u64::try_from(len).unwrap_or(1));
        }
        Ok(text::clip(&String::from_utf8_lossy(&bytes), max))
    }

    /// A `str` of at most the limit's bytes, clipped with an ellipsis. Lone surrogates become U+FFFD.
    pub(crate) fn string(&self, object: Addr) -> Result<String, Fault> {
        self.string_up_to(object, self.limits.string_bytes)
    }

    pub(crate) fn string_up_to(&self, object: Addr, max: usize) -> Result<String, Fault> {
        if !self.type_of(object)?.is_str() {
            return Err(Fault::Invalid("not a string"));
        }
        let length = self.i64(self.member(object, F::unicode_object_length))?;
        let length =
            usize::try_from(length).map_err(|_| Fault::Invalid("a string of negative length"))?;
        let state = self.u32(self.member(object, F::unicode_object_state))?;
        // The bit-field begins with `interned`, two bits wide, but a whole byte in free-threaded builds.
        let bits = if self.runtime.free_threaded() {
            state >> 8
        } else {
            state >> 2
        };
        let (kind, compact, ascii) = (bits & 7, bits & 8 != 0, bits & 16 != 0);
        let width = match kind {
            1 => 1,
            2 => 2,
            4 => 4,
            _ => return Err(Fault::Invalid("a string of unknown kind")),
        };
        let data = if !compact {
            let size = self.offsets().get(F::unicode_object_size);
            self.pointer(object.plus(size.saturating_sub(8)))?
        } else if ascii {
            self.member(object, F::unicode_object_asciiobject_size)
        } else {
            object.plus(self.compact_unicode_size())
        };
        // One character more than fits shows whether something had to be left out.
        let read = length.min(max.saturating_add(1));
        let bytes = self.bytes(data, read.saturating_mul(width))?;
        let decoded = text::decode(&bytes, width);
        let clipped = text::clip(&decoded, max);
        self.take_text(clipped.len())?;
        Ok(clipped)
    }

    /// 3.14's table has no word for it: the two words `utf8_length` and `utf8` follow the ASCII object.
    fn compact_unicode_size(&self) -> u64 {
        let ascii = self.offsets().get(F::unicode_object_asciiobject_size);
        self.offsets()
            .find(F::unicode_object_compactunicodeobject_size)
            .unwrap_or(ascii.saturating_add(16))
    }

    /// Whether a `str` object is this text; cheap for strings of another length. ASCII only.
    pub(crate) fn string_is(&self, object: Addr, wanted: &str) -> bool {
        let length = self.i64(self.member(object, F::unicode_object_length));
        length.ok().and_then(|l| usize::try_from(l).ok()) == Some(wanted.len())
            && self
                .string_up_to(object, wanted.len())
                .is_ok_and(|text| text == wanted)
    }

    /// A `bytes` object, refused when longer than `max`.
    pub(crate) fn bytes_object(&self, object: Addr, max: usize) -> Result<Vec<u8>, Fault> {
        if !self.type_of(object)?.is_bytes() {
            return Err(Fault::Invalid("not bytes"));
        }
        let size = self.size(object, F::bytes_object_ob_size)?;
        if size > max {
            return Err(Fault::Limit("length of a bytes object"));
        }
        self.bytes(self.member(object, F::bytes_object_ob_sval), size)
    }

    /// The number of items of an object whose count stands at this member.
    pub(crate) fn size(&self, object: Addr, field: F) -> Result<usize, Fault> {
        let size = self.i64(self.member(object, field))?;
        usize::try_from(size).map_err(|_| Fault::Invalid("a negative size"))
    }

    /// An `int` in decimal, or its size where it has more than some thousand bits.
    pub(crate) fn int(&self, object: Addr) -> Result<String, Fault> {
        let tag = self.u64(self.member(object, F::long_object_lv_tag))?;
        let digits =
            usize::try_from(tag >> 3).map_err(|_| Fault::Invalid("an int of impossible size"))?;
        if digits > MAX_DIGITS {
            return Ok(format!("<int of about {} bits>", digits.saturating_mul(30)));
        }
        let bytes = self.bytes(
            self.member(object, F::long_object_ob_digit),
            digits.saturating_mul(4),
        )?;
        let digits: Vec<u32> = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|d| u32::from_le_bytes(*d))
            .collect();
        text::decimal(&digits, tag & 3 == 2).ok_or(Fault::Invalid("an int with impossible digits"))
    }

    /// An `int` of up to three digits, of 30 bits each, as a number.
    pub(crate) fn small_int(&self, object: Addr) -> Result<u64, Fault> {
        if !self.type_of(object)?.is_int() {
            return Err(Fault::Invalid("not an int"));
        }
        let tag = self.u64(self.member(object, F::long_object_lv_tag))?;
        if tag & 3 == 2 || tag >> 3 > 3 {
            return Err(Fault::Invalid("not a small positive int"));
        }
        let digits = self.member(object, F::long_object_ob_digit);
        let mut value: u64 = 0;
        for n in (0..tag >> 3).rev() {
            let digit = self.u32(digits.plus(n.saturating_mul(4)))?;
            value = value.wrapping_shl(30) | u64::from(digit);
        }
        Ok(value)
    }

    /// The live entries of a set.
    pub(crate) fn set_items(&self, set: Addr, max: usize) -> Result<Vec<Addr>, Fault> {
        let mask = self.u64(self.member(set, F::set_object_mask))?;
        let used = self.size(set, F::set_object_used)?;
        if mask > MAX_SET_TABLE {
            return Err(Fault::Invalid("a set of impossible size"));
        }
        let table = self.pointer(self.member(set, F::set_object_table))?;
        let entries = usize::try_from(mask).unwrap_or(0).saturating_add(1);
        let mut items = Vec::new();
        self.entries(table, entries, 16, |entry| {
            let (words, _) = entry.as_chunks::<8>();
            if let [key, hash] = words {
                let (key, hash) = (u64::from_le_bytes(*key), u64::from_le_bytes(*hash));
                // Removed entries hold a placeholder whose hash is -1, which no object has.
                if key != 0 && hash != u64::MAX {
                    items.push(Addr(key));
                }
            }
            if items.len() >= used.min(max) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        if used > max {
            self.problem("a set has more members than the limit: the others are left out");
        }
        Ok(items)
    }

    /// Visits equally long entries of an array, reading some KiB at a time.
    fn entries(
        &self,
        at: Addr,
        count: usize,
        width: usize,
        mut visit: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let per_read = PAGE.checked_div(width).unwrap_or(1).max(1);
        let mut done = 0_usize;
        while done < count {
            let now = per_read.min(count.saturating_sub(done));
            let offset = u64::try_from(done.saturating_mul(width)).unwrap_or(u64::MAX);
            let bytes = self.bytes(at.plus(offset), now.saturating_mul(width))?;
            for entry in bytes.chunks_exact(width) {
                if visit(entry).is_break() {
                    return Ok(());
                }
            }
            done = done.saturating_add(now);
        }
        Ok(())
    }

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

    /// Visits the entries of a keys object, with the values of a split table where there are some.
    /// The layout has been the same since 3.12: `Include/internal/pycore_dict.h`.
    fn keys_entries(
        &self,
        keys: Addr,
        values: Addr,
        mut visit: impl FnMut(Addr, Addr) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
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
        let entries = keys
            .plus(32)
            .plus(1_u64.checked_shl(u32::from(log2_index_bytes)).unwrap_or(0));
        if count > self.limits.dict_entries {
            self.problem("a dict has more entries than the limit: the others are left out");
        }
        let count = count.min(self.limits.dict_entries);
        let split = if kind == 2 && !values.is_null() {
            Some(values.plus(8))
        } else {
            None
        };
        let width = if kind == 0 { 24 } else { 16 };
        let mut index = 0_u64;
        let mut failed = None;
        self.entries(entries, count, width, |entry| {
            let (words, _) = entry.as_chunks::<8>();
            let (key, value) = match words {
                [_, key, value] | [key, value] => {
                    (u64::from_le_bytes(*key), u64::from_le_bytes(*value))
                }
                _ => return ControlFlow::Break(()),
            };
            let value = match split {
                None => Addr(value),
                Some(values) => match self.pointer(values.plus(index.saturating_mul(8))) {
                    Ok(value) => value,
                    Err(fault) => {
                        failed = Some(fault);
                        return ControlFlow::Break(());
                    }
                },
            };
            index = index.saturating_add(1);
            if key == 0 || value.is_null() {
                return ControlFlow::Continue(());
            }
            visit(Addr(key), value)
        })?;
        failed.map_or(Ok(()), Err)
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
    pub(crate) fn attribute(&self, object: Addr, name: &str) -> Result<Option<Addr>, Fault> {
        let kind = self.type_of(object)?;
        if !kind.managed_dict() {
            return Ok(None);
        }
        // Before the object stand its garbage collector's header (two words, GIL builds only), then the managed dict.
        let dict = self.pointer(object.minus(if self.runtime.free_threaded() { 8 } else { 24 }))?;
        if !dict.is_null() {
            return self.dict_get(dict, name);
        }
        if !kind.inline_values() {
            return Ok(None);
        }
        let class = self.pointer(self.member(object, F::pyobject_ob_type))?;
        // `tp_basicsize` follows `tp_name`. Values are valid where their fourth byte says so.
        let basic_size = self.u64(self.member(class, F::type_object_tp_name).plus(8))?;
        let values = object.plus(basic_size);
        if basic_size > 1 << 20 || self.u8(values.plus(3))? == 0 {
            return Ok(None);
        }
        let keys = self.pointer(class.plus(self.cached_keys_offset()))?;
        let mut found = None;
        self.keys_entries(keys, values, |key, value| {
            self.take_if_named(key, value, name, &mut found)
        })?;
        Ok(found)
    }

    /// `PyHeapTypeObject.ht_cached_keys`. 3.14's table has no word for it: it follows the type, its 71 slots of
    /// methods and three names.
    fn cached_keys_offset(&self) -> u64 {
        self.offsets()
            .find(F::heap_type_object_ht_cached_keys)
            .unwrap_or(self.offsets().get(F::type_object_size).saturating_add(464))
    }
}
