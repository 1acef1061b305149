//! Containers: their first items and how many there are.

use std::ops::ControlFlow;

use crate::decoder::{Decoder, Fault};
use crate::local::kind::Family;
use crate::local::secret::is_secret_name;
use crate::local::value::Depth;
use crate::memory::{Addr, Memory};
use crate::object::Type;
use crate::offsets::Field as F;
use crate::text;

/// Items of one container that are shown.
pub(crate) const MAX_ITEMS: usize = 16;
/// Bytes after which no further item is shown.
const MAX_BYTES: usize = 1024;
/// Entries of a table that are looked at, empty ones counted.
const MAX_SCANNED: usize = 1024;
/// Characters of a name of a secret.
const MAX_NAME: usize = 256;
/// Items of one block of a deque, `BLOCKLEN` in Modules/_collectionsmodule.c.
const DEQUE_BLOCK: u64 = 64;

/// A container's text while it is written.
pub(crate) struct Listing {
    text: String,
    shown: usize,
}

impl Listing {
    pub(crate) fn new() -> Self {
        Self {
            text: String::new(),
            shown: 0,
        }
    }

    /// Whether another item is wanted.
    pub(crate) fn wants_more(&self) -> bool {
        self.shown < MAX_ITEMS && self.text.len() < MAX_BYTES
    }

    pub(crate) fn push(&mut self, item: &str) {
        if self.shown > 0 {
            self.text.push_str(", ");
        }
        self.text.push_str(item);
        self.shown = self.shown.saturating_add(1);
    }

    /// The items between brackets, with the length where it has more of them.
    pub(crate) fn close(mut self, open: &str, close: &str, length: usize) -> String {
        if self.shown == 1 && length == 1 && open == "(" {
            self.text.push(',');
        }
        if self.shown >= length {
            return format!("{open}{}{close}", self.text);
        }
        if self.shown > 0 {
            self.text.push_str(", ");
        }
        format!("{open}{}…{close} (len {length})", self.text)
    }
}

/// Entries between these brackets, as far as they are shown.
fn entries_of(
    entries: &[(Addr, Addr)],
    open: &str,
    close: &str,
    length: usize,
    text: impl Fn(Addr, Addr) -> Result<String, Fault>,
) -> Result<String, Fault> {
    let mut listing = Listing::new();
    for (key, value) in entries {
        if !listing.wants_more() {
            break;
        }
        listing.push(&text(*key, *value)?);
    }
    Ok(listing.close(open, close, length))
}

impl<M: Memory + ?Sized> Decoder<'_, M> {
    pub(crate) fn container(
        &self,
        object: Addr,
        kind: &Type,
        family: Family,
        depth: Depth,
    ) -> Result<String, Fault> {
        let name = kind.short_name();
        match family {
            Family::Tuple => self.tuple(object, depth),
            Family::List => {
                let length = self.size(object, F::list_object_ob_size)?;
                let items = self.pointer(self.member(object, F::list_object_ob_item))?;
                self.sequence("[", "]", items, length, depth)
            }
            Family::Dict => self.mapping(object, "{", "}", depth),
            Family::OrderedDict => {
                let length = self.size(object, F::pyobject_size)?;
                if length == 0 {
                    return Ok(format!("{name}()"));
                }
                let entries = match depth {
                    Depth::Whole => self.first_ordered_entries(object)?,
                    Depth::Item | Depth::Part => Vec::new(),
                };
                entries_of(
                    &entries,
                    &format!("{name}({{"),
                    "})",
                    length,
                    |key, value| self.entry(key, value, ": "),
                )
            }
            Family::DefaultDict => {
                let factory = self.pointer(self.member(object, F::dict_object_size))?;
                let factory = if factory.is_null() {
                    "None".to_owned()
                } else {
                    self.item(factory, depth)?
                };
                self.mapping(object, &format!("{name}({factory}, {{"), "})", depth)
            }
            Family::Namespace => self.namespace(object, depth),
            Family::MappingProxy | Family::DictKeys | Family::DictValues | Family::DictItems => {
                self.view(object, name, family, depth)
            }
            Family::Set | Family::FrozenSet => self.set(object, name, family, depth),
            _ => self.deque(object, name, depth),
        }
    }

    pub(crate) fn tuple(&self, object: Addr, depth: Depth) -> Result<String, Fault> {
        let length = self.size(object, F::tuple_object_ob_size)?;
        let items = self.member(object, F::tuple_object_ob_item);
        self.sequence("(", ")", items, length, depth)
    }

    /// References that stand one behind the other.
    fn sequence(
        &self,
        open: &str,
        close: &str,
        items: Addr,
        length: usize,
        depth: Depth,
    ) -> Result<String, Fault> {
        let mut listing = Listing::new();
        if depth == Depth::Whole {
            let addresses = self.addresses(items, length.min(MAX_ITEMS))?;
            self.list(&mut listing, &addresses)?;
        }
        Ok(listing.close(open, close, length))
    }

    /// So many references, read at once.
    pub(crate) fn addresses(&self, at: Addr, count: usize) -> Result<Vec<Addr>, Fault> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let bytes = self.bytes(at, count.saturating_mul(8))?;
        let (words, _) = bytes.as_chunks::<8>();
        Ok(words
            .iter()
            .map(|word| Addr(u64::from_le_bytes(*word)))
            .collect())
    }

    /// Items one after the other. What follows a name of a secret is one: `['--password', …]`, `('Cookie', …)`.
    fn list(&self, listing: &mut Listing, items: &[Addr]) -> Result<(), Fault> {
        let mut secret = false;
        for item in items {
            if !listing.wants_more() {
                break;
            }
            // An array that is being built has empty places.
            let text = if item.is_null() {
                "<NULL>".to_owned()
            } else if secret {
                self.masked_item(*item)?
            } else {
                self.item(*item, Depth::Whole)?
            };
            secret = self.is_secret_key(*item);
            listing.push(&text);
        }
        Ok(())
    }

    fn masked_item(&self, object: Addr) -> Result<String, Fault> {
        // Any name of a secret will do.
        self.named_item("secret", object, Depth::Whole)
    }

    /// Whether an object is a text that names a secret: a word, with no blank in it.
    fn is_secret_key(&self, object: Addr) -> bool {
        self.key_name(object)
            .is_some_and(|name| !name.contains(char::is_whitespace) && is_secret_name(&name))
    }

    /// A dict's key as a name: a `str`, or `bytes` as the headers of many servers.
    fn key_name(&self, key: Addr) -> Option<String> {
        let kind = self.type_of(key).ok()?;
        if kind.is_str() {
            let (points, _) = self.code_points(key, MAX_NAME).ok()?;
            return Some(text::characters(&points));
        }
        if kind.is_bytes() {
            let size = self.size(key, F::bytes_object_ob_size).ok()?;
            let at = self.member(key, F::bytes_object_ob_sval);
            return Some(text::decode(&self.bytes(at, size.min(MAX_NAME)).ok()?, 1));
        }
        None
    }

    /// The first entries of a dict.
    fn first_entries(&self, dict: Addr) -> Result<Vec<(Addr, Addr)>, Fault> {
        let mut entries = Vec::new();
        self.first_dict_entries(dict, MAX_SCANNED, |key, value| {
            entries.push((key, value));
            if entries.len() >= MAX_ITEMS {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        Ok(entries)
    }

    /// `key: value` between brackets.
    fn mapping(&self, dict: Addr, open: &str, close: &str, depth: Depth) -> Result<String, Fault> {
        // `ma_used` is the first member after the object's head.
        let length = self.size(dict, F::pyobject_size)?;
        let entries = self.shown_entries(dict, length, depth)?;
        entries_of(&entries, open, close, length, |key, value| {
            self.entry(key, value, ": ")
        })
    }

    /// The entries of a dict that are shown at this depth.
    fn shown_entries(
        &self,
        dict: Addr,
        length: usize,
        depth: Depth,
    ) -> Result<Vec<(Addr, Addr)>, Fault> {
        match depth {
            Depth::Whole if length > 0 => self.first_entries(dict),
            _ => Ok(Vec::new()),
        }
    }

    fn entry(&self, key: Addr, value: Addr, between: &str) -> Result<String, Fault> {
        let name = self.key_name(key).unwrap_or_default();
        let value = self.named_item(&name, value, Depth::Whole)?;
        Ok(format!("{}{between}{value}", self.item(key, Depth::Whole)?))
    }

    /// Views of dicts: the dict is the first member after the object's head.
    fn view(
        &self,
        object: Addr,
        name: &str,
        family: Family,
        depth: Depth,
    ) -> Result<String, Fault> {
        let dict = self.pointer(self.member(object, F::pyobject_size))?;
        if dict.is_null() || !self.type_of(dict)?.is_dict() {
            return Ok(format!("{name}(…)"));
        }
        if family == Family::MappingProxy {
            return self.mapping(dict, &format!("{name}({{"), "})", depth);
        }
        let length = self.size(dict, F::pyobject_size)?;
        let entries = self.shown_entries(dict, length, depth)?;
        entries_of(
            &entries,
            &format!("{name}(["),
            "])",
            length,
            |key, value| match family {
                Family::DictKeys => self.item(key, Depth::Whole),
                Family::DictValues => {
                    let name = self.key_name(key).unwrap_or_default();
                    self.named_item(&name, value, Depth::Whole)
                }
                _ => Ok(format!("({})", self.entry(key, value, ", ")?)),
            },
        )
    }

    /// `types.SimpleNamespace`: its dict is the first member after the head.
    fn namespace(&self, object: Addr, depth: Depth) -> Result<String, Fault> {
        let dict = self.pointer(self.member(object, F::pyobject_size))?;
        if !self.type_of(dict)?.is_dict() {
            return Err(Fault::Invalid("not a dict"));
        }
        let length = self.size(dict, F::pyobject_size)?;
        let entries = self.shown_entries(dict, length, depth)?;
        entries_of(&entries, "namespace(", ")", length, |key, value| {
            let name = self.key_name(key).unwrap_or_default();
            Ok(format!("{name}={}", self.named_item(&name, value, depth)?))
        })
    }

    fn set(&self, object: Addr, name: &str, family: Family, depth: Depth) -> Result<String, Fault> {
        let length = self.size(object, F::set_object_used)?;
        if length == 0 {
            return Ok(format!("{name}()"));
        }
        let mut listing = Listing::new();
        if depth == Depth::Whole {
            let (items, _) = self.first_set_items(object, MAX_ITEMS, MAX_SCANNED)?;
            for item in items {
                if !listing.wants_more() {
                    break;
                }
                listing.push(&self.item(item, Depth::Whole)?);
            }
        }
        Ok(if family == Family::Set && name == "set" {
            listing.close("{", "}", length)
        } else {
            listing.close(&format!("{name}({{"), "})", length)
        })
    }

    /// A deque is a chain of blocks: after its size stand the first and the last block, where in them it begins and
    /// ends, a counter of changes, and its bound.
    fn deque(&self, object: Addr, name: &str, depth: Depth) -> Result<String, Fault> {
        let head = self.member(object, F::pyobject_size);
        let length = self.size(object, F::pyobject_size)?;
        let bound = self.i64(head.plus(48))?;
        let close = if bound < 0 {
            "])".to_owned()
        } else {
            format!("], maxlen={bound})")
        };
        let mut listing = Listing::new();
        if depth == Depth::Whole {
            let mut items = Vec::new();
            let mut block = self.pointer(head.plus(8))?;
            let mut index = self.u64(head.plus(24))?;
            while items.len() < length.min(MAX_ITEMS) && !block.is_null() {
                let left = length.min(MAX_ITEMS).saturating_sub(items.len());
                let here = DEQUE_BLOCK.saturating_sub(index);
                let count = usize::try_from(here).unwrap_or(0).min(left);
                if count == 0 && index != DEQUE_BLOCK {
                    break;
                }
                // A block: the link to the one before, its items, the link to the one behind.
                let first = block.plus(8).plus(index.saturating_mul(8));
                items.extend(self.addresses(first, count)?);
                block = if count < left {
                    self.pointer(block.plus(8).plus(DEQUE_BLOCK.saturating_mul(8)))?
                } else {
                    Addr(0)
                };
                index = 0;
            }
            self.list(&mut listing, &items)?;
        }
        Ok(listing.close(&format!("{name}(["), &close, length))
    }

    /// The first entries of an `OrderedDict`, whose order is a list of nodes beside the dict: `move_to_end` changes it.
    /// Those whose value stands far behind in a large dict are left out.
    fn first_ordered_entries(&self, object: Addr) -> Result<Vec<(Addr, Addr)>, Fault> {
        // After the dict stands the first node: key, hash, next.
        let mut node = self.pointer(self.member(object, F::dict_object_size))?;
        let mut found = Vec::new();
        while !node.is_null() && found.len() < MAX_ITEMS {
            let words = self.addresses(node, 3)?;
            found.push((words.first().copied().unwrap_or(Addr(0)), None));
            node = words.get(2).copied().unwrap_or(Addr(0));
        }
        let mut missing = found.len();
        self.first_dict_entries(object, MAX_SCANNED, |key, value| {
            if let Some((_, place)) = found.iter_mut().find(|(k, p)| *k == key && p.is_none()) {
                *place = Some(value);
                missing = missing.saturating_sub(1);
            }
            if missing == 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        Ok(found
            .into_iter()
            .map_while(|(key, value)| Some((key, value?)))
            .collect())
    }
}
