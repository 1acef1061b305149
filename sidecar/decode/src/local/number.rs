//! Objects that a few numbers make: ranges, slices, dates and times.

use std::fmt::Write as _;

use crate::decoder::{Decoder, Fault};
use crate::local::kind::Family;
use crate::local::value::Depth;
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// `range(0, 10)` and `slice(1, None, None)`: start, stop and step are objects.
    pub(crate) fn bounds(
        &self,
        object: Addr,
        family: Family,
        depth: Depth,
    ) -> Result<String, Fault> {
        let words = self.addresses(self.member(object, F::pyobject_size), 3)?;
        let [from, to, by] = words[..] else {
            return Err(Fault::Invalid("not a range"));
        };
        let (from, to, by) = (
            self.item(from, depth)?,
            self.item(to, depth)?,
            self.item(by, depth)?,
        );
        Ok(match family {
            Family::Range if by == "1" => format!("range({from}, {to})"),
            Family::Range => format!("range({from}, {to}, {by})"),
            _ => format!("slice({from}, {to}, {by})"),
        })
    }

    /// Dates and times as Modules/_datetimemodule.c packs them: behind the head stand the hash, then for dates whether
    /// there is a time zone and the fields, for differences three ints.
    pub(crate) fn time(&self, object: Addr, family: Family, depth: Depth) -> Result<String, Fault> {
        let head = self.member(object, F::pyobject_size);
        match family {
            Family::TimeDelta => self.time_delta(head),
            Family::TimeZone => {
                let offset = self.pointer(head)?;
                let name = self.pointer(head.plus(8))?;
                let offset = self.time_delta(self.member(offset, F::pyobject_size))?;
                Ok(if !name.is_null() {
                    format!("datetime.timezone({offset}, {})", self.item(name, depth)?)
                } else if offset == "datetime.timedelta(0)" {
                    "datetime.timezone.utc".to_owned()
                } else {
                    format!("datetime.timezone({offset})")
                })
            }
            _ => self.date(head, family, depth),
        }
    }

    fn date(&self, head: Addr, family: Family, depth: Depth) -> Result<String, Fault> {
        let mut packed = [0; 12];
        self.read(head.plus(8), &mut packed)?;
        let [
            zoned,
            y1,
            y0,
            month,
            day,
            hour,
            minute,
            second,
            u2,
            u1,
            u0,
            fold,
        ] = packed;
        let year = u16::from_be_bytes([y1, y0]);
        if family == Family::Date {
            return Ok(format!("datetime.date({year}, {month}, {day})"));
        }
        let micro = u32::from_be_bytes([0, u2, u1, u0]);
        let mut fields = format!("{year}, {month}, {day}, {hour}, {minute}");
        if second != 0 || micro != 0 {
            let _ = write!(fields, ", {second}");
        }
        if micro != 0 {
            let _ = write!(fields, ", {micro}");
        }
        if fold != 0 {
            let _ = write!(fields, ", fold={fold}");
        }
        if zoned != 0 {
            let zone = self.item(self.pointer(head.plus(24))?, depth)?;
            let _ = write!(fields, ", tzinfo={zone}");
        }
        Ok(format!("datetime.datetime({fields})"))
    }

    fn time_delta(&self, head: Addr) -> Result<String, Fault> {
        let parts = [
            ("days", self.i32(head.plus(8))?),
            ("seconds", self.i32(head.plus(12))?),
            ("microseconds", self.i32(head.plus(16))?),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(_, value)| *value != 0)
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        Ok(if parts.is_empty() {
            "datetime.timedelta(0)".to_owned()
        } else {
            format!("datetime.timedelta({})", parts.join(", "))
        })
    }
}
