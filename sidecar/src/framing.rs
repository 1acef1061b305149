//! Messages over a byte stream: the thin end of [`sidewinder_model::wire`].

use std::io::{self, BufWriter, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use sidewinder_model::wire::{HEADER_BYTES, Header, HeaderError};

/// Why a message could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed, or ended inside a message.
    #[error("failed to read or write a message")]
    Io(#[from] io::Error),
    /// What arrived is not a message.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The bytes changed on the way.
    #[error("a message's digest does not match its bytes")]
    Digest,
    /// The message is none of this protocol.
    #[error("failed to understand a message")]
    Json(#[from] serde_json::Error),
    /// The message exceeds what a frame may carry.
    #[error("a message of {0} bytes is too long to send")]
    TooLong(usize),
}

/// Counts and digests what is written to it.
#[derive(Default)]
struct Measure {
    length: usize,
    digest: Sha256,
}

impl Write for Measure {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.length = self.length.saturating_add(bytes.len());
        self.digest.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts what is written to it.
struct Count(usize);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.saturating_add(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many bytes a value takes in a message.
pub fn length(value: &impl Serialize) -> usize {
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, value) {
        Ok(()) => count.0,
        Err(_) => usize::MAX,
    }
}

/// Writes a message as one frame and flushes. It is encoded twice, once for its digest: an answer may be so large that a
/// copy of it is too much.
pub fn write<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), FrameError> {
    let mut measure = BufWriter::new(Measure::default());
    serde_json::to_writer(&mut measure, message)?;
    let measure = measure
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    let header = Header {
        length: measure.length,
        digest: measure.digest.finalize().into(),
    };
    let header = header.encode().ok_or(FrameError::TooLong(measure.length))?;
    let mut stream = BufWriter::with_capacity(64 << 10, stream);
    stream.write_all(&header)?;
    serde_json::to_writer(&mut stream, message)?;
    Ok(stream.flush()?)
}

/// Reads the next message of at most `limit` bytes; `None` when the stream ended between two messages.
pub fn read<T: DeserializeOwned>(
    stream: &mut impl Read,
    limit: usize,
) -> Result<Option<T>, FrameError> {
    let mut header = [0; HEADER_BYTES];
    let (first, rest) = header.split_at_mut(1);
    loop {
        match stream.read(first) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    stream.read_exact(rest)?;
    let header = Header::decode(&header)?;
    if header.length > limit {
        return Err(FrameError::TooLong(header.length));
    }
    // Grows with what arrives, so that a length alone allocates nothing.
    let mut payload = Vec::new();
    let wanted = u64::try_from(header.length).unwrap_or(u64::MAX);
    stream.take(wanted).read_to_end(&mut payload)?;
    if payload.len() != header.length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    if <[u8; 32]>::from(Sha256::digest(&payload)) != header.digest {
        return Err(FrameError::Digest);
    }
    Ok(Some(serde_json::from_slice(&payload)?))
}

#[cfg(test)]
mod tests {
    use sidewinder_model::ToAgent;

    use super::*;

    fn encode(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
        let mut frame = Vec::new();
        write(&mut frame, message)?;
        assert_eq!(length(message), frame.len() - HEADER_BYTES);
        Ok(frame)
    }

    #[test]
    fn messages_follow_each_other_and_the_end_is_clean() {
        let mut stream = encode(&ToAgent::Ping).unwrap();
        stream.extend(encode(&ToAgent::Cancel { id: "a".into() }).unwrap());
        let mut stream = stream.as_slice();
        assert_eq!(
            read::<ToAgent>(&mut stream, 1000).unwrap(),
            Some(ToAgent::Ping)
        );
        assert_eq!(
            read::<ToAgent>(&mut stream, 1000).unwrap(),
            Some(ToAgent::Cancel { id: "a".into() })
        );
        assert_eq!(read::<ToAgent>(&mut stream, 1000).unwrap(), None);
    }

    #[test]
    fn a_cut_or_changed_message_is_refused() {
        let whole = encode(&ToAgent::Cancel { id: "a".into() }).unwrap();
        for end in 1..whole.len() {
            assert!(
                read::<ToAgent>(&mut &whole[..end], 1000).is_err(),
                "cut at {end}"
            );
        }
        for index in 0..whole.len() {
            let mut changed = whole.clone();
            changed[index] ^= 1;
            assert!(
                read::<ToAgent>(&mut changed.as_slice(), 1000).is_err(),
                "changed at {index}"
            );
        }
    }

    #[test]
    fn a_message_over_the_limit_is_refused_before_it_is_read() {
        let whole = encode(&ToAgent::Cancel {
            id: "a".repeat(2000),
        })
        .unwrap();
        assert!(matches!(
            read::<ToAgent>(&mut whole.as_slice(), 1000),
            Err(FrameError::TooLong(_))
        ));
    }

    #[test]
    fn a_message_of_a_newer_side_is_told_apart_not_refused() {
        let newer = encode(&serde_json::json!({"type": "flyAway", "speed": 3})).unwrap();
        assert_eq!(
            read::<ToAgent>(&mut newer.as_slice(), 1000).unwrap(),
            Some(ToAgent::Unknown)
        );
    }
}
