//! The location table of a code object: from instructions to lines.
//! <https://github.com/python/cpython/blob/3.14/InternalDocs/code_objects.md#source-code-locations>

/// The line of the code unit at `unit`; `None` where the table has none.
pub(crate) fn line(table: &[u8], first_line: i64, unit: u64) -> Option<i64> {
    let mut bytes = table.iter().copied();
    let mut line = first_line;
    let mut start = 0_u64;
    while let Some(head) = bytes.next() {
        if head & 0x80 == 0 {
            return None;
        }
        let length = u64::from(head & 7).saturating_add(1);
        let mut located = true;
        match (head >> 3) & 15 {
            // No location: the lines after it count from the one before.
            15 => located = false,
            14 => {
                line = line.checked_add(signed(&mut bytes)?)?;
                for _ in 0..3 {
                    varint(&mut bytes)?;
                }
            }
            13 => line = line.checked_add(signed(&mut bytes)?)?,
            kind @ 10..=12 => {
                line = line.checked_add(i64::from(kind).checked_sub(10)?)?;
                bytes.next()?;
                bytes.next()?;
            }
            _ => {
                bytes.next()?;
            }
        }
        let end = start.saturating_add(length);
        if (start..end).contains(&unit) {
            return located.then_some(line);
        }
        start = end;
    }
    None
}

/// Six bits per byte, least significant first; bit six says that more follow.
fn varint(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..36).step_by(6) {
        let byte = bytes.next()?;
        value |= u64::from(byte & 63).checked_shl(shift)?;
        if byte & 64 == 0 {
            return Some(value);
        }
    }
    None
}

fn signed(bytes: &mut impl Iterator<Item = u8>) -> Option<i64> {
    let value = varint(bytes)?;
    let magnitude = i64::try_from(value >> 1).ok()?;
    if value & 1 == 1 {
        magnitude.checked_neg()
    } else {
        Some(magnitude)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Option<u64> {
        varint(&mut bytes.iter().copied())
    }

    #[test]
    fn varints() {
        assert_eq!(of(&[0x3f]), Some(63));
        assert_eq!(of(&[0x40, 0x01]), Some(64));
        assert_eq!(of(&[0x7f, 0x7f, 0x0f]), Some(0xffff));
        assert_eq!(of(&[0x40]), None);
        assert_eq!(of(&[0x7f; 20]), None);
        assert_eq!(signed(&mut [0x03].into_iter()), Some(-1));
        assert_eq!(signed(&mut [0x02].into_iter()), Some(1));
    }

    #[test]
    fn every_kind_of_entry() {
        // One entry of each kind, lengths 1, 2, 1, 1, 1.
        let table = [
            0x80 | (3 << 3),
            0x12, // short form, same line
            0x80 | (11 << 3) | 1,
            4,
            9, // one line further, two units
            0x80 | (13 << 3),
            0x05,             // no columns, two lines back
            0x80 | (15 << 3), // none
            0x80 | (14 << 3),
            0x0a,
            0x00,
            0x01,
            0x02, // long form, five lines further
        ];
        let lines: Vec<_> = (0..7).map(|unit| line(&table, 10, unit)).collect();
        assert_eq!(
            lines,
            [Some(10), Some(11), Some(11), Some(9), None, Some(14), None]
        );
    }

    #[test]
    fn a_damaged_table_has_no_lines() {
        assert_eq!(line(&[0x00, 0xf2], 1, 5), None);
        assert_eq!(line(&[0x80 | (14 << 3), 0x40], 1, 0), None);
        assert_eq!(line(&[], 1, 0), None);
    }
}
