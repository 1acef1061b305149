//! Values as Python's `repr` writes them, as far as memory alone tells; nothing of the target is called.
//!
//! A value is shown with what it holds, and that with nothing more: `{'rows': […] (len 12), 'owner': <app.User at
//! 0x7f…>}`. What is left out is told by an ellipsis and the length. What a class's own `__repr__` would say is not
//! known: its instances are shown by their attributes, those of a class derived from a built-in type by that type's
//! text in angle brackets.

use crate::decoder::{Decoder, Fault};
use crate::local::kind::{Family, Lineage};
use crate::local::secret::{is_secret_name, is_secret_text};
use crate::memory::{Addr, Memory};
use crate::object::Type;
use crate::offsets::Field as F;
use crate::text;

/// What stands for a secret that has no length.
pub(crate) const MASKED: &str = "***";
/// Bytes of one text inside another value.
const ITEM_TEXT: usize = 96;
/// Code points of a text inside another value that are read, more than are shown: a secret is known by all of it.
const ITEM_READ: usize = 256;
/// Digits of 30 bits of an int inside another value.
const ITEM_DIGITS: usize = 9;

/// How much of a value is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// With what it holds.
    Whole,
    /// As a part of another value, without what it holds.
    Item,
    /// As a part of a part: numbers, texts and names only. This is where a value that holds itself ends.
    Part,
}

impl Depth {
    fn inside(self) -> Self {
        match self {
            Self::Whole => Self::Item,
            Self::Item | Self::Part => Self::Part,
        }
    }
}

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// The value of a variable. One that cannot be read says so in its place.
    pub(crate) fn value(&self, name: &str, object: Addr) -> Result<String, Fault> {
        let value = readable(object, self.named(name, object, Depth::Whole))?;
        // Names of attributes, classes and functions may be any text.
        let value = text::printable(value);
        let clipped = text::clip(&value, self.limits.string_bytes.saturating_mul(4));
        self.take_text(clipped.len())?;
        Ok(clipped)
    }

    /// A value that has a name, which may say that it is a secret.
    pub(crate) fn named(&self, name: &str, object: Addr, depth: Depth) -> Result<String, Fault> {
        if is_secret_name(name) {
            self.masked(object, depth)
        } else {
            self.shown(object, depth)
        }
    }

    /// A value inside another one, which is shown to this depth. One that cannot be read does not take the others with
    /// it.
    pub(crate) fn item(&self, object: Addr, of: Depth) -> Result<String, Fault> {
        readable(object, self.shown(object, of.inside()))
    }

    /// A value inside another one where it has a name.
    pub(crate) fn named_item(&self, name: &str, object: Addr, of: Depth) -> Result<String, Fault> {
        readable(object, self.named(name, object, of.inside()))
    }

    /// An object by its type and address.
    pub(crate) fn by_address(&self, object: Addr, kind: &Type) -> String {
        format!("<{} at {object}>", self.full_name(kind))
    }

    /// What stands for a secret: its length where it has one. Functions, classes and modules are none, whatever their
    /// name, and the type alone tells that a value is `None`.
    pub(crate) fn masked(&self, object: Addr, depth: Depth) -> Result<String, Fault> {
        let kind = self.type_of(object)?;
        let len = |field| self.size(object, field);
        Ok(match self.lineage(&kind)?.family {
            Family::Nothing
            | Family::Class
            | Family::Function
            | Family::BuiltinFunction
            | Family::Method
            | Family::Module
            | Family::Code
            | Family::Generator
            | Family::Lock
            | Family::RLock => self.shown(object, depth)?,
            Family::Str => masked_text("", len(F::unicode_object_length)?),
            Family::Bytes => masked_text("b", len(F::bytes_object_ob_size)?),
            Family::ByteArray => {
                format!("bytearray({})", masked_text("b", len(F::pyobject_size)?))
            }
            Family::Tuple => masked_items(len(F::tuple_object_ob_size)?),
            Family::List => masked_items(len(F::list_object_ob_size)?),
            Family::Dict | Family::OrderedDict | Family::DefaultDict | Family::Deque => {
                masked_items(len(F::pyobject_size)?)
            }
            Family::Set | Family::FrozenSet => masked_items(len(F::set_object_used)?),
            _ => MASKED.to_owned(),
        })
    }

    /// A value as Python would write it.
    pub(crate) fn shown(&self, object: Addr, depth: Depth) -> Result<String, Fault> {
        let kind = self.type_of(object)?;
        let lineage = self.lineage(&kind)?;
        if depth == Depth::Part && !lineage.family.is_plain() {
            return Ok(self.by_address(object, &kind));
        }
        if let Some(text) = self.of_class(object, &kind, lineage, depth)? {
            return Ok(text);
        }
        let text = match lineage.family {
            Family::Object => return self.instance(object, &kind, depth),
            family => self.built_in(object, &kind, family, depth)?,
        };
        // A class that is derived from a built-in type and writes its values in a way that nobody knows here.
        if !lineage.exact
            && lineage.own_repr
            && !matches!(lineage.family, Family::Exception | Family::Class)
        {
            return Ok(if text.starts_with('<') {
                self.by_address(object, &kind)
            } else {
                format!("<{} {text}>", self.full_name(&kind))
            });
        }
        Ok(text)
    }

    /// Instances whose class says more of them than the built-in type it is derived from.
    fn of_class(
        &self,
        object: Addr,
        kind: &Type,
        lineage: Lineage,
        depth: Depth,
    ) -> Result<Option<String>, Fault> {
        if lineage.exact || !kind.is_heap() {
            return Ok(None);
        }
        if let Some(text) = self.enum_member(object, kind, depth)? {
            return Ok(Some(text));
        }
        if lineage.family == Family::Tuple && lineage.own_repr {
            return self.named_tuple(object, kind, depth);
        }
        Ok(None)
    }

    fn built_in(
        &self,
        object: Addr,
        kind: &Type,
        family: Family,
        depth: Depth,
    ) -> Result<String, Fault> {
        Ok(match family {
            Family::Nothing => "None".to_owned(),
            Family::Ellipsis => "Ellipsis".to_owned(),
            Family::NotImplemented => "NotImplemented".to_owned(),
            Family::Bool => match self.small_int(object)? {
                0 => "False".to_owned(),
                _ => "True".to_owned(),
            },
            Family::Int => self.whole_number(object, depth)?,
            Family::Float => text::float(self.f64(self.member(object, F::float_object_ob_fval))?),
            Family::Complex => {
                let real = self.member(object, F::pyobject_size);
                text::complex(self.f64(real)?, self.f64(real.plus(8))?)
            }
            Family::Str => self.text(object, depth)?,
            Family::Bytes => {
                let size = self.size(object, F::bytes_object_ob_size)?;
                self.data(self.member(object, F::bytes_object_ob_sval), size, depth)?
            }
            Family::ByteArray => {
                // After the size stand `ob_alloc` and `ob_bytes`, then where the data begins.
                let head = self.member(object, F::pyobject_size);
                let size = self.size(object, F::pyobject_size)?;
                let data = self.data(self.pointer(head.plus(24))?, size, depth)?;
                format!("{}({data})", kind.short_name())
            }
            Family::Tuple
            | Family::List
            | Family::Dict
            | Family::OrderedDict
            | Family::DefaultDict
            | Family::MappingProxy
            | Family::Namespace
            | Family::DictKeys
            | Family::DictValues
            | Family::DictItems
            | Family::Set
            | Family::FrozenSet
            | Family::Deque => self.container(object, kind, family, depth)?,
            Family::Range | Family::Slice => self.bounds(object, family, depth)?,
            Family::Exception => self.exception(object, kind, depth)?,
            Family::DateTime | Family::Date | Family::TimeDelta | Family::TimeZone => {
                self.time(object, family, depth)?
            }
            _ => self.machinery(object, kind, family, depth)?,
        })
    }

    /// An int, its leading digits where it is long.
    fn whole_number(&self, object: Addr, depth: Depth) -> Result<String, Fault> {
        let (digits, max) = match depth {
            Depth::Whole => (usize::MAX, self.limits.string_bytes),
            Depth::Item | Depth::Part => (ITEM_DIGITS, ITEM_TEXT),
        };
        let text = self.int_up_to(object, digits)?;
        if text.len() <= max {
            return Ok(text);
        }
        let count = text.trim_start_matches('-').len();
        let shown = text.get(..max).unwrap_or_default();
        Ok(format!("{shown}… ({count} digits)"))
    }

    /// A `str`, its beginning where it is long, masked where it looks like a secret.
    fn text(&self, object: Addr, depth: Depth) -> Result<String, Fault> {
        let (read, max) = self.text_bounds(depth);
        let (points, length) = self.code_points(object, read)?;
        if is_secret_text(&text::characters(&points), points.len() < length) {
            return Ok(masked_text("", length));
        }
        let (quoted, held) = text::quoted(&points, max);
        Ok(with_length(quoted, held, length))
    }

    /// The bytes of a `bytes` or a `bytearray`.
    fn data(&self, at: Addr, length: usize, depth: Depth) -> Result<String, Fault> {
        let (read, max) = self.text_bounds(depth);
        let bytes = match length.min(read) {
            0 => Vec::new(),
            read => self.bytes(at, read)?,
        };
        if is_secret_text(&text::decode(&bytes, 1), bytes.len() < length) {
            return Ok(masked_text("b", length));
        }
        let (quoted, held) = text::quoted_bytes(&bytes, max);
        Ok(with_length(quoted, held, length))
    }

    /// How many characters are read, and how many bytes are shown.
    fn text_bounds(&self, depth: Depth) -> (usize, usize) {
        match depth {
            Depth::Whole => (self.limits.string_bytes, self.limits.string_bytes),
            Depth::Item | Depth::Part => (ITEM_READ, ITEM_TEXT),
        }
    }
}

fn readable(object: Addr, shown: Result<String, Fault>) -> Result<String, Fault> {
    match shown {
        Err(Fault::Read(_) | Fault::Invalid(_)) => Ok(format!("<unreadable at {object}>")),
        other => other,
    }
}

fn with_length(quoted: String, held: usize, length: usize) -> String {
    if held < length {
        format!("{quoted}… (len {length})")
    } else {
        quoted
    }
}

fn masked_text(prefix: &str, length: usize) -> String {
    format!("{prefix}'{MASKED}' (len {length})")
}

fn masked_items(length: usize) -> String {
    format!("{MASKED} (len {length})")
}
