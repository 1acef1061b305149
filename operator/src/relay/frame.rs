//! Messages as frames on a byte stream: magic, length, digest, JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use sidewinder_model::wire::{HEADER_BYTES, Header, HeaderError, MAX_PAYLOAD_BYTES};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes read at a time, so that a claimed length never becomes an allocation before the bytes are there.
const CHUNK_BYTES: usize = 64 * 1024;

/// Why a frame could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream itself failed.
    #[error("the stream failed")]
    Io(#[from] std::io::Error),
    /// The stream ended inside a frame.
    #[error("the stream was cut {got} bytes into a message of {expected}")]
    Cut {
        /// Bytes that arrived.
        got: usize,
        /// Bytes that were announced.
        expected: usize,
    },
    /// Something else than frames is on the stream.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The payload is not what was sent.
    #[error("a message of {0} bytes does not match its digest")]
    Digest(usize),
    /// The payload is whole and not a message.
    #[error("a message could not be understood")]
    Json(#[from] serde_json::Error),
    /// The message is larger than a frame may be.
    #[error("a message of {0} bytes is larger than {MAX_PAYLOAD_BYTES}")]
    TooLong(usize),
}

/// Encodes one message as a whole frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let payload = serde_json::to_vec(message)?;
    let header = Header {
        length: payload.len(),
        digest: Sha256::digest(&payload).into(),
    }
    .encode()
    .ok_or(FrameError::TooLong(payload.len()))?;
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
    frame.extend_from_slice(&header);
    frame.extend_from_slice(&payload);
    Ok(frame)
}

/// Sends one frame and flushes it.
pub async fn write<W: AsyncWrite + Unpin>(stream: &mut W, frame: &[u8]) -> Result<(), FrameError> {
    stream.write_all(frame).await?;
    stream.flush().await?;
    Ok(())
}

/// Receives one message; `None` when the stream ended between two of them. `heard` is told of every piece that
/// arrives, so that a large message on a slow line counts as a sign of life.
///
/// Not cancel safe: a dropped call leaves the stream in the middle of a frame.
pub async fn read<R: AsyncRead + Unpin, T: DeserializeOwned>(
    stream: &mut R,
    mut heard: impl FnMut(usize),
) -> Result<Option<T>, FrameError> {
    let mut bytes = [0; HEADER_BYTES];
    let mut got = 0;
    while let Some(rest) = bytes.get_mut(got..).filter(|rest| !rest.is_empty()) {
        let count = stream.read(rest).await?;
        if count == 0 {
            return if got == 0 {
                Ok(None)
            } else {
                Err(FrameError::Cut {
                    got,
                    expected: HEADER_BYTES,
                })
            };
        }
        heard(count);
        got += count;
    }
    let header = Header::decode(&bytes)?;
    let mut payload = Vec::with_capacity(header.length.min(CHUNK_BYTES));
    while payload.len() < header.length {
        let wanted = (header.length - payload.len()).min(CHUNK_BYTES);
        let count = (&mut *stream)
            .take(wanted as u64)
            .read_buf(&mut payload)
            .await?;
        if count == 0 {
            return Err(FrameError::Cut {
                got: payload.len(),
                expected: header.length,
            });
        }
        heard(count);
    }
    if <[u8; 32]>::from(Sha256::digest(&payload)) != header.digest {
        return Err(FrameError::Digest(header.length));
    }
    Ok(Some(serde_json::from_slice(&payload)?))
}

#[cfg(test)]
mod tests {
    use sidewinder_model::ToAgent;

    use super::*;

    async fn read_all(bytes: &[u8]) -> Result<Option<ToAgent>, FrameError> {
        let mut stream = bytes;
        read(&mut stream, |_| ()).await
    }

    #[tokio::test]
    async fn a_message_survives_the_round_trip() {
        let message = ToAgent::Cancel {
            id: "a".repeat(300_000),
        };
        let frame = encode(&message).unwrap();
        assert_eq!(read_all(&frame).await.unwrap(), Some(message));
    }

    #[tokio::test]
    async fn an_end_between_frames_is_an_end_and_one_inside_is_an_error() {
        assert_eq!(read_all(&[]).await.unwrap(), None);
        let frame = encode(&ToAgent::Ping).unwrap();
        for cut in 1..frame.len() {
            assert!(
                matches!(read_all(&frame[..cut]).await, Err(FrameError::Cut { .. })),
                "cut at {cut}"
            );
        }
    }

    #[tokio::test]
    async fn a_changed_byte_is_noticed() {
        let mut frame = encode(&ToAgent::Cancel { id: "one".into() }).unwrap();
        let last = frame.len() - 3;
        frame[last] ^= 1;
        assert!(matches!(read_all(&frame).await, Err(FrameError::Digest(_))));
    }

    #[tokio::test]
    async fn foreign_output_on_the_stream_is_told_apart() {
        let garbage = b"sh: /sidewinder-sidecar: not found, and some more text";
        assert!(matches!(
            read_all(garbage).await,
            Err(FrameError::Header(HeaderError::Magic))
        ));
    }
}
