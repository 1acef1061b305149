//! The other end of the operator's points: sees who comes past, and holds or kills as it was planned.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use sidewinder_operator::faults::{KILL, Point};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What happens to a session at a point, the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// The operator dies.
    Kill,
    /// It waits.
    Hold,
}

type Moment = (String, String);

#[derive(Default)]
struct State {
    plans: HashMap<Moment, Plan>,
    held: Vec<UnixStream>,
    seen: BTreeSet<Moment>,
}

/// The socket, and what came.
pub(crate) struct Points {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
    news: watch::Receiver<()>,
    task: JoinHandle<()>,
}

impl Drop for Points {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn moment(session: &str, point: Point) -> Moment {
    (session.to_owned(), point.name().to_owned())
}

impl Points {
    /// Listens in `folder`.
    pub(crate) fn listen(folder: &Path) -> Result<Self> {
        let socket = folder.join("points");
        let listener = UnixListener::bind(&socket).context("cannot listen for points")?;
        let state = Arc::<Mutex<State>>::default();
        let (sender, news) = watch::channel(());
        let task = tokio::spawn({
            let state = Arc::clone(&state);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(answer(stream, Arc::clone(&state), sender.clone()));
                }
            }
        });
        Ok(Self {
            socket,
            state,
            news,
            task,
        })
    }

    /// Where the operator finds this.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn plan(&self, session: &str, point: Point, plan: Plan) {
        lock(&self.state).plans.insert(moment(session, point), plan);
    }

    /// Waits until the session has come to the point.
    pub(crate) async fn seen(&self, session: &str, point: Point, limit: Duration) -> Result<()> {
        let mut news = self.news.clone();
        let wanted = moment(session, point);
        let came = async {
            loop {
                news.borrow_and_update();
                if lock(&self.state).seen.contains(&wanted) {
                    return;
                }
                if news.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let in_time = tokio::time::timeout(limit, came).await;
        in_time.with_context(|| {
            let state = lock(&self.state);
            let seen: Vec<&str> = state
                .seen
                .iter()
                .filter(|(name, _)| name == session)
                .map(|(_, point)| point.as_str())
                .collect();
            format!(
                "{session} never came to {}; it came past {seen:?}",
                point.name()
            )
        })
    }

    /// Whoever is held goes on.
    pub(crate) fn release(&self) {
        lock(&self.state).held.clear();
    }
}

async fn answer(stream: UnixStream, state: Arc<Mutex<State>>, news: watch::Sender<()>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).await.is_err() {
        return;
    }
    let Some((session, point)) = line.trim_end().split_once(' ') else {
        return;
    };
    let mut stream = reader.into_inner();
    let moment = (session.to_owned(), point.to_owned());
    let plan = lock(&state).plans.remove(&moment);
    if plan == Some(Plan::Kill) {
        let _ = stream.write_all(KILL.as_bytes()).await;
    }
    {
        let mut state = lock(&state);
        if plan == Some(Plan::Hold) {
            state.held.push(stream);
        }
        state.seen.insert(moment);
    }
    news.send_modify(|()| {});
}
