//! Which machine code is mapped where, and whose it is.

use std::ops::Range;

use crate::mapped::{self, MappedFile};
use crate::memory::{Addr, Memory};
use crate::os::Mapping;
use crate::runtime::Runtime;

/// The longest of the instructions that call something by its name, in bytes.
const CALL: usize = 6;

/// All machine code that is mapped.
#[derive(Debug)]
pub(crate) struct Code {
    files: Vec<File>,
    /// Code that was made at run time.
    anonymous: File,
    /// The file that holds the runtime, by its place in the list.
    runtime: Option<usize>,
}

/// The mappings of a file that has code.
#[derive(Debug, Default)]
pub(crate) struct File {
    path: String,
    /// Where it is loaded, once for each time that it is: where the file begins, from there to the end of its last
    /// mapping before it begins again.
    pub(crate) loads: Vec<Range<u64>>,
    /// What may be executed of it, in ascending order.
    pub(crate) text: Vec<Range<u64>>,
    /// What may be read of it, code included, in ascending order.
    readable: Vec<Range<u64>>,
    pythons: bool,
}

impl Code {
    pub(crate) fn of(mappings: &[Mapping], runtime: &Runtime) -> Self {
        let (mapped, _) = mapped::files(mappings);
        let holds = |file: &&MappedFile<'_>| {
            let mut data = file.data.iter().chain(&file.behind);
            data.any(|data| data.contains(&runtime.address().0))
        };
        let path = |file: &&MappedFile<'_>| file.path == runtime.path();
        let holder = mapped
            .iter()
            .find(holds)
            .or_else(|| mapped.iter().find(path));
        let mut code = Self {
            files: Vec::new(),
            anonymous: File::default(),
            runtime: None,
        };
        for file in &mapped {
            let is_runtime = holder.is_some_and(|holder| std::ptr::eq(holder, file));
            if is_runtime {
                code.runtime = Some(code.files.len());
            }
            if is_runtime || file.mappings.iter().any(|m| m.executable) {
                code.files.push(File::of(file, is_runtime));
            }
        }
        let anonymous = mappings.iter().filter(|m| m.executable && !m.is_file());
        code.anonymous.text = anonymous.map(|m| m.start..m.end).collect();
        code
    }

    pub(crate) fn files(&self) -> &[File] {
        &self.files
    }

    /// The file that holds the runtime, and its place in the list.
    pub(crate) fn runtime(&self) -> Option<(usize, &File)> {
        let n = self.runtime?;
        Some((n, self.files.get(n)?))
    }

    /// Whose code lies there.
    pub(crate) fn at(&self, at: Addr) -> Option<&File> {
        let mut files = self.files.iter().chain([&self.anonymous]);
        files.find(|file| file.has_text(at))
    }
}

impl File {
    fn of(file: &MappedFile<'_>, is_runtime: bool) -> Self {
        let range = |m: &&Mapping| m.start..m.end;
        let mut begins: Vec<u64> = file
            .mappings
            .iter()
            .filter(|m| m.offset == 0 && m.readable)
            .map(|m| m.start)
            .collect();
        begins.sort_unstable();
        let after = begins.iter().skip(1).copied().chain([u64::MAX]);
        let loads = begins.iter().zip(after).map(|(begin, next)| {
            let before = file
                .mappings
                .iter()
                .map(|m| m.end)
                .filter(|end| *end <= next);
            *begin..before.max().unwrap_or(*begin)
        });
        let mut parts = file.path.rsplit('/');
        let name = parts.next().unwrap_or_default();
        let library =
            parts.next() == Some("lib-dynload") && bare(name).strip_suffix(".so").is_some();
        Self {
            path: file.path.to_owned(),
            loads: loads.collect(),
            text: ranges(
                file.mappings
                    .iter()
                    .filter(|m| m.executable && m.readable)
                    .map(range),
            ),
            readable: ranges(file.mappings.iter().filter(|m| m.readable).map(range)),
            pythons: is_runtime || library,
        }
    }

    /// The path, as the target sees it.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The file's name, without what the kernel puts behind that of a deleted one.
    pub(crate) fn name(&self) -> &str {
        bare(self.path.rsplit('/').next().unwrap_or_default())
    }

    /// Whether it is the interpreter's or an extension module of the standard library: those lie together in
    /// `lib-dynload`, wherever that is (`/usr/lib/python3.14`, `/usr/local/lib/python3.14`, an unpacked bundle).
    pub(crate) fn is_pythons(&self) -> bool {
        self.pythons
    }

    /// Whether the call that returns there, in this file, is one of a name: `call rel32`, or through a slot of the
    /// file's own table of addresses, `call [rip + rel32]`. A call of an address in a register is somebody else's:
    /// libffi makes such calls for ctypes, sqlite for its virtual file system, and some builds of Python have both
    /// within the interpreter's own file.
    pub(crate) fn called_by_name<M: Memory + ?Sized>(&self, memory: &M, returns_to: Addr) -> bool {
        let mut bytes = [0; CALL];
        if memory.read(returns_to.minus(6), &mut bytes).is_err() {
            return false;
        }
        let [a, b, distance @ ..] = bytes;
        let to = Addr(
            returns_to
                .0
                .wrapping_add_signed(i64::from(i32::from_le_bytes(distance))),
        );
        (b == 0xe8 && self.has_text(to)) || ([a, b] == [0xff, 0x15] && self.has(to))
    }

    /// Whether its code lies there.
    pub(crate) fn has_text(&self, at: Addr) -> bool {
        self.text.iter().any(|text| text.contains(&at.0))
    }

    /// Whether it is mapped there, readable.
    fn has(&self, at: Addr) -> bool {
        self.readable.iter().any(|range| range.contains(&at.0))
    }

    /// What may be read there at one go, at most `most` bytes.
    pub(crate) fn readable_from(&self, at: Addr, most: u64) -> Option<Range<u64>> {
        let range = self.readable.iter().find(|range| range.contains(&at.0))?;
        Some(at.0..range.end.min(at.plus(most).0))
    }

    /// The beginning of the load that holds an address.
    pub(crate) fn base_of(&self, at: Addr) -> Option<Addr> {
        let base = self.loads.iter().rfind(|load| load.start <= at.0)?;
        Some(Addr(base.start))
    }
}

fn bare(name: &str) -> &str {
    name.strip_suffix(" (deleted)").unwrap_or(name)
}

/// The ranges in ascending order, those that touch as one.
fn ranges(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = ranges.collect();
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let touch = next.start <= last.end;
        if touch {
            last.end = last.end.max(next.end);
        }
        touch
    });
    ranges
}
