//! Python's built-in objects: types, strings, numbers and sets; dicts and attributes in their own file.

mod dict;

pub(crate) use dict::Order;

use std::cell::{OnceCell, RefCell};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use crate::coroutine::Awaitable;
use crate::decoder::{Decoder, Fault, HashMap, word_in};
use crate::local::kind::Lineage;
use crate::memory::{Addr, Memory, PAGE};
use crate::offsets::Field as F;
use crate::text;

/// No type's name is longer.
const MAX_TYPE_NAME: usize = 512;
/// Digits of 30 bits beyond which an int is shown by its size. Python itself refuses to write one of more than 4300
/// decimal digits: <https://docs.python.org/3/library/stdtypes.html#int-max-str-digits>.
const MAX_DIGITS: usize = 477;
/// Classes between one and asyncio's.
const MAX_BASES: usize = 64;
/// The bit of `tp_flags` of types that are made at run time, as classes are: `Py_TPFLAGS_HEAPTYPE`.
const HEAP_TYPE: u64 = 1 << 9;
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
    pub(crate) address: Addr,
    /// Its name with its module.
    pub(crate) full_name: OnceCell<String>,
    /// Which built-in type it is derived from.
    pub(crate) lineage: OnceCell<Lineage>,
    /// Whether it is asyncio's future written in C, or derived from it.
    future: OnceCell<bool>,
    /// Where its objects keep their attributes, when these stand in the objects.
    inline: OnceCell<InlineValues>,
}

/// Attributes that stand right behind the objects of a class, in the order of the keys that the class has for all.
#[derive(Debug)]
struct InlineValues {
    basic_size: u64,
    keys: Addr,
    /// The places of the attributes that were asked for.
    known: RefCell<Vec<(&'static str, Option<u64>)>>,
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
    pub(crate) fn inline_values(&self) -> bool {
        self.has(2)
    }
    pub(crate) fn managed_dict(&self) -> bool {
        self.has(4)
    }
    /// Whether it was made at run time: by a class statement, or by an extension from a description.
    pub(crate) fn is_heap(&self) -> bool {
        self.has(9)
    }
    pub(crate) fn is_exception(&self) -> bool {
        self.has(30)
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

/// Where the characters of a `str` stand.
struct StringData {
    data: Addr,
    /// How many there are.
    length: usize,
    /// Bytes of one.
    width: usize,
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
        // It is remembered: objects may have as many types as there are objects.
        self.take_result(size_of::<Type>().saturating_add(name.len()))?;
        let flags = self.u64(self.member(at, F::type_object_tp_flags))?;
        let found = Rc::new(Type {
            // A class of the target's own may have any name; the interpreter's are not made at run time.
            awaitable: if flags & HEAP_TYPE == 0 {
                Awaitable::of(&name)
            } else {
                Awaitable::Other
            },
            short: name.rsplit('.').next().unwrap_or(&name).into(),
            name,
            flags,
            address: at,
            full_name: OnceCell::new(),
            lineage: OnceCell::new(),
            future: OnceCell::new(),
            inline: OnceCell::new(),
        });
        self.types.borrow_mut().insert(Rc::clone(&found));
        Ok(found)
    }

    /// Whether objects of this type have the layout of asyncio's future: tasks have it, and classes derived from either.
    pub(crate) fn is_future_type(&self, kind: &Type) -> Result<bool, Fault> {
        if let Some(known) = kind.future.get() {
            return Ok(*known);
        }
        let future = self.asyncio_base(kind.address)?.is_some();
        Ok(*kind.future.get_or_init(|| future))
    }

    /// asyncio's own class, `Future` or `Task`, that the class at this address is or derives from.
    pub(crate) fn asyncio_base(&self, class: Addr) -> Result<Option<Addr>, Fault> {
        let mut at = class;
        for _ in 0..MAX_BASES {
            let name = self.pointer(self.member(at, F::type_object_tp_name))?;
            let name = self.c_string(name, MAX_TYPE_NAME)?;
            if name == "_asyncio.Future" || name == "_asyncio.Task" {
                return Ok(Some(at));
            }
            at = self.type_base(at)?;
            if at.is_null() {
                break;
            }
        }
        Ok(None)
    }

    /// The module object of a class that is written in C and was made by one. `ht_module` follows `ht_cached_keys`.
    pub(crate) fn module_of_class(&self, class: Addr) -> Result<Option<Addr>, Fault> {
        let module = self.pointer(class.plus(self.cached_keys_offset()).plus(8))?;
        if module.is_null() || self.type_of(module)?.name != "module" {
            return Ok(None);
        }
        Ok(Some(module))
    }

    /// `tp_base`, which follows `tp_flags` after ten other words.
    pub(crate) fn type_base(&self, class: Addr) -> Result<Addr, Fault> {
        self.pointer(self.member(class, F::type_object_tp_flags).plus(88))
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
        let string = self.string_data(object)?;
        // One character more than fits shows whether something had to be left out.
        let read = string.length.min(max.saturating_add(1));
        let bytes = self.bytes(string.data, read.saturating_mul(string.width))?;
        let decoded = text::decode(&bytes, string.width);
        let clipped = text::clip(&decoded, max);
        self.take_text(clipped.len())?;
        Ok(clipped)
    }

    /// The first code points of a `str`, and how many it has in all.
    pub(crate) fn code_points(&self, object: Addr, max: usize) -> Result<(Vec<u32>, usize), Fault> {
        let string = self.string_data(object)?;
        let read = string.length.min(max);
        let bytes = self.bytes(string.data, read.saturating_mul(string.width))?;
        Ok((text::code_points(&bytes, string.width), string.length))
    }

    fn string_data(&self, object: Addr) -> Result<StringData, Fault> {
        if !self.type_of(object)?.is_str() {
            return Err(Fault::Invalid("not a string"));
        }
        let length = self.size(object, F::unicode_object_length)?;
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
        Ok(StringData {
            data,
            length,
            width,
        })
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

    /// An `int` in decimal, or its size where it has more digits than Python would write.
    pub(crate) fn int(&self, object: Addr) -> Result<String, Fault> {
        self.int_up_to(object, MAX_DIGITS)
    }

    /// An `int` in decimal, or its size where it has more than so many digits of 30 bits.
    pub(crate) fn int_up_to(&self, object: Addr, max: usize) -> Result<String, Fault> {
        let tag = self.u64(self.member(object, F::long_object_lv_tag))?;
        let digits =
            usize::try_from(tag >> 3).map_err(|_| Fault::Invalid("an int of impossible size"))?;
        if digits > max.min(MAX_DIGITS) {
            let below = digits.saturating_sub(1);
            let highest = self.u32(
                self.member(object, F::long_object_ob_digit)
                    .plus(u64::try_from(below).unwrap_or(u64::MAX).saturating_mul(4)),
            )?;
            let bits = u64::try_from(below)
                .unwrap_or(u64::MAX)
                .saturating_mul(30)
                .saturating_add(u64::from(32_u32.saturating_sub(highest.leading_zeros())));
            let sign = if tag & 3 == 2 { "negative " } else { "" };
            return Ok(format!("<{sign}int of {bits} bits>"));
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
        let decimal = text::decimal(&digits, tag & 3 == 2)
            .ok_or(Fault::Invalid("an int with impossible digits"))?;
        self.take_text(decimal.len())?;
        Ok(decimal)
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

    /// An `int` of one digit as a number, `None` for anything else: in one read, for the names of a hundred thousand
    /// tasks.
    pub(crate) fn counter(&self, object: Addr) -> Result<Option<u64>, Fault> {
        let mut bytes = [0; 64];
        let digits = self.offsets().get(F::long_object_ob_digit);
        let digits = usize::try_from(digits).unwrap_or(usize::MAX);
        // A number of one digit ends after it; the object itself is a word longer at least.
        let Some(head) = digits.checked_add(4).and_then(|end| bytes.get_mut(..end)) else {
            return Ok(None);
        };
        self.read(object, head)?;
        let word = |field| word_in(head, self.offsets().get(field));
        let kind = word(F::pyobject_ob_type).ok_or(Fault::Invalid("not an object"))?;
        if !self.type_at(Addr(kind))?.is_int() {
            return Ok(None);
        }
        let tag = word(F::long_object_lv_tag).unwrap_or(u64::MAX);
        let digit = head.get(digits..).unwrap_or_default();
        Ok(match (tag >> 3, tag & 3, digit.try_into()) {
            (1, 0, Ok(digit)) => Some(u64::from(u32::from_le_bytes(digit))),
            _ => None,
        })
    }

    /// The live entries of a set.
    pub(crate) fn set_items(&self, set: Addr, max: usize) -> Result<Vec<Addr>, Fault> {
        let mask = self.u64(self.member(set, F::set_object_mask))?;
        if mask > MAX_SET_TABLE {
            return Err(Fault::Invalid("a set of impossible size"));
        }
        let scan = usize::try_from(mask).unwrap_or(0).saturating_add(1);
        let (items, used) = self.first_set_items(set, max, scan)?;
        if used > max {
            self.problem("a set has more members than the limit: the others are left out");
        }
        Ok(items)
    }

    /// The first live entries of a set in the order of its table, as iterating over it would give them, and how many
    /// it has. Not more than `scan` entries of the table are looked at.
    pub(crate) fn first_set_items(
        &self,
        set: Addr,
        max: usize,
        scan: usize,
    ) -> Result<(Vec<Addr>, usize), Fault> {
        let mask = self.u64(self.member(set, F::set_object_mask))?;
        let used = self.size(set, F::set_object_used)?;
        let table = self.pointer(self.member(set, F::set_object_table))?;
        let wanted = used.min(max);
        let mut items = Vec::new();
        if wanted == 0 {
            return Ok((items, used));
        }
        let entries = usize::try_from(mask)
            .unwrap_or(usize::MAX)
            .saturating_add(1)
            .min(scan);
        self.entries(table, entries, 16, |entry| {
            let (words, _) = entry.as_chunks::<8>();
            if let [key, hash] = words {
                let (key, hash) = (u64::from_le_bytes(*key), u64::from_le_bytes(*hash));
                if key != 0 && hash != u64::MAX {
                    items.push(Addr(key));
                }
            }
            if items.len() >= wanted {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        Ok((items, used))
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
}
