//! Instances of classes written in Python: their attributes, members of enumerations, named tuples, exceptions.

use std::ops::ControlFlow;

use crate::decoder::{Decoder, Fault};
use crate::local::container::{Listing, MAX_ITEMS};
use crate::local::value::Depth;
use crate::memory::{Addr, Memory};
use crate::object::{Order, Type};
use crate::offsets::Field as F;
use crate::text;

/// Attributes that are looked at, absent ones counted.
const MAX_SCANNED: usize = 128;
/// Characters of an attribute's name.
const MAX_NAME: usize = 256;
/// Classes of one instance that may have `__slots__`.
const MAX_BASES: usize = 16;
/// `Py_T_OBJECT_EX`, the kind of a member that a slot is.
const SLOT: i32 = 16;

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// An instance by its attributes, one inside another value by its address: `<app.Order id=7 state='open'>`.
    pub(crate) fn instance(
        &self,
        object: Addr,
        kind: &Type,
        depth: Depth,
    ) -> Result<String, Fault> {
        if depth != Depth::Whole || !kind.is_heap() {
            return Ok(self.by_address(object, kind));
        }
        // Attributes that cannot be read leave the address.
        let attributes = match self.all_attributes(object, kind) {
            Ok(attributes) => attributes,
            Err(fault @ Fault::Limit(_)) => return Err(fault),
            Err(_) => Vec::new(),
        };
        if attributes.is_empty() {
            return Ok(self.by_address(object, kind));
        }
        let mut text = format!("<{}", self.full_name(kind));
        let mut listing = Listing::new();
        for (attribute, value) in &attributes {
            if !listing.wants_more() {
                text.push_str(" …");
                break;
            }
            let shown = format!("{attribute}={}", self.named_item(attribute, *value, depth)?);
            listing.push(&shown);
            text.push(' ');
            text.push_str(&shown);
        }
        text.push('>');
        Ok(text)
    }

    /// The attributes in `__slots__` and in the instance's dict, one more than are shown.
    fn all_attributes(&self, object: Addr, kind: &Type) -> Result<Vec<(String, Addr)>, Fault> {
        let mut found = Vec::new();
        self.slots(object, kind.address, &mut found)?;
        self.attributes(object, MAX_SCANNED, Order::OfValues, |key, value| {
            if let Ok((points, _)) = self.code_points(key, MAX_NAME) {
                found.push((text::characters(&points), value));
            }
            if found.len() > MAX_ITEMS {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        Ok(found)
    }

    /// `__slots__` are members of the class, `{name, type, offset, flags, doc}` in five words, up to one without a name.
    /// `tp_members` follows `tp_flags` after eight other words.
    fn slots(
        &self,
        object: Addr,
        class: Addr,
        found: &mut Vec<(String, Addr)>,
    ) -> Result<(), Fault> {
        let mut classes = Vec::new();
        let mut at = class;
        while !at.is_null() && classes.len() < MAX_BASES {
            let flags = self.u64(self.member(at, F::type_object_tp_flags))?;
            if flags & (1 << 9) == 0 {
                break;
            }
            classes.push(at);
            at = self.type_base(at)?;
        }
        for class in classes.into_iter().rev() {
            let mut member = self.pointer(self.member(class, F::type_object_tp_flags).plus(72))?;
            while !member.is_null() && found.len() <= MAX_ITEMS {
                let name = self.pointer(member)?;
                if name.is_null() {
                    break;
                }
                if self.i32(member.plus(8))? == SLOT {
                    let offset = self.u64(member.plus(16))?;
                    let value = self.pointer(object.plus(offset))?;
                    if offset > 0 && !value.is_null() {
                        found.push((self.c_string(name, MAX_NAME)?, value));
                    }
                }
                member = member.plus(40);
            }
        }
        Ok(())
    }

    /// A member of an enumeration, which is known by its class's class: `<Color.RED: 1>`.
    pub(crate) fn enum_member(
        &self,
        object: Addr,
        kind: &Type,
        depth: Depth,
    ) -> Result<Option<String>, Fault> {
        if !kind.managed_dict() || !self.is_enum(kind)? {
            return Ok(None);
        }
        let mut name = None;
        let mut value = None;
        self.attributes(object, MAX_SCANNED, Order::OfKeys, |key, attribute| {
            if self.string_is(key, "_name_") {
                name = Some(attribute);
            } else if self.string_is(key, "_value_") {
                value = Some(attribute);
            }
            if name.is_some() && value.is_some() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        let (Some(name), Some(value)) = (name, value) else {
            return Ok(None);
        };
        // A combination of flags that has no name has `None`.
        let (member, value) = if self.type_of(name)?.is_str() {
            let name = self.name_of(name)?;
            let value = self.named_item(&name, value, depth)?;
            (format!("{}.{name}", kind.short_name()), value)
        } else {
            (kind.short_name().to_owned(), self.item(value, depth)?)
        };
        Ok(Some(format!("<{member}: {value}>")))
    }

    /// Whether the class of a class is `enum.EnumType`, or derived from it.
    fn is_enum(&self, kind: &Type) -> Result<bool, Fault> {
        let meta = self.type_of(kind.address)?;
        let mut at = meta.address;
        for _ in 0..MAX_BASES {
            let flags = self.u64(self.member(at, F::type_object_tp_flags))?;
            if flags & (1 << 9) == 0 {
                break;
            }
            let name = self.pointer(self.member(at, F::type_object_tp_name))?;
            if self.c_string(name, 16)? == "EnumType" {
                return Ok(true);
            }
            at = self.type_base(at)?;
            if at.is_null() {
                break;
            }
        }
        Ok(false)
    }

    /// A name that stands in a value's text.
    pub(crate) fn name_of(&self, string: Addr) -> Result<String, Fault> {
        let (points, length) = self.code_points(string, MAX_NAME)?;
        let mut name = text::characters(&points);
        if points.len() < length {
            name.push('…');
        }
        Ok(name)
    }

    /// A tuple whose class names its fields in `_fields`: `Point(x=1, y=2)`.
    pub(crate) fn named_tuple(
        &self,
        object: Addr,
        kind: &Type,
        depth: Depth,
    ) -> Result<Option<String>, Fault> {
        let Some(fields) = self.class_attribute(kind.address, "_fields")? else {
            return Ok(None);
        };
        if !self.type_of(fields)?.is_tuple() {
            return Ok(None);
        }
        let length = self.size(object, F::tuple_object_ob_size)?;
        if length != self.size(fields, F::tuple_object_ob_size)? {
            return Ok(None);
        }
        let shown = match depth {
            Depth::Whole => length.min(MAX_ITEMS),
            Depth::Item | Depth::Part => 0,
        };
        let names = self.addresses(self.member(fields, F::tuple_object_ob_item), shown)?;
        let values = self.addresses(self.member(object, F::tuple_object_ob_item), shown)?;
        let mut listing = Listing::new();
        for (name, value) in names.into_iter().zip(values) {
            if !listing.wants_more() {
                break;
            }
            let name = self.name_of(name)?;
            let value = self.named_item(&name, value, depth)?;
            listing.push(&format!("{name}={value}"));
        }
        Ok(Some(listing.close(
            &format!("{}(", kind.short_name()),
            ")",
            length,
        )))
    }

    /// An exception by its arguments: `ValueError('no such thing', 3)`. Its dict, then `args`, follow the head.
    pub(crate) fn exception(
        &self,
        object: Addr,
        kind: &Type,
        depth: Depth,
    ) -> Result<String, Fault> {
        let name = kind.short_name();
        let args = self.pointer(self.member(object, F::pyobject_size).plus(8))?;
        if args.is_null() || !self.type_of(args)?.is_tuple() {
            return Ok(format!("{name}()"));
        }
        let text = self.tuple(args, depth)?;
        // A single argument has no comma behind it.
        Ok(match text.strip_suffix(",)") {
            Some(text) => format!("{name}{text})"),
            None => format!("{name}{text}"),
        })
    }
}
