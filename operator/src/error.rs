//! What can go wrong between the operator and the API server.

use std::time::Duration;

use tracing::warn;

/// How long one call of the API server may take.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// The first and the longest pause between tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long an API server that is away is waited for.
pub(crate) const OUTAGE_LIMIT: Duration = Duration::from_mins(15);

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server said no, or could not be reached for [`OUTAGE_LIMIT`].
    #[error("failed to {what}")]
    Kube {
        /// What was tried, on what.
        what: String,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not answer.
    #[error("failed to {what}: no answer within {} s", CALL_LIMIT.as_secs())]
    Silent {
        /// What was tried, on what.
        what: String,
    },
}

impl Error {
    /// The API server's status code and words, where it answered.
    pub fn api(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Kube { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            Self::Silent { .. } => None,
        }
    }

    /// Whether nobody refused anything: the API server was away, or not ready, for as long as it was waited for.
    pub fn is_silence(&self) -> bool {
        self.code()
            .is_none_or(|code| matches!(code, 401 | 429 | 502 | 503 | 504))
    }

    /// The API server's status code, where it answered.
    pub fn code(&self) -> Option<u16> {
        self.api().map(|status| status.code)
    }
}

/// Whether the same call may succeed later: nobody answered, or the answer was that the server is not ready.
pub(crate) fn passes(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => {
            matches!(status.code, 429 | 502 | 503 | 504)
                || (status.code == 500
                    && (status.message.contains("etcdserver")
                        || status.message.contains("connection refused")))
                // A server that is starting does not know its authorizers yet.
                || status.code == 401
        }
        kube::Error::HyperError(_)
        | kube::Error::Service(_)
        | kube::Error::ReadEvents(_)
        | kube::Error::Auth(_) => true,
        _ => false,
    }
}

/// Calls the API server until it answers, with growing pauses: an API server that is away for a while ends nothing.
/// An answer, also a refusal, is returned at once. `call` must be safe to repeat.
///
/// # Errors
/// When the answer is an error, or after [`OUTAGE_LIMIT`].
pub async fn patiently<T, F>(
    what: impl FnOnce() -> String,
    mut call: impl FnMut() -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    let began = tokio::time::Instant::now();
    let mut pause = PAUSES.0;
    let mut tries = 0_u32;
    loop {
        tries += 1;
        let answer = tokio::time::timeout(CALL_LIMIT, call()).await;
        let over = began.elapsed() >= OUTAGE_LIMIT;
        match answer {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if over || !passes(&error) => {
                return Err(Error::Kube {
                    what: what(),
                    source: Box::new(error),
                });
            }
            Err(_) if over => return Err(Error::Silent { what: what() }),
            Ok(Err(error)) if tries == 3 => {
                warn!(%error, "the API server does not answer; trying again");
            }
            Ok(Err(_)) | Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// An error with its causes, in one line.
pub fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
