//! Memory that says something else than the recorded target did.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use sidewinder_decode::{Addr, Image, Limits, Memory, ReadError, Recorder};

use crate::bounds::decode_all;

/// What a word holds instead. `usize`s choose among the words that a decode looks at.
#[derive(Clone, Copy, Debug)]
pub enum Lie {
    Null,
    /// Its own address: a list of one that never ends.
    Itself,
    /// The address of another word, or some bytes beside it.
    Address(u16, i8),
    /// What another word holds: a pointer to an object of another type, another list's next.
    Other(u16),
    /// What it held, and so many more.
    Near(i16),
    Bit(u8),
    Small(u16),
    Top(u8),
    Any(u64),
}

impl Lie {
    /// One of them; `value` is its parameter, as far as it needs one.
    pub fn of(kind: u8, value: u64) -> Self {
        let [a, b, c, ..] = value.to_le_bytes();
        let number = u16::from_le_bytes([a, b]);
        match kind % 9 {
            0 => Self::Null,
            1 => Self::Itself,
            2 => Self::Address(number, c.cast_signed()),
            3 => Self::Other(number),
            4 => Self::Near(number.cast_signed()),
            5 => Self::Bit(a),
            6 => Self::Small(number),
            7 => Self::Top(a),
            _ => Self::Any(value),
        }
    }
}

/// Words of a target that a decode looks at, with what they hold, zeros included.
#[derive(Clone)]
pub struct Words(Vec<(u64, u64)>);

impl Words {
    /// Of everything that a decode of the image looks at, its tables and its search included.
    pub fn of(image: &Image) -> Self {
        let recorder = Recorder::new(image, usize::MAX);
        decode_all(&recorder, image, None, &Limits::default());
        let touched = recorder.into_touched();
        let mut words = Vec::new();
        for (page, bytes) in touched {
            for (n, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
                words.push((page + 8 * n as u64, u64::from_le_bytes(*word)));
            }
        }
        // Most of a page is never looked at; a zero is worth a lie only beside something that was read.
        let held: BTreeSet<u64> = words.iter().filter(|w| w.1 != 0).map(|w| w.0).collect();
        words.retain(|(at, held_here)| {
            *held_here != 0 || held.contains(&(at - 8)) || held.contains(&(at + 8))
        });
        Self(words)
    }

    /// The word's address and what it holds.
    pub fn at(&self, n: usize) -> (u64, u64) {
        self.0[n % self.0.len()]
    }

    /// The numbers of the words that hold an address of this target.
    pub fn pointers(&self) -> Vec<usize> {
        let pages: BTreeSet<u64> = self.0.iter().map(|(at, _)| at >> 12).collect();
        let numbered = self.0.iter().enumerate();
        numbered
            .filter(|(_, (_, held))| pages.contains(&(held >> 12)))
            .map(|(n, _)| n)
            .collect()
    }

    /// The word's address and what the lie says.
    pub fn lie(&self, n: usize, lie: Lie) -> (u64, u64) {
        let (at, held) = self.at(n);
        let says = match lie {
            Lie::Null => 0,
            Lie::Itself => at,
            Lie::Address(other, beside) => self
                .at(usize::from(other))
                .0
                .wrapping_add_signed(beside.into()),
            Lie::Other(other) => self.at(usize::from(other)).1,
            Lie::Near(by) => held.wrapping_add_signed(by.into()),
            Lie::Bit(bit) => held ^ (1 << (bit % 64)),
            Lie::Small(value) => value.into(),
            Lie::Top(below) => u64::MAX - u64::from(below),
            Lie::Any(value) => value,
        };
        (at, says)
    }
}

/// Some words of a target hold something else, from a read on.
pub struct Lying<M> {
    inner: M,
    words: BTreeMap<u64, u64>,
    truthful_reads: Cell<u64>,
}

impl<M: Memory> Lying<M> {
    pub fn new(inner: M, words: BTreeMap<u64, u64>, truthful_reads: u64) -> Self {
        Self {
            inner,
            words,
            truthful_reads: Cell::new(truthful_reads),
        }
    }
}

impl<M: Memory> Memory for Lying<M> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        self.inner.read(at, buf)?;
        if let Some(left) = self.truthful_reads.get().checked_sub(1) {
            self.truthful_reads.set(left);
            return Ok(());
        }
        let end = at.0.saturating_add(buf.len() as u64);
        for (&word, value) in self.words.range(at.0.saturating_sub(7)..end) {
            for (position, byte) in (word..).zip(value.to_le_bytes()) {
                if (at.0..end).contains(&position) {
                    buf[usize::try_from(position - at.0).unwrap()] = byte;
                }
            }
        }
        Ok(())
    }
}
