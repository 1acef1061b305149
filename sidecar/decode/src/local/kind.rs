//! What a type is: its full name, and the built-in type whose layout its instances have.

use std::ops::ControlFlow;

use crate::decoder::{Decoder, Fault};
use crate::memory::{Addr, Memory};
use crate::object::Type;
use crate::offsets::Field as F;

/// Classes between one and the built-in type it is derived from.
const MAX_BASES: usize = 64;
/// Names of a class's own that are looked through for its module. `__module__` is the first that a class statement sets.
const MAX_CLASS_NAMES: usize = 64;

/// A type written in C whose instances' layout is known here. A class written in Python has that of its nearest base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Nothing,
    Ellipsis,
    NotImplemented,
    Bool,
    Int,
    Float,
    Complex,
    Str,
    Bytes,
    ByteArray,
    Range,
    Slice,
    Tuple,
    List,
    Dict,
    OrderedDict,
    DefaultDict,
    MappingProxy,
    Namespace,
    DictKeys,
    DictValues,
    DictItems,
    Set,
    FrozenSet,
    Deque,
    Class,
    Function,
    BuiltinFunction,
    Method,
    Module,
    Code,
    Generator,
    Exception,
    Lock,
    RLock,
    Future,
    DateTime,
    Date,
    TimeDelta,
    TimeZone,
    /// Any other.
    Object,
}

impl Family {
    /// Whether a value's text holds no other value's.
    pub(crate) fn is_plain(self) -> bool {
        matches!(
            self,
            Self::Nothing
                | Self::Ellipsis
                | Self::NotImplemented
                | Self::Bool
                | Self::Int
                | Self::Float
                | Self::Complex
                | Self::Str
                | Self::Bytes
                | Self::ByteArray
                | Self::Class
                | Self::Function
        )
    }
}

/// `tp_name` of each.
const FAMILIES: &[(&str, Family)] = &[
    ("NoneType", Family::Nothing),
    ("ellipsis", Family::Ellipsis),
    ("NotImplementedType", Family::NotImplemented),
    ("bool", Family::Bool),
    ("int", Family::Int),
    ("float", Family::Float),
    ("complex", Family::Complex),
    ("str", Family::Str),
    ("bytes", Family::Bytes),
    ("bytearray", Family::ByteArray),
    ("range", Family::Range),
    ("slice", Family::Slice),
    ("tuple", Family::Tuple),
    ("list", Family::List),
    ("dict", Family::Dict),
    ("collections.OrderedDict", Family::OrderedDict),
    ("collections.defaultdict", Family::DefaultDict),
    ("mappingproxy", Family::MappingProxy),
    ("types.SimpleNamespace", Family::Namespace),
    ("dict_keys", Family::DictKeys),
    ("dict_values", Family::DictValues),
    ("dict_items", Family::DictItems),
    ("set", Family::Set),
    ("frozenset", Family::FrozenSet),
    ("collections.deque", Family::Deque),
    ("type", Family::Class),
    ("function", Family::Function),
    ("builtin_function_or_method", Family::BuiltinFunction),
    ("method", Family::Method),
    ("module", Family::Module),
    ("code", Family::Code),
    ("generator", Family::Generator),
    ("coroutine", Family::Generator),
    ("async_generator", Family::Generator),
    ("BaseException", Family::Exception),
    ("_thread.lock", Family::Lock),
    ("_thread.RLock", Family::RLock),
    ("_asyncio.Future", Family::Future),
    ("_asyncio.Task", Family::Future),
    ("datetime.datetime", Family::DateTime),
    ("datetime.date", Family::Date),
    ("datetime.timedelta", Family::TimeDelta),
    ("datetime.timezone", Family::TimeZone),
    ("object", Family::Object),
];

/// Where a type comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lineage {
    pub(crate) family: Family,
    /// Whether it is the built-in type itself.
    pub(crate) exact: bool,
    /// Whether its `repr` is not that of the built-in type.
    pub(crate) own_repr: bool,
}

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// The built-in type that a type is, or is derived from.
    pub(crate) fn lineage(&self, kind: &Type) -> Result<Lineage, Fault> {
        if let Some(known) = kind.lineage.get() {
            return Ok(*known);
        }
        let own_repr = self.u64(self.member(kind.address, F::type_object_tp_repr))?;
        let mut found = Lineage {
            family: Family::Object,
            exact: false,
            own_repr: true,
        };
        let mut at = kind.address;
        for _ in 0..MAX_BASES {
            let (name, heap) = if at == kind.address {
                (kind.name.clone(), kind.is_heap())
            } else {
                let flags = self.u64(self.member(at, F::type_object_tp_flags))?;
                (self.type_name(at)?, flags & (1 << 9) != 0)
            };
            // A class written in Python may have any name, but none with a module in it.
            let family = FAMILIES
                .iter()
                .find(|(known, _)| *known == name && (!heap || known.contains('.')));
            if let Some((_, family)) = family {
                let repr = self.u64(self.member(at, F::type_object_tp_repr))?;
                found = Lineage {
                    family: *family,
                    exact: at == kind.address,
                    own_repr: repr != own_repr,
                };
                break;
            }
            at = self.type_base(at)?;
            if at.is_null() {
                break;
            }
        }
        Ok(*kind.lineage.get_or_init(|| found))
    }

    /// `tp_name` of a type.
    fn type_name(&self, class: Addr) -> Result<String, Fault> {
        let name = self.pointer(self.member(class, F::type_object_tp_name))?;
        self.c_string(name, 64)
    }

    /// The name with which Python shows a type: `module.qualname`, without the module for built-in types.
    pub(crate) fn full_name(&self, kind: &Type) -> String {
        kind.full_name
            .get_or_init(|| self.read_full_name(kind))
            .clone()
    }

    /// Types written in C have their module in `tp_name`, those of builtins none. A class written in Python has it in
    /// its dict. What cannot be read is left out: the name alone says much.
    fn read_full_name(&self, kind: &Type) -> String {
        if !kind.is_heap() || kind.name.contains('.') {
            return kind
                .name
                .strip_prefix("builtins.")
                .unwrap_or(&kind.name)
                .to_owned();
        }
        let before_keys = self.cached_keys_offset().saturating_sub(8);
        let name = self
            .pointer(kind.address.plus(before_keys))
            .and_then(|name| self.string(name))
            .unwrap_or_else(|_| kind.name.clone());
        match self.class_attribute(kind.address, "__module__") {
            Ok(Some(module)) => match self.string(module) {
                Ok(module) if module != "builtins" => format!("{module}.{name}"),
                _ => name,
            },
            _ => name,
        }
    }

    /// An attribute that stands in a class's own dict, among the first. `tp_dict` follows `tp_base`.
    pub(crate) fn class_attribute(&self, class: Addr, name: &str) -> Result<Option<Addr>, Fault> {
        let dict = self.pointer(self.member(class, F::type_object_tp_flags).plus(96))?;
        if dict.is_null() || !self.type_of(dict)?.is_dict() {
            return Ok(None);
        }
        let mut found = None;
        self.first_dict_entries(dict, MAX_CLASS_NAMES, |key, value| {
            if self.string_is(key, name) {
                found = Some(value);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }
}
