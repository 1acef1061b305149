//! The session's status while its pods are worked on side by side: every run shows its pod's entry here, and what is
//! written is always the whole, by one writer at a time.
//!
//! Intents of several pods that are due at the same moment go out in one write. A write that meets another one goes on
//! where nobody else works on the session, and leaves it where somebody does. An agent may forget an outcome only when
//! its entry stands in the API server.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use sidewinder_crds::conditions::{self, Observation};
use sidewinder_crds::{DebugSession, DebugSessionStatus, Phase, TargetStatus};
use sidewinder_model::Reason;
use tokio::sync::watch;
use tracing::warn;

use super::{Flow, Given, Outcome, Signal, Target, target_words};
use crate::error::Error;
use crate::faults::{self, Point};
use crate::relay::Agent;
use crate::session::apply::{self, Written};
use crate::session::result::{self, Entry, Finished, PodEnd, Reached};
use crate::session::store::{Silence, fit_and_store};
use crate::session::{Context, observe};

/// How often what several pods show is written, where nothing waits for it.
pub(super) const SHOW_EVERY: Duration = Duration::from_secs(1);

/// One pod's part.
struct Place {
    /// What is shown while it goes on.
    going: TargetStatus,
    end: Option<PodEnd>,
    /// Who keeps the outcome until it stands in the status.
    keeper: Option<Arc<Agent>>,
}

#[derive(Default)]
struct Places {
    all: Vec<Place>,
    /// The container that was chosen, where the session names none.
    container: Option<String>,
    /// Counts the changes.
    version: u64,
}

struct Sheet {
    /// As it stands in the API server, as far as is known.
    session: DebugSession,
    /// As it should stand there, without its targets.
    status: DebugSessionStatus,
    /// The version of the places that stands there.
    written: u64,
    left_to_another: bool,
}

/// The status of one session, shared by the runs of its pods.
pub(super) struct Board<'a, C> {
    context: &'a Context<C>,
    /// Tells the runs what a write found out.
    signal: &'a watch::Sender<Signal>,
    /// What is written, for whoever works on after a failure.
    given: &'a Given,
    places: Mutex<Places>,
    sheet: tokio::sync::Mutex<Sheet>,
    /// Whether a write failed: then nothing goes on, whatever else failed with it.
    failed: AtomicBool,
}

impl<'a, C> Board<'a, C> {
    /// A board for `session`, whose status should be `status`.
    pub(super) fn new(
        context: &'a Context<C>,
        signal: &'a watch::Sender<Signal>,
        given: &'a Given,
        session: DebugSession,
        status: DebugSessionStatus,
    ) -> Self {
        Self {
            context,
            signal,
            given,
            places: Mutex::default(),
            sheet: tokio::sync::Mutex::new(Sheet {
                session,
                status: DebugSessionStatus {
                    targets: Vec::new(),
                    ..status
                },
                written: 0,
                left_to_another: false,
            }),
            failed: AtomicBool::new(false),
        }
    }

    /// Whether the status could not be written.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// What a pod whose part goes on shows.
    pub(super) fn entry(&self, place: usize) -> TargetStatus {
        let places = self.places();
        places
            .all
            .get(place)
            .map(|place| place.going.clone())
            .unwrap_or_default()
    }

    pub(super) fn context(&self) -> &'a Context<C> {
        self.context
    }

    /// What the outside says, and what a write found out.
    pub(super) fn signals(&self) -> watch::Receiver<Signal> {
        self.signal.subscribe()
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the pods; `places` says where in the status each of them stands.
    pub(super) fn add(&self, targets: &mut [Target], places: &[usize]) {
        let mut added: Vec<_> = places.iter().zip(targets).collect();
        added.sort_by_key(|(place, _)| **place);
        let mut places = self.places();
        places.version += 1;
        places
            .all
            .extend(added.into_iter().map(|(_, target)| Place {
                going: target.entry.clone(),
                end: target.end.take(),
                keeper: None,
            }));
    }

    /// Whether a pod's part has ended.
    pub(super) fn has_ended(&self, place: usize) -> bool {
        self.places()
            .all
            .get(place)
            .is_some_and(|place| place.end.is_some())
    }

    /// Notes which container was chosen, for the table.
    pub(super) fn name_container(&self, container: Option<&str>) {
        if let Some(container) = container {
            self.places().container = Some(container.to_owned());
        }
    }

    /// The target in short, for the table.
    fn target(&self, session: &DebugSession) -> String {
        target_words(session, self.places().container.as_deref())
    }

    /// Shows how far a pod's part is, and writes it at once where the session has no other pod.
    pub(super) async fn show(&self, place: usize, entry: TargetStatus) -> Result<Flow, Error> {
        let (version, alone) = self.set(place, entry);
        if alone {
            self.write(version).await
        } else {
            Ok(Flow::Continue)
        }
    }

    /// Shows how far a pod's part is, and returns when that stands in the API server.
    pub(super) async fn commit(&self, place: usize, entry: TargetStatus) -> Result<Flow, Error> {
        let (version, _) = self.set(place, entry);
        self.write(version).await
    }

    fn set(&self, place: usize, entry: TargetStatus) -> (u64, bool) {
        let mut places = self.places();
        if let Some(place) = places.all.get_mut(place) {
            place.going = entry;
        }
        places.version += 1;
        (places.version, places.all.len() == 1)
    }

    /// Notes that a pod's part has ended. `keeper` keeps the outcome until it stands in the status.
    pub(super) fn settle(&self, place: usize, end: PodEnd, keeper: Option<Arc<Agent>>) {
        let mut places = self.places();
        if let Some(place) = places.all.get_mut(place) {
            place.end = Some(end);
            place.keeper = keeper;
        }
        places.version += 1;
    }

    /// Writes what the places show now, unless it stands there.
    pub(super) async fn write_all(&self) -> Result<Flow, Error> {
        let version = self.places().version;
        self.write(version).await
    }

    /// Writes until at least `version` of the places stands in the API server.
    async fn write(&self, version: u64) -> Result<Flow, Error> {
        let written = self.write_once(version).await;
        if written.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        written
    }

    async fn write_once(&self, version: u64) -> Result<Flow, Error> {
        let mut sheet = self.sheet.lock().await;
        if sheet.left_to_another {
            return Ok(Flow::Stop(Outcome::Superseded));
        }
        if sheet.written >= version {
            return Ok(Flow::Continue);
        }
        let (mut entries, keepers, version) = self.take();
        let mut status = progress(&sheet, &entries);
        status.target = Some(self.target(&sheet.session));
        let pods = entries.iter_mut().map(Shown::entries).collect();
        fit_and_store(self.context, &sheet.session, &status, pods, Silence::Fails).await?;
        status.targets = entries
            .iter_mut()
            .flat_map(Shown::entries)
            .filter_map(|entry| entry.shown())
            .collect();
        self.give_back(entries);
        faults::at(Point::Write).await;
        if sheet.session.status.as_ref() != Some(&status)
            && let Flow::Stop(outcome) = self.save(&mut sheet, status).await?
        {
            return Ok(Flow::Stop(outcome));
        }
        faults::at(Point::Written).await;
        sheet.written = version;
        acknowledge(&sheet.session, keepers).await;
        Ok(Flow::Continue)
    }

    /// The session as it stands in the API server, as far as is known.
    pub(super) async fn session(&self) -> DebugSession {
        self.sheet.lock().await.session.clone()
    }

    /// Writes the end of the session, all of whose pods have ended. `lone` is the end of a session without pods.
    pub(super) async fn finish(
        &self,
        lone: Option<PodEnd>,
        elapsed: impl FnOnce(&DebugSession, Timestamp) -> Duration,
    ) -> Result<(Flow, Finished, Vec<PodEnd>), Error> {
        let mut sheet = self.sheet.lock().await;
        // Who waits to show how far the pods are comes too late: it would take the end back.
        sheet.written = u64::MAX;
        let now = Timestamp::now();
        let (shown, keepers, _) = self.take();
        let mut ends: Vec<PodEnd> = shown
            .into_iter()
            .filter_map(|shown| match shown {
                Shown::End(end) => Some(end),
                Shown::Going(_) => None,
            })
            .chain(lone)
            .collect();
        let base = DebugSession {
            status: Some(sheet.status.clone()),
            ..sheet.session.clone()
        };
        let elapsed = elapsed(&sheet.session, now);
        let mut finished = result::finish(&base, &ends, elapsed, now);
        finished.status.target = Some(self.target(&sheet.session));
        let pods = ends.iter_mut().map(|end| end.entries.as_mut_slice());
        let pods = pods.collect();
        faults::at(Point::Finish).await;
        let session = &sheet.session;
        fit_and_store(
            self.context,
            session,
            &finished.status,
            pods,
            Silence::Fails,
        )
        .await?;
        faults::at(Point::Stored).await;
        let generation = sheet.session.metadata.generation;
        let status = std::mem::take(&mut finished.status);
        finished.status = result::seal(status, &ends, generation, now);
        if sheet.left_to_another {
            return Ok((Flow::Stop(Outcome::Superseded), finished, ends));
        }
        let flow = self.save(&mut sheet, finished.status.clone()).await?;
        if matches!(flow, Flow::Continue) {
            faults::at(Point::Finished).await;
            acknowledge(&sheet.session, keepers).await;
            faults::at(Point::Acknowledged).await;
        }
        Ok((flow, finished, ends))
    }

    /// What the places show, taken out so that it can be stored without a lock on the others.
    fn take(&self) -> (Vec<Shown>, Vec<Arc<Agent>>, u64) {
        let mut places = self.places();
        let version = places.version;
        let keepers = places
            .all
            .iter_mut()
            .filter_map(|place| place.keeper.take())
            .collect();
        let shown = places
            .all
            .iter_mut()
            .map(|place| match place.end.take() {
                Some(end) => Shown::End(end),
                None => Shown::Going(Box::new(Entry::written(place.going.clone()))),
            })
            .collect();
        (shown, keepers, version)
    }

    fn give_back(&self, shown: Vec<Shown>) {
        let mut places = self.places();
        for (place, shown) in places.all.iter_mut().zip(shown) {
            if let Shown::End(end) = shown {
                place.end = Some(end);
            }
        }
    }

    /// Writes `status`, unless somebody else wrote a status meanwhile.
    async fn save(&self, sheet: &mut Sheet, mut status: DebugSessionStatus) -> Result<Flow, Error> {
        loop {
            status.observed_generation = sheet.session.metadata.generation;
            match apply::status(&self.context.client, &sheet.session, &status).await? {
                Written::Done(session) => {
                    self.keep(sheet, *session);
                    return Ok(Flow::Continue);
                }
                Written::Gone => return Ok(self.gone()),
                Written::Conflict => {
                    let Some(fresh) =
                        observe::session(&self.context.client, &sheet.session).await?
                    else {
                        return Ok(self.gone());
                    };
                    let known = sheet.session.status.as_ref();
                    let theirs = fresh.status.as_ref();
                    if theirs == Some(&status) {
                        // The write arrived and its answer did not.
                        self.keep(sheet, fresh);
                        return Ok(Flow::Continue);
                    }
                    let untouched = theirs.is_none_or(|theirs| theirs.phase.is_none());
                    if theirs != known && !untouched {
                        warn!("another operator wrote the status; leaving the session to it");
                        sheet.left_to_another = true;
                        return Ok(Flow::Stop(Outcome::Superseded));
                    }
                    self.keep(sheet, fresh);
                }
            }
        }
    }

    /// Takes the session as it is now, and tells the runs where it is cancelled.
    fn keep(&self, sheet: &mut Sheet, session: DebugSession) {
        if session.spec.cancel && !sheet.session.spec.cancel {
            let latest = Arc::new(session.clone());
            self.signal
                .send_modify(|signal| signal.latest = Some(latest));
        }
        if let Some(written) = &session.status {
            sheet.status = DebugSessionStatus {
                targets: Vec::new(),
                ..written.clone()
            };
        }
        self.given.note(&session);
        sheet.session = session;
    }

    fn gone(&self) -> Flow {
        self.signal.send_modify(|signal| signal.gone = true);
        Flow::Stop(Outcome::Gone)
    }
}

/// Tells the agents whose outcomes stand in the status. One that does not hear it forgets them by itself.
async fn acknowledge(session: &DebugSession, keepers: Vec<Arc<Agent>>) {
    let uid = session.uid().unwrap_or_default();
    for keeper in keepers {
        let _ = keeper.acknowledge(&uid).await;
    }
}

/// What one place shows.
enum Shown {
    Going(Box<Entry>),
    End(PodEnd),
}

impl Shown {
    fn entries(&mut self) -> &mut [Entry] {
        match self {
            Self::Going(entry) => std::slice::from_mut(entry.as_mut()),
            Self::End(end) => &mut end.entries,
        }
    }
}

/// The status of a session that goes on, without its targets.
fn progress(sheet: &Sheet, shown: &[Shown]) -> DebugSessionStatus {
    let mut status = sheet.status.clone();
    let phase = |wanted: Phase| {
        shown.iter().any(|shown| match shown {
            Shown::Going(entry) => entry.status.phase == Some(wanted),
            Shown::End(_) => wanted == Phase::Running,
        })
    };
    status.phase = Some(if phase(Phase::Running) {
        Phase::Running
    } else if phase(Phase::Attaching) {
        Phase::Attaching
    } else {
        Phase::Pending
    });
    let done = shown
        .iter()
        .filter(|shown| matches!(shown, Shown::End(_)))
        .count();
    status.pods = Some(format!("{done}/{}", shown.len()));
    let attached = shown.iter().all(|shown| match shown {
        Shown::Going(entry) => entry.status.agent.is_some(),
        Shown::End(end) => end.reached >= Reached::Agent,
    });
    let mut holds = vec![(conditions::ACCEPTED, Reason::Accepted)];
    if attached && !shown.is_empty() {
        holds.push((conditions::ATTACHED, Reason::Attached));
    }
    for (condition, reason) in holds {
        conditions::set(
            &mut status.conditions,
            Observation {
                condition,
                status: true,
                reason: reason.to_string(),
                message: reason.sentence().to_owned(),
            },
            sheet.session.metadata.generation,
            Timestamp::now(),
        );
    }
    status
}
