//! The way from the operator to the API server, which can be cut.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How the way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Open,
    /// What is asked arrives, and no answer comes back.
    Deaf,
    /// Connections are cut, and no new one is made.
    Cut,
}

/// Passes connections on, byte by byte.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    way: watch::Sender<Way>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// In front of `server`, as `host:port`.
    pub(crate) async fn before(server: String) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .context("no port is free")?;
        let address = listener.local_addr()?;
        let (way, receiver) = watch::channel(Way::Open);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, way) = (server.clone(), receiver.clone());
                tokio::spawn(async move {
                    // A connection that breaks is what this is for.
                    let _ = pass(client, &server, way).await;
                });
            }
        });
        Ok(Self { address, way, task })
    }

    /// Makes the way so.
    pub(crate) fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

async fn pass(client: TcpStream, server: &str, way: watch::Receiver<Way>) -> std::io::Result<()> {
    if *way.borrow() != Way::Open {
        return Ok(());
    }
    let server = TcpStream::connect(server).await?;
    let (mut asks, mut hears) = client.into_split();
    let (mut answers, mut asked) = server.into_split();
    let up = tokio::io::copy(&mut asks, &mut asked);
    let down = async {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let count = answers.read(&mut bytes).await?;
            if count == 0 {
                return std::io::Result::Ok(());
            }
            let open = *way.borrow() == Way::Open;
            if open {
                hears
                    .write_all(bytes.get(..count).unwrap_or_default())
                    .await?;
            }
        }
    };
    let mut changes = way.clone();
    // One that was deaf has lost bytes: it ends when the way is open again.
    let cut = async {
        let _ = changes.wait_for(|way| *way != Way::Open).await;
        let _ = changes.wait_for(|way| *way != Way::Deaf).await;
    };
    tokio::select! {
        _ = up => {}
        _ = down => {}
        () = cut => {}
    }
    Ok(())
}
