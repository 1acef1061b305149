//! One decode: typed reads within limits, and what was learnt on the way.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Display};
use std::rc::Rc;

use crate::code::Code;
use crate::coroutine::Chains;
use crate::limits::Limits;
use crate::memory::{Addr, Memory, ReadError};
use crate::object::Types;
use crate::offsets::{Field, Offsets};
use crate::runtime::Runtime;

/// Why something was not decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Its memory could not be read.
    Read(ReadError),
    /// Its memory is not what it should be.
    Invalid(&'static str),
    /// A limit was reached.
    Limit(&'static str),
}

impl From<ReadError> for Fault {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => error.fmt(f),
            Self::Invalid(what) => f.write_str(what),
            Self::Limit(what) => write!(f, "limit reached: {what}"),
        }
    }
}

/// Maps by addresses of the target, which the target chooses: the hash is seeded.
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;
/// Sets of addresses of the target.
pub(crate) type HashSet<K> = std::collections::HashSet<K, foldhash::fast::RandomState>;

/// The word so many bytes into a structure that was read as a whole; `None` where it ends outside.
pub(crate) fn word_in(bytes: &[u8], at: u64) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let word = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(word.try_into().ok()?))
}

/// Problems in words, bounded in number: a damaged target has a great many of them.
#[derive(Debug, Default)]
struct Problems {
    words: Vec<String>,
    left_out: u64,
}

/// One decode of one target at one instant.
pub(crate) struct Decoder<'a, M: ?Sized> {
    memory: &'a M,
    pub(crate) runtime: &'a Runtime,
    pub(crate) limits: &'a Limits,
    reads: Cell<u64>,
    read_bytes: Cell<u64>,
    text: Cell<u64>,
    /// Values of variables so far.
    pub(crate) values: Cell<usize>,
    result: Cell<u64>,
    /// Thread states met so far: interpreters may claim the same ones.
    pub(crate) threads: Cell<usize>,
    /// Whether a limit of memory was reached.
    cut: Cell<bool>,
    problems: RefCell<Problems>,
    pub(crate) types: RefCell<Types>,
    pub(crate) codes: RefCell<HashMap<Addr, Rc<Code>>>,
    pub(crate) chains: RefCell<Chains>,
}

impl<'a, M: Memory + ?Sized> Decoder<'a, M> {
    pub(crate) fn new(memory: &'a M, runtime: &'a Runtime, limits: &'a Limits) -> Self {
        let decoder = Self {
            memory,
            runtime,
            limits,
            reads: Cell::new(0),
            read_bytes: Cell::new(0),
            text: Cell::new(0),
            values: Cell::new(0),
            result: Cell::new(0),
            threads: Cell::new(0),
            cut: Cell::new(false),
            problems: RefCell::default(),
            types: RefCell::default(),
            codes: RefCell::default(),
            chains: RefCell::default(),
        };
        for problem in runtime.problems() {
            decoder.problem(problem);
        }
        decoder
    }

    pub(crate) fn offsets(&self) -> &'a Offsets {
        self.runtime.offsets()
    }

    /// The address of a member of the structure at `base`.
    pub(crate) fn member(&self, base: Addr, field: Field) -> Addr {
        base.plus(self.offsets().get(field))
    }

    pub(crate) fn problem(&self, what: impl Display) {
        let mut problems = self.problems.borrow_mut();
        if problems.words.len() >= self.limits.problems {
            problems.left_out = problems.left_out.saturating_add(1);
            return;
        }
        let what = what.to_string();
        if !problems.words.contains(&what) {
            problems.words.push(what);
        }
    }

    pub(crate) fn into_problems(self) -> Vec<String> {
        let problems = self.problems.into_inner();
        let mut words = problems.words;
        if problems.left_out > 0 {
            words.push(format!("{} more problems", problems.left_out));
        }
        if let Some(headroom) = self.limits.headroom
            && self.cut.get()
        {
            words.push(format!(
                "the snapshot is cut: {} MiB are left below the memory limit of the pod's containers, and it may take \
                 half of that",
                headroom >> 20
            ));
        }
        words
    }

    /// Fills the buffer, as one read of the budget, and more for a long one.
    pub(crate) fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), Fault> {
        let cost = u64::try_from(buf.len() >> 9).unwrap_or(u64::MAX);
        let reads = self.reads.get().saturating_add(cost).saturating_add(1);
        if reads > self.limits.reads {
            return Err(Fault::Limit("reads of the target's memory"));
        }
        self.spend(buf.len())?;
        self.reads.set(reads);
        Ok(self.memory.read(at, buf)?)
    }

    /// Spends so many bytes of what may be read, also for bytes that were read before and are gone through again.
    pub(crate) fn spend(&self, bytes: usize) -> Result<(), Fault> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let bytes = self.read_bytes.get().saturating_add(bytes);
        if bytes > self.limits.read_bytes {
            return Err(Fault::Limit("bytes of the target's memory"));
        }
        self.read_bytes.set(bytes);
        Ok(())
    }

    /// Takes so many bytes of the text that the result may hold.
    pub(crate) fn take_text(&self, bytes: usize) -> Result<(), Fault> {
        let text = self
            .text
            .get()
            .saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        if text > self.limits.text_bytes {
            self.cut.set(true);
            return Err(Fault::Limit("text in the result"));
        }
        self.text.set(text);
        Ok(())
    }

    /// Takes so many bytes of the memory that the result may take.
    pub(crate) fn take_result(&self, bytes: usize) -> Result<(), Fault> {
        let result = self
            .result
            .get()
            .saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        if result > self.limits.result_bytes {
            self.cut.set(true);
            return Err(Fault::Limit("memory of the result"));
        }
        self.result.set(result);
        Ok(())
    }

    fn array<const N: usize>(&self, at: Addr) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn bytes(&self, at: Addr, len: usize) -> Result<Vec<u8>, Fault> {
        let mut bytes = vec![0; len];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn u8(&self, at: Addr) -> Result<u8, Fault> {
        self.array(at).map(u8::from_le_bytes)
    }

    pub(crate) fn i32(&self, at: Addr) -> Result<i32, Fault> {
        self.array(at).map(i32::from_le_bytes)
    }

    pub(crate) fn u32(&self, at: Addr) -> Result<u32, Fault> {
        self.array(at).map(u32::from_le_bytes)
    }

    pub(crate) fn i64(&self, at: Addr) -> Result<i64, Fault> {
        self.array(at).map(i64::from_le_bytes)
    }

    pub(crate) fn u64(&self, at: Addr) -> Result<u64, Fault> {
        self.array(at).map(u64::from_le_bytes)
    }

    pub(crate) fn f64(&self, at: Addr) -> Result<f64, Fault> {
        self.array(at).map(f64::from_le_bytes)
    }

    pub(crate) fn pointer(&self, at: Addr) -> Result<Addr, Fault> {
        self.u64(at).map(Addr)
    }
}
