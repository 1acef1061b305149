//! Messages as frames on a byte stream: magic, length, digest, JSON.
//!
//! A large message is parsed while it arrives, so that its bytes and what they mean are never held side by side, and
//! only after it has its share of the memory.

use std::io::{BufReader, Read};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use sidewinder_model::wire::{HEADER_BYTES, Header, HeaderError, MAX_PAYLOAD_BYTES};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::budget::{Budget, Share};

/// Bytes read at a time, so that a claimed length never becomes an allocation before the bytes are there.
const CHUNK_BYTES: usize = 64 * 1024;
/// Messages up to this length are parsed where they are: a thread for them would take longer than they do.
const SMALL_BYTES: usize = 256 * 1024;
/// What a small message may take in memory without a share.
const SMALL_MEMORY: usize = 4 * SMALL_BYTES;
/// What a message takes in memory, in its own length: strings, and beside the longest one the buffer that it is
/// unescaped in.
const MEMORY_PER_BYTE: usize = 3;
/// What an element takes in memory beyond its JSON. A list of empty strings is three bytes for each in JSON, and 24 in
/// memory, up to three times as much while the list grows.
const MEMORY_PER_ELEMENT: usize = 32;

/// Where in a message its id stands, at the latest.
const HEAD_BYTES: usize = 512;
/// How long a message may take from its header on, whatever its length, and the slowest line on which a large one still
/// arrives, in bytes per second. Without an end, somebody who sends a byte now and then would keep the memory that others
/// wait for.
const PATIENCE: Duration = Duration::from_secs(30);
const SLOWEST: u64 = 64 * 1024;

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
    /// The payload is whole and not a message. Where it is none is told and not what stands there, which may be what a
    /// script said.
    #[error("a message could not be understood: {kind} error at its byte {place}")]
    Json {
        /// `syntax` or `data`.
        kind: &'static str,
        /// Where.
        place: usize,
        /// Which request it answers, as far as its first bytes tell.
        id: Option<String>,
    },
    /// The message is larger than a frame may be.
    #[error("a message of {0} bytes is larger than {MAX_PAYLOAD_BYTES}")]
    TooLong(usize),
    /// The message would take too much memory, however long one waits.
    #[error(
        "a message of {length} bytes would take more memory than there is for results ({budget} bytes, the setting results.memoryBytes)"
    )]
    TooDense {
        /// Bytes of the message.
        length: usize,
        /// Bytes that there are.
        budget: usize,
        /// Which request it answers, as far as its first bytes tell.
        id: Option<String>,
    },
    /// The message has begun and does not come.
    #[error("a message of {expected} bytes came too slowly: {got} bytes within its time")]
    Slow {
        /// Bytes that arrived.
        got: usize,
        /// Bytes that were announced.
        expected: usize,
        /// Which request it answers, as far as its first bytes tell.
        id: Option<String>,
    },
    /// Other large messages had the memory for too long.
    #[error(
        "a message of {0} bytes has to wait for others: there is no memory for more results at once"
    )]
    Busy(usize),
}

impl From<serde_json::Error> for FrameError {
    fn from(error: serde_json::Error) -> Self {
        let kind = match error.classify() {
            serde_json::error::Category::Data => "data",
            _ => "syntax",
        };
        // Messages are of one line.
        let place = error.column();
        Self::Json {
            kind,
            place,
            id: None,
        }
    }
}

impl FrameError {
    /// The request whose answer will never be understood, however often it is asked for.
    pub fn hopeless(&self) -> Option<&str> {
        match self {
            Self::Json { id, .. } | Self::TooDense { id, .. } => id.as_deref(),
            _ => None,
        }
    }

    /// The request whose answer is there and comes too slowly.
    pub fn slow(&self) -> Option<&str> {
        match self {
            Self::Slow { id, .. } => id.as_deref(),
            _ => None,
        }
    }

    /// The same, of a message that begins with `head`.
    fn about(mut self, head: &[u8]) -> Self {
        if let Self::Json { id, .. } | Self::TooDense { id, .. } | Self::Slow { id, .. } = &mut self
        {
            *id = id_answered(head);
        }
        self
    }
}

/// The request that a message answers for good. Whatever else is said of one, that it was accepted or that its script has
/// ended, is not its outcome, which may still come.
fn id_answered(head: &[u8]) -> Option<String> {
    // The kind comes first (`sidewinder_model::ToOperator`).
    head.starts_with(b"{\"type\":\"finished\",")
        .then(|| id_in(head))
        .flatten()
}

/// The id that stands first in a message. One that is longer or has escapes is none of ours.
fn id_in(head: &[u8]) -> Option<String> {
    const NAME: &[u8] = b"\"id\":\"";
    let head = head.get(..HEAD_BYTES).unwrap_or(head);
    let start = head.windows(NAME.len()).position(|found| found == NAME)? + NAME.len();
    let rest = head.get(start..)?;
    let end = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    let id = rest.get(..end).filter(|_| rest.get(end) == Some(&b'"'))?;
    String::from_utf8(id.to_vec()).ok()
}

/// How long a message that has begun may be waited for. What passes while it waits for memory, or for whoever parses it,
/// does not count.
struct Patience {
    left: Duration,
}

impl Patience {
    fn with(length: usize) -> Self {
        let more = Duration::from_secs(length as u64 / SLOWEST);
        Self {
            left: PATIENCE + more,
        }
    }

    /// Waits for `read`; `None` when the time is over.
    async fn wait<T>(&mut self, read: impl Future<Output = T>) -> Option<T> {
        let began = Instant::now();
        let read = tokio::time::timeout(self.left, read).await.ok();
        self.left = self.left.saturating_sub(began.elapsed());
        read
    }
}

/// A message that was received.
#[derive(Debug)]
pub struct Received<T> {
    /// What was said.
    pub message: T,
    /// The memory it may take, where that is much.
    pub share: Option<Share>,
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
/// arrives, so that a large message on a slow line counts as a sign of life, and of none now and then while the message
/// waits for its share of the memory.
///
/// Not cancel safe: a dropped call leaves the stream in the middle of a frame.
pub async fn read<R, T>(
    stream: &mut R,
    budget: &Budget,
    mut heard: impl FnMut(usize),
) -> Result<Option<Received<T>>, FrameError>
where
    R: AsyncRead + Unpin,
    T: DeserializeOwned + Send + 'static,
{
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
    if header.length <= SMALL_BYTES {
        read_small(stream, header, budget, heard).await.map(Some)
    } else {
        read_large(stream, header, budget, heard).await.map(Some)
    }
}

async fn read_small<R, T>(
    stream: &mut R,
    header: Header,
    budget: &Budget,
    mut heard: impl FnMut(usize),
) -> Result<Received<T>, FrameError>
where
    R: AsyncRead + Unpin,
    T: DeserializeOwned,
{
    let mut payload = Vec::with_capacity(header.length.min(CHUNK_BYTES));
    let mut patience = Patience::with(header.length);
    while payload.len() < header.length {
        let got = payload.len();
        let arrived = patience.wait(some(stream, &mut payload, header.length - got));
        let slow = FrameError::Slow {
            got,
            expected: header.length,
            id: None,
        };
        let Some(count) = arrived.await else {
            return Err(slow.about(&payload));
        };
        let count = count?;
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
    let mut memory = Memory::default();
    memory.count(&payload);
    let share = if memory.bytes() > SMALL_MEMORY {
        Some(widen(budget, None, header.length, &mut heard).await?)
    } else {
        None
    };
    Ok(Received {
        message: serde_json::from_slice(&payload)
            .map_err(|error| FrameError::from(error).about(&payload))?,
        share,
    })
}

/// Hands the payload piece by piece to a thread that parses it.
async fn read_large<R, T>(
    stream: &mut R,
    header: Header,
    budget: &Budget,
    mut heard: impl FnMut(usize),
) -> Result<Received<T>, FrameError>
where
    R: AsyncRead + Unpin,
    T: DeserializeOwned + Send + 'static,
{
    let length = header.length;
    let granted = length.saturating_mul(MEMORY_PER_BYTE).min(budget.bytes());
    let mut share = budget
        .share(granted, || heard(0))
        .await
        .ok_or(FrameError::Busy(length))?;
    let mut wide = false;
    let (pieces, inbox) = mpsc::channel(1);
    // It ends when `pieces` is dropped, at the latest.
    let parser = tokio::task::spawn_blocking(move || parse::<T>(inbox, length));
    let mut memory = Memory::default();
    let mut patience = Patience::with(length);
    let mut first = Vec::with_capacity(HEAD_BYTES);
    let mut got = 0;
    while got < length {
        let mut piece = Vec::with_capacity(CHUNK_BYTES);
        let arrived = patience.wait(some(stream, &mut piece, length - got));
        let slow = FrameError::Slow {
            got,
            expected: length,
            id: None,
        };
        let Some(count) = arrived.await else {
            return Err(slow.about(&first));
        };
        let count = count?;
        if count == 0 {
            return Err(FrameError::Cut {
                got,
                expected: length,
            });
        }
        heard(count);
        got += count;
        memory.count(&piece);
        let missing = HEAD_BYTES.saturating_sub(first.len());
        first.extend(piece.iter().take(missing));
        if memory.bytes() > budget.bytes() {
            let error = FrameError::TooDense {
                length,
                budget: budget.bytes(),
                id: None,
            };
            return Err(error.about(&first));
        }
        if !wide && memory.bytes() > granted {
            share = widen(budget, Some(share), length, &mut heard).await?;
            wide = true;
        }
        // A parser that has given up says so below.
        if pieces.send(piece).await.is_err() {
            break;
        }
    }
    drop(pieces);
    let (digest, message) = parser.await.map_err(std::io::Error::other)?;
    if digest != header.digest {
        return Err(FrameError::Digest(length));
    }
    Ok(Received {
        message: message.map_err(|error| FrameError::from(error).about(&first))?,
        share: Some(share),
    })
}

async fn widen(
    budget: &Budget,
    share: Option<Share>,
    length: usize,
    heard: &mut impl FnMut(usize),
) -> Result<Share, FrameError> {
    budget
        .widen(share, || heard(0))
        .await
        .ok_or(FrameError::Busy(length))
}

/// Reads what is there, at most `wanted` bytes and at most [`CHUNK_BYTES`]; 0 at the end of the stream.
async fn some<R: AsyncRead + Unpin>(
    stream: &mut R,
    into: &mut Vec<u8>,
    wanted: usize,
) -> std::io::Result<usize> {
    let wanted = wanted.min(CHUNK_BYTES) as u64;
    (&mut *stream).take(wanted).read_buf(into).await
}

/// What JSON takes in memory once it is parsed, from above, counted while it passes by.
#[derive(Debug, Default)]
struct Memory {
    bytes: usize,
    elements: usize,
    in_string: bool,
    escaped: bool,
}

impl Memory {
    fn count(&mut self, piece: &[u8]) {
        self.bytes = self.bytes.saturating_add(piece.len());
        for byte in piece {
            if self.escaped {
                self.escaped = false;
            } else if self.in_string {
                self.escaped = *byte == b'\\';
                self.in_string = *byte != b'"';
            } else if *byte == b'"' {
                self.in_string = true;
            } else if matches!(byte, b',' | b'[' | b'{') {
                self.elements = self.elements.saturating_add(1);
            }
        }
    }

    fn bytes(&self) -> usize {
        let elements = self.elements.saturating_mul(MEMORY_PER_ELEMENT);
        self.bytes.saturating_add(elements)
    }
}

/// Parses what comes through the inbox, and digests it. Ends with an error when the inbox is closed before the end.
fn parse<T: DeserializeOwned>(
    inbox: mpsc::Receiver<Vec<u8>>,
    length: usize,
) -> ([u8; 32], Result<T, serde_json::Error>) {
    let mut pieces = Pieces {
        inbox,
        piece: Vec::new(),
        at: 0,
        left: length,
        digest: Sha256::new(),
    };
    let message = {
        let mut json = serde_json::Deserializer::from_reader(BufReader::new(&mut pieces));
        T::deserialize(&mut json).and_then(|message| json.end().map(|()| message))
    };
    // What was sent wrongly is told from what was understood wrongly by the digest of the whole.
    let _ = std::io::copy(&mut pieces, &mut std::io::sink());
    (pieces.digest.finalize().into(), message)
}

/// The payload as it arrives.
struct Pieces {
    inbox: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    left: usize,
    digest: Sha256,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        if self.at == self.piece.len() {
            let piece = self.inbox.blocking_recv();
            self.piece = piece.ok_or(std::io::ErrorKind::UnexpectedEof)?;
            self.at = 0;
            self.digest.update(&self.piece);
        }
        let rest = self.piece.get(self.at..).unwrap_or_default();
        let count = rest.len().min(into.len());
        for (place, byte) in into.iter_mut().zip(rest) {
            *place = *byte;
        }
        self.at += count;
        self.left = self.left.saturating_sub(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use sidewinder_model::ToAgent;

    use super::*;
    use crate::relay::incoming::Incoming;

    async fn read_all(bytes: &[u8]) -> Result<Option<ToAgent>, FrameError> {
        let mut stream = bytes;
        let received = read(&mut stream, &Budget::default(), |_| ()).await?;
        Ok(received.map(|received| received.message))
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

    /// The agent's answer with `json` as its outcome, as a frame.
    fn answer(json: &str) -> Vec<u8> {
        of_kind("finished", json)
    }

    fn of_kind(kind: &str, json: &str) -> Vec<u8> {
        let payload = format!("{{\"type\":\"{kind}\",\"outcome\":{json}}}").into_bytes();
        let header = Header {
            length: payload.len(),
            digest: Sha256::digest(&payload).into(),
        };
        [&header.encode().unwrap()[..], &payload].concat()
    }

    async fn read_answer(bytes: &[u8], budget: &Budget) -> Result<Received<Incoming>, FrameError> {
        let mut stream = bytes;
        Ok(read(&mut stream, budget, |_| ()).await?.unwrap())
    }

    fn said(stdout: &str) -> String {
        serde_json::json!({"targets": [{"reason": "Succeeded", "data": {"exec": {"stdout": stdout}}}]})
            .to_string()
    }

    #[tokio::test]
    async fn a_changed_byte_of_a_large_message_is_noticed_wherever_it_is() {
        let whole = answer(&said(&"a \" and a \n".repeat(SMALL_BYTES / 8)));
        let budget = Budget::default();
        assert!(read_answer(&whole, &budget).await.unwrap().share.is_some());
        // One is no JSON any more, one is another text, one is after the end of the JSON.
        for place in [HEADER_BYTES, whole.len() / 2, whole.len() - 1] {
            let mut frame = whole.clone();
            frame[place] ^= 1;
            let error = read_answer(&frame, &budget).await.unwrap_err();
            assert!(matches!(error, FrameError::Digest(_)), "{place}: {error}");
        }
        for cut in [HEADER_BYTES + 1, whole.len() / 2, whole.len() - 1] {
            let error = read_answer(&whole[..cut], &budget).await.unwrap_err();
            let FrameError::Cut { got, .. } = error else {
                panic!("{cut}: {error}")
            };
            assert_eq!(got, cut - HEADER_BYTES);
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_message_is_told_without_its_words() {
        for filler in ["", &"x".repeat(2 * SMALL_BYTES)] {
            let json = format!(
                "{{\"instance\":\"{filler}\",\"targets\":[{{\"reason\":\"the password\"}}]}}"
            );
            let error = read_answer(&answer(&json), &Budget::default())
                .await
                .unwrap_err();
            let words = crate::error::describe(&error);
            assert!(words.contains("data error at its byte"), "{words}");
            assert!(!words.contains("password"), "{words}");
        }
    }

    #[tokio::test]
    async fn a_large_message_waits_for_its_share_and_a_small_one_does_not() {
        let budget = Budget::new(8 * SMALL_BYTES);
        let large = answer(&said(&"x".repeat(2 * SMALL_BYTES)));
        let first = read_answer(&large, &budget).await.unwrap();
        let mut second = Box::pin(read_answer(&large, &budget));
        assert!(futures::poll!(&mut second).is_pending());
        let small = answer(&said("x"));
        assert!(read_answer(&small, &budget).await.unwrap().share.is_none());
        drop(first);
        assert!(second.await.unwrap().share.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_waits_in_vain_is_given_up_and_its_stream_counts_as_alive() {
        let budget = Budget::new(SMALL_BYTES);
        let _all = budget.share(usize::MAX, || ()).await;
        let large = answer(&said(&"x".repeat(2 * SMALL_BYTES)));
        let mut stream = large.as_slice();
        let mut signs = 0;
        let error =
            read::<_, Incoming>(&mut stream, &budget, |count| signs += u32::from(count == 0))
                .await
                .unwrap_err();
        assert!(matches!(error, FrameError::Busy(_)), "{error}");
        assert!(signs > 5);
    }

    #[tokio::test]
    async fn a_message_of_many_small_things_is_refused_before_they_fill_the_memory() {
        let budget = Budget::new(4 * 1024 * 1024);
        let lists = vec!["[]"; 1_000_000].join(",");
        let json = format!(
            "{{\"targets\":[{{\"reason\":\"Succeeded\",\"data\":{{\"tasks\":{{\"cycles\":[{lists}]}}}}}}]}}"
        );
        let error = read_answer(&answer(&json), &budget).await.unwrap_err();
        assert!(matches!(error, FrameError::TooDense { .. }), "{error}");
        assert!(error.to_string().contains("results.memoryBytes"));
        assert_eq!(error.hopeless(), None);
        for (kind, hopeless) in [("finished", Some("5e55-1")), ("scriptEnded", None)] {
            let named = json.replacen('{', "{\"id\":\"5e55-1\",", 1);
            let named = of_kind(kind, &named);
            let error = read_answer(&named, &budget).await.unwrap_err();
            assert_eq!(error.hopeless(), hopeless, "{kind}");
        }
        // What they take is counted with the share; text of the same length takes less.
        let few = vec!["\"\""; 60_000].join(",");
        let json = format!(
            "{{\"targets\":[{{\"reason\":\"Succeeded\",\"data\":{{\"exec\":{{\"imported\":[{few}]}}}}}}]}}"
        );
        assert!(json.len() < SMALL_BYTES);
        assert!(
            read_answer(&answer(&json), &budget)
                .await
                .unwrap()
                .share
                .is_some()
        );
        let commas = answer(&said(&",[{".repeat(SMALL_BYTES / 4)));
        assert!(commas.len() < SMALL_BYTES);
        assert!(read_answer(&commas, &budget).await.unwrap().share.is_none());
    }

    #[test]
    fn the_id_is_the_first_that_stands_in_a_message() {
        for (head, id) in [
            (
                "{\"type\":\"finished\",\"outcome\":{\"id\":\"a-1\",\"instance\":\"x\"",
                Some("a-1"),
            ),
            ("{\"id\":\"\"", Some("")),
            ("{\"id\":\"cut", None),
            ("{\"id\":\"with\\\"escape\"", None),
            ("{\"type\":\"pong\"}", None),
        ] {
            assert_eq!(id_in(head.as_bytes()).as_deref(), id, "{head}");
        }
        let late = format!("{}\"id\":\"a\"", " ".repeat(HEAD_BYTES));
        assert_eq!(id_in(late.as_bytes()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_drips_is_given_up() {
        let whole = answer(&said(&"x".repeat(1000)));
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        let drip = async {
            ours.write_all(&whole[..HEADER_BYTES]).await.unwrap();
            for byte in &whole[HEADER_BYTES..] {
                tokio::time::sleep(Duration::from_secs(20)).await;
                if ours.write_all(&[*byte]).await.is_err() {
                    return;
                }
            }
        };
        let read = async move {
            let began = Instant::now();
            let budget = Budget::default();
            let read = read::<_, Incoming>(&mut theirs, &budget, |_| ()).await;
            (read, began.elapsed())
        };
        let ((), (read, took)) = tokio::join!(drip, read);
        assert!(
            matches!(read, Err(FrameError::Slow { got: 1, .. })),
            "{read:?}"
        );
        assert_eq!(took, PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_message_that_stays_away_gives_its_memory_back() {
        let budget = Budget::new(16 * SMALL_BYTES);
        let whole = answer(&said(&"x".repeat(4 * SMALL_BYTES)));
        let (mut ours, mut theirs) = tokio::io::duplex(whole.len());
        let part = HEADER_BYTES + CHUNK_BYTES;
        ours.write_all(&whole[..part]).await.unwrap();
        let (sender, mut count) = tokio::sync::watch::channel(0);
        let reading = tokio::spawn({
            let budget = budget.clone();
            async move {
                let heard = |count| sender.send_modify(|all| *all += count);
                read::<_, Incoming>(&mut theirs, &budget, heard).await
            }
        });
        count.wait_for(|all| *all == part).await.unwrap();
        let all = || futures::FutureExt::now_or_never(budget.share(usize::MAX, || ()));
        assert!(all().is_none());
        // By hand: the clock does not go by itself while a thread waits for pieces.
        let slowest = whole.len() as u64 / SLOWEST;
        while !reading.is_finished() {
            tokio::time::advance(PATIENCE + Duration::from_secs(slowest)).await;
            tokio::task::yield_now().await;
        }
        let read = reading.await.unwrap();
        assert!(matches!(read, Err(FrameError::Slow { .. })), "{read:?}");
        assert!(all().is_some());
    }

    #[tokio::test]
    async fn nesting_ends_nobodys_stack() {
        let nested = "[".repeat(200_000) + &"]".repeat(200_000);
        for (field, kind) in [("more", None), ("targets", Some("data"))] {
            let answered = read_answer(
                &answer(&format!("{{\"{field}\":{nested}}}")),
                &Budget::default(),
            )
            .await;
            let told = answered.err().map(|error| match error {
                FrameError::Json { kind, .. } => kind,
                other => panic!("{other}"),
            });
            assert_eq!(told, kind, "{field}");
        }
    }
}
