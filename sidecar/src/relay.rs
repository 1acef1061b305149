//! The relay: what an exec into our container starts. It carries bytes between the exec stream and the agent's
//! socket and understands none of them.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};

/// How long the agent has to open its socket: an exec may arrive while the container is still starting.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Bytes moved at a time.
const CHUNK: usize = 64 * 1024;

fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(buffer.get(..count).unwrap_or_default())?;
        to.flush()?;
    }
}

fn connect(socket: &Path) -> anyhow::Result<UnixStream> {
    let deadline = Instant::now() + CONNECT_LIMIT;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            // The socket appears when the agent has started; nothing else announces it.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("failed to reach the agent at {}", socket.display()));
            }
        }
    }
}

/// Carries bytes until either side ends.
pub fn run(socket: &Path) -> anyhow::Result<()> {
    let stream = connect(socket)?;
    let mut down = stream
        .try_clone()
        .context("failed to share the agent's socket")?;
    // Ends with the process: a read of standard input cannot be interrupted otherwise.
    std::thread::Builder::new()
        .spawn(move || {
            let _ = copy(io::stdin().lock(), &mut down);
            let _ = down.shutdown(Shutdown::Write);
        })
        .map_err(|error| anyhow!(error).context("failed to start a thread"))?;
    copy(stream, io::stdout().lock()).context("failed to carry the agent's answer")
}
