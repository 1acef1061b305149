//! Framing: each message travels as its length, the SHA-256 of its bytes, and its bytes (JSON).
//!
//! An exec stream may be cut without an error (kubernetes/kubernetes#124571: output truncated with exit status 0), so
//! a message counts only when it is whole. Digests are computed by the caller, which keeps this crate free of
//! cryptography.

/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = *b"SWN1";

/// Bytes of a frame before its payload: magic, length (u32, big endian), digest.
pub const HEADER_BYTES: usize = 4 + 4 + 32;

/// The largest payload. Outcomes are cut to 16 MiB before they are sent; JSON escaping may grow them.
pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024 * 1024;

/// A frame's header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of payload that follow.
    pub length: usize,
    /// SHA-256 of the payload.
    pub digest: [u8; 32],
}

/// Why bytes are not a frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// They do not begin with [`MAGIC`]: something else wrote to the stream.
    Magic,
    /// The length exceeds [`MAX_PAYLOAD_BYTES`].
    TooLong(u32),
}

impl std::fmt::Display for HeaderError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Magic => f.write_str("the stream does not carry sidewinder frames"),
            Self::TooLong(length) => write!(
                f,
                "a frame claims {length} bytes, more than {MAX_PAYLOAD_BYTES}"
            ),
        }
    }
}

impl std::error::Error for HeaderError {}

impl Header {
    /// Encodes the header. `None` when `length` is more than [`MAX_PAYLOAD_BYTES`].
    pub fn encode(&self) -> Option<[u8; HEADER_BYTES]> {
        let length = u32::try_from(self.length)
            .ok()
            .filter(|_| self.length <= MAX_PAYLOAD_BYTES)?;
        let mut bytes = [0; HEADER_BYTES];
        let (magic, rest) = bytes.split_at_mut(4);
        let (size, digest) = rest.split_at_mut(4);
        magic.copy_from_slice(&MAGIC);
        size.copy_from_slice(&length.to_be_bytes());
        digest.copy_from_slice(&self.digest);
        Some(bytes)
    }

    /// Decodes a header.
    ///
    /// # Errors
    /// When the magic is wrong or the length is over the limit; the stream is unusable from there on.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        let (magic, rest) = bytes.split_at(4);
        let (size, rest) = rest.split_at(4);
        if magic != MAGIC {
            return Err(HeaderError::Magic);
        }
        let mut length = [0; 4];
        length.copy_from_slice(size);
        let length = u32::from_be_bytes(length);
        let mut digest = [0; 32];
        digest.copy_from_slice(rest);
        let whole = usize::try_from(length).unwrap_or(usize::MAX);
        if whole > MAX_PAYLOAD_BYTES {
            return Err(HeaderError::TooLong(length));
        }
        Ok(Self {
            length: whole,
            digest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_round_trip() {
        let header = Header {
            length: 70_000,
            digest: [7; 32],
        };
        assert_eq!(Header::decode(&header.encode().unwrap()), Ok(header));
    }

    #[test]
    fn a_payload_over_the_limit_is_neither_sent_nor_accepted() {
        assert_eq!(
            Header {
                length: MAX_PAYLOAD_BYTES + 1,
                digest: [0; 32]
            }
            .encode(),
            None
        );
        let mut bytes = Header {
            length: 1,
            digest: [0; 32],
        }
        .encode()
        .unwrap();
        bytes[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(Header::decode(&bytes), Err(HeaderError::TooLong(u32::MAX)));
    }

    #[test]
    fn foreign_bytes_are_told_apart() {
        assert_eq!(
            Header::decode(&[b'x'; HEADER_BYTES]),
            Err(HeaderError::Magic)
        );
    }
}
