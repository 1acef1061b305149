//! A recorded target: the pages a decode touched, and what the kernel and the files said.
//!
//! The format is little-endian: eight bytes of magic, a version, then counted lists of mappings, threads, files and
//! pages. Pages are runs of zeros and literals, since most of a Python heap's pages hold many zeros.

use std::collections::BTreeMap;

use sidewinder_model::{Syscall, ThreadState};

use super::{Addr, Memory, PAGE, ReadError};
use crate::elf::{ElfFacts, Files, MAX_SEGMENTS, Segment};
use crate::os::{Mapping, OsThread};

const MAGIC: [u8; 8] = *b"SWIMAGE\n";
const VERSION: u32 = 1;

/// Zeros that are worth ending a literal for.
const ZERO_RUN: usize = 8;

/// A recorded target. It is decoded by the same functions as a live one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// What was mapped.
    pub mappings: Vec<Mapping>,
    /// What the kernel said of its threads.
    pub threads: Vec<OsThread>,
    /// What the mapped files said, by device, inode and path.
    files: BTreeMap<FileKey, ElfFacts>,
    pages: BTreeMap<u64, Box<[u8]>>,
}

/// A mapped file: device, inode and path.
type FileKey = (String, u64, String);

fn key(mapping: &Mapping) -> FileKey {
    (mapping.device.clone(), mapping.inode, mapping.path.clone())
}

/// Why bytes are no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// It does not begin like one.
    #[error("not a sidewinder image: it does not begin with its magic number")]
    NotAnImage,
    /// It was written by another version.
    #[error("the image has format {found}, this program reads format {VERSION}")]
    Format {
        /// The format it has.
        found: u32,
    },
    /// It holds more than any recording does.
    #[error("the image is damaged at byte {at}: more than {most} {what}")]
    TooMany {
        /// Where.
        at: usize,
        /// What there is too much of.
        what: &'static str,
        /// How many a recording has at most.
        most: usize,
    },
    /// It ends early or contradicts itself.
    #[error("the image is damaged at byte {at}: {what}")]
    Damaged {
        /// Where.
        at: usize,
        /// What was being read.
        what: &'static str,
    },
}

impl Image {
    /// How many pages of 4 KiB an image has at most: 256 MiB. A page of zeros takes no more than some bytes of a file.
    pub const MAX_PAGES: usize = 65_536;

    /// Puts a recording together. `files` is asked once for each mapped file.
    pub fn new(
        mappings: Vec<Mapping>,
        threads: Vec<OsThread>,
        files: &impl Files,
        pages: BTreeMap<u64, Box<[u8]>>,
    ) -> Self {
        let mut seen = BTreeMap::new();
        for mapping in mappings.iter().filter(|m| m.inode != 0) {
            seen.entry(key(mapping))
                .or_insert_with(|| files.elf(mapping));
        }
        let files = seen
            .into_iter()
            .filter_map(|(key, facts)| Some((key, facts?)))
            .collect();
        Self {
            mappings,
            threads,
            files,
            pages,
        }
    }

    /// How many pages of 4 KiB it holds.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// The image as bytes of a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer(Vec::new());
        out.0.extend_from_slice(&MAGIC);
        out.u32(VERSION);
        out.count(self.mappings.len());
        for m in &self.mappings {
            out.u64(m.start);
            out.u64(m.end);
            let flags = [m.readable, m.writable, m.executable].map(u8::from);
            let [readable, writable, executable] = flags;
            out.u8(readable | (writable << 1) | (executable << 2));
            out.u64(m.offset);
            out.text(&m.device);
            out.u64(m.inode);
            out.text(&m.path);
        }
        out.count(self.threads.len());
        for t in &self.threads {
            out.u64(t.tid);
            out.u64(t.ns_tid);
            out.text(&t.name);
            out.u8(match t.state {
                ThreadState::Running => 0,
                ThreadState::Runnable => 1,
                ThreadState::Blocked => 2,
            });
            out.option(t.syscall.as_ref(), |out, s| {
                out.text(&s.name);
                out.option(s.detail.as_ref(), |out, d| out.text(d));
            });
            out.option(t.futex.as_ref(), |out, f| out.u64(*f));
        }
        out.count(self.files.len());
        for ((device, inode, path), facts) in &self.files {
            out.text(device);
            out.u64(*inode);
            out.text(path);
            out.count(facts.segments.len());
            for s in &facts.segments {
                out.u64(s.offset);
                out.u64(s.address);
                out.u64(s.file_size);
            }
            for address in [facts.runtime, facts.asyncio, facts.version] {
                out.option(address.as_ref(), |out, a| out.u64(*a));
            }
        }
        out.count(self.pages.len());
        for (at, bytes) in &self.pages {
            out.u64(*at);
            out.page(bytes);
        }
        out.0
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`ImageError`] when the bytes are something else, another format, cut off or damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ImageError> {
        let mut from = Cursor { bytes, at: 0 };
        if from.array::<8>("magic").ok() != Some(MAGIC) {
            return Err(ImageError::NotAnImage);
        }
        let found = from.u32("format")?;
        if found != VERSION {
            return Err(ImageError::Format { found });
        }
        let mut image = Self::default();
        for _ in 0..from.count("mappings")? {
            let (start, end) = (from.u64("mapping")?, from.u64("mapping")?);
            let flags = from.u8("mapping")?;
            image.mappings.push(Mapping {
                start,
                end,
                readable: flags & 1 != 0,
                writable: flags & 2 != 0,
                executable: flags & 4 != 0,
                offset: from.u64("mapping")?,
                device: from.text("mapping")?,
                inode: from.u64("mapping")?,
                path: from.text("mapping")?,
            });
        }
        for _ in 0..from.count("threads")? {
            image.threads.push(OsThread {
                tid: from.u64("thread")?,
                ns_tid: from.u64("thread")?,
                name: from.text("thread")?,
                state: match from.u8("thread")? {
                    0 => ThreadState::Running,
                    1 => ThreadState::Runnable,
                    _ => ThreadState::Blocked,
                },
                syscall: from.option(|from| {
                    Ok(Syscall {
                        name: from.text("system call")?,
                        detail: from.option(|from| from.text("system call"))?,
                    })
                })?,
                futex: from.option(|from| from.u64("futex"))?,
                arguments: None,
            });
        }
        for _ in 0..from.count("files")? {
            let key = (from.text("file")?, from.u64("file")?, from.text("file")?);
            let mut facts = ElfFacts::default();
            for n in 0..from.count("segments")? {
                from.at_most(n, MAX_SEGMENTS, "segments of one file")?;
                facts.segments.push(Segment {
                    offset: from.u64("segment")?,
                    address: from.u64("segment")?,
                    file_size: from.u64("segment")?,
                });
            }
            facts.runtime = from.option(|from| from.u64("runtime"))?;
            facts.asyncio = from.option(|from| from.u64("asyncio"))?;
            facts.version = from.option(|from| from.u64("version"))?;
            image.files.insert(key, facts);
        }
        for n in 0..from.count("pages")? {
            from.at_most(n, Self::MAX_PAGES, "pages")?;
            let at = from.u64("page")?;
            if !at.is_multiple_of(PAGE as u64) {
                return Err(from.damaged("page"));
            }
            image.pages.insert(at, from.page()?);
        }
        Ok(image)
    }
}

impl Memory for Image {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        let fault = ReadError::Fault { at, len: buf.len() };
        let mut at = at;
        let mut rest = buf;
        while !rest.is_empty() {
            let skip = at.page_offset();
            let page = self
                .pages
                .get(&at.0.saturating_sub(skip))
                .ok_or_else(|| fault.clone())?;
            let bytes = usize::try_from(skip)
                .ok()
                .and_then(|skip| page.get(skip..))
                .ok_or_else(|| fault.clone())?;
            let len = bytes.len().min(rest.len());
            let (Some((piece, after)), Some(bytes)) =
                (rest.split_at_mut_checked(len), bytes.get(..len))
            else {
                return Err(fault);
            };
            piece.copy_from_slice(bytes);
            rest = after;
            if !rest.is_empty() {
                let next = u64::try_from(len)
                    .ok()
                    .and_then(|len| at.0.checked_add(len));
                at = Addr(next.ok_or_else(|| fault.clone())?);
            }
        }
        Ok(())
    }
}

impl Files for Image {
    fn elf(&self, mapping: &Mapping) -> Option<ElfFacts> {
        self.files.get(&key(mapping)).cloned()
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, v: u8) {
        self.0.push(v);
    }
    fn u16(&mut self, v: usize) {
        self.0
            .extend_from_slice(&u16::try_from(v).unwrap_or(u16::MAX).to_le_bytes());
    }
    fn u32(&mut self, v: u32) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    fn u64(&mut self, v: u64) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    fn count(&mut self, v: usize) {
        self.u32(u32::try_from(v).unwrap_or(u32::MAX));
    }
    fn text(&mut self, v: &str) {
        self.count(v.len());
        self.0.extend_from_slice(v.as_bytes());
    }
    fn option<T>(&mut self, v: Option<&T>, write: impl FnOnce(&mut Self, &T)) {
        self.u8(u8::from(v.is_some()));
        if let Some(v) = v {
            write(self, v);
        }
    }

    /// Runs of zeros and literals, until the page is full.
    fn page(&mut self, page: &[u8]) {
        let mut rest = page;
        while !rest.is_empty() {
            let zeros = rest.iter().take_while(|b| **b == 0).count();
            rest = rest.get(zeros..).unwrap_or_default();
            let literal = rest
                .windows(ZERO_RUN)
                .position(|w| w.iter().all(|b| *b == 0))
                .unwrap_or(rest.len());
            self.u16(zeros);
            self.u16(literal);
            let (bytes, after) = rest.split_at_checked(literal).unwrap_or_default();
            self.0.extend_from_slice(bytes);
            rest = after;
        }
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn damaged(&self, what: &'static str) -> ImageError {
        ImageError::Damaged { at: self.at, what }
    }
    fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], ImageError> {
        let end = self.at.checked_add(len).ok_or_else(|| self.damaged(what))?;
        let bytes = self
            .bytes
            .get(self.at..end)
            .ok_or_else(|| self.damaged(what))?;
        self.at = end;
        Ok(bytes)
    }
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], ImageError> {
        let bytes = self.take(N, what)?;
        bytes.try_into().map_err(|_| self.damaged(what))
    }
    fn u8(&mut self, what: &'static str) -> Result<u8, ImageError> {
        self.array::<1>(what).map(u8::from_le_bytes)
    }
    fn u16(&mut self, what: &'static str) -> Result<usize, ImageError> {
        self.array::<2>(what)
            .map(|b| usize::from(u16::from_le_bytes(b)))
    }
    fn u32(&mut self, what: &'static str) -> Result<u32, ImageError> {
        self.array(what).map(u32::from_le_bytes)
    }
    fn u64(&mut self, what: &'static str) -> Result<u64, ImageError> {
        self.array(what).map(u64::from_le_bytes)
    }
    /// Refuses the item after the last that there may be.
    fn at_most(&self, n: u32, most: usize, what: &'static str) -> Result<(), ImageError> {
        if usize::try_from(n).is_ok_and(|n| n < most) {
            return Ok(());
        }
        let at = self.at;
        Err(ImageError::TooMany { at, what, most })
    }
    /// A count; the items themselves are bounded by the bytes that are there.
    fn count(&mut self, what: &'static str) -> Result<u32, ImageError> {
        self.u32(what)
    }
    fn text(&mut self, what: &'static str) -> Result<String, ImageError> {
        let len = self.count(what)?;
        let len = usize::try_from(len).map_err(|_| self.damaged(what))?;
        let bytes = self.take(len, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.damaged(what))
    }
    fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, ImageError>,
    ) -> Result<Option<T>, ImageError> {
        match self.u8("option")? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(self.damaged("option")),
        }
    }
    fn page(&mut self) -> Result<Box<[u8]>, ImageError> {
        let mut page = Vec::with_capacity(PAGE);
        while page.len() < PAGE {
            let (zeros, literal) = (self.u16("page")?, self.u16("page")?);
            let len = page.len().saturating_add(zeros).saturating_add(literal);
            // A run of nothing would never fill the page.
            if len > PAGE || len == page.len() {
                return Err(self.damaged("page"));
            }
            page.resize(page.len().saturating_add(zeros), 0);
            page.extend_from_slice(self.take(literal, "page")?);
        }
        Ok(page.into_boxed_slice())
    }
}
