//! A file read in blocks, for readers that ask for a few bytes here and there.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;

/// The tables of a library's end, or its beginning, in one read.
const BLOCK: u64 = 16 << 10;
/// Blocks kept.
const BLOCKS: usize = 4;

/// A file whose blocks are read once each; seeking costs nothing.
pub(crate) struct Blocks {
    file: File,
    len: u64,
    at: u64,
    /// The blocks read last, each with where it begins.
    kept: Vec<(u64, Vec<u8>)>,
}

impl Blocks {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        Ok(Self {
            len: file.metadata()?.len(),
            file,
            at: 0,
            kept: Vec::with_capacity(BLOCKS),
        })
    }

    /// The block that begins here.
    fn block(&mut self, begin: u64) -> io::Result<&[u8]> {
        if let Some(known) = self.kept.iter().position(|(at, _)| *at == begin) {
            return Ok(&self.kept[known].1);
        }
        let len = self.len.saturating_sub(begin).min(BLOCK);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        let mut filled = 0;
        while filled < bytes.len() {
            match self
                .file
                .read_at(&mut bytes[filled..], begin + filled as u64)
            {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        if self.kept.len() == BLOCKS {
            self.kept.remove(0);
        }
        self.kept.push((begin, bytes));
        Ok(self.kept.last().map_or(&[], |(_, bytes)| bytes))
    }
}

impl Read for Blocks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.len() as u64 >= BLOCK {
            let got = self.file.read_at(buf, self.at)?;
            self.at += got as u64;
            return Ok(got);
        }
        let (begin, skip) = (self.at / BLOCK * BLOCK, self.at % BLOCK);
        let bytes = self.block(begin)?;
        let rest = usize::try_from(skip)
            .ok()
            .and_then(|skip| bytes.get(skip..))
            .unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Blocks {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn every_byte_is_the_files_own() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let mut blocks = Blocks::new(file).unwrap();
        assert_eq!(blocks.seek(SeekFrom::End(0)).unwrap(), 100_000);
        // Across blocks, again, backwards, longer than a block, up to the end.
        for (at, len) in [
            (0, 64),
            (16_380, 10),
            (99_000, 1000),
            (16_380, 10),
            (3, 50_000),
            (81_919, 2),
            (40_000, 16_384),
        ] {
            let mut buf = vec![0; len];
            blocks.seek(SeekFrom::Start(at)).unwrap();
            blocks.read_exact(&mut buf).unwrap();
            let at = usize::try_from(at).unwrap();
            assert_eq!(buf, bytes[at..at + len], "{at}");
        }
        blocks.seek(SeekFrom::Start(99_999)).unwrap();
        assert!(blocks.read_exact(&mut [0; 2]).is_err());
        assert!(blocks.seek(SeekFrom::Current(-200_000)).is_err());
    }
}
