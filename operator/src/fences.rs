//! What may be refused before anything is touched: by settings, by labels, by the requester's own rights, and because
//! the admission policies that hold requesters and this operator are not in place.
//!
//! The decision is [`allow`], a pure function. What it needs is read by the files beside: the settings, as soon as they
//! change, in [`settings`]; the policies in [`policies`]; the requester's rights in [`review`]. Everything fails closed for
//! what runs code; read-only actions go on where something cannot be read any more.

pub mod audit;
pub mod namespaces;
pub mod policies;
pub mod review;
pub mod settings;
pub mod slots;
pub mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt};
use sidewinder_crds::names::{ALLOW_LABEL, DENY_LABEL};
use sidewinder_crds::{DebugSession, SessionAction};
use sidewinder_model::Reason;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use self::namespaces::Namespaces;
use self::policies::Policies;
use self::review::Reviewer;
use self::settings::{KillSwitch, OptIn, Scripts, Seen, Settings};
use self::slots::Slots;
use crate::error::{Error, OUTAGE_LIMIT, describe};
use crate::inject::Refusal;

/// Labels, as an object carries them.
pub type Labels = BTreeMap<String, String>;

/// What is known of a session's surroundings. What is `None` was not looked at, or is not known yet, and is not judged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// The labels of the session's namespace.
    pub namespace: Option<&'a Labels>,
    /// The target pod's name and labels.
    pub pod: Option<(&'a str, &'a Labels)>,
    /// The digest of the bytes that would run.
    pub script_sha256: Option<&'a str>,
}

/// Whether the settings allow `session`: of it itself, of its namespace, of a pod and of a script, as far as `facts` go.
///
/// # Errors
/// When they do not: why, and which setting or label says so.
pub fn allow(
    session: &DebugSession,
    facts: &Facts<'_>,
    settings: &Settings,
) -> Result<(), Refusal> {
    let code = runs_code(session);
    if let Some(refusal) = switched_off(session, settings) {
        return Err(refusal);
    }
    if settings.seen != Seen::Yes {
        let why = settings.readable.as_ref().err().map_or("", String::as_str);
        return Err(denied(format!(
            "the operator's settings were never read since it started, and until they are every session is refused: {why}"
        )));
    }
    if code && let Err(wrong) = &settings.readable {
        return Err(denied(format!(
            "the operator's settings cannot be read, and until then nothing runs code: {wrong}"
        )));
    }
    let spec = &session.spec;
    let longest = settings.max_timeout_seconds;
    if spec.timeout_seconds > longest {
        return Err(denied(format!(
            "timeoutSeconds is {}, and the setting maxTimeoutSeconds allows {longest} at most",
            spec.timeout_seconds
        )));
    }
    if settings.require_reason
        && spec
            .reason
            .as_deref()
            .is_none_or(|why| why.trim().is_empty())
    {
        return Err(denied(
            "the setting requireReason demands spec.reason: why this is done, for example an incident's number",
        ));
    }
    if let Some(labels) = facts.namespace {
        let namespace = session.namespace().unwrap_or_default();
        welcome(
            &format!("namespace {namespace}"),
            labels,
            settings.opt_in == OptIn::Namespace,
            "Namespace",
        )?;
    }
    if let Some((name, labels)) = facts.pod {
        welcome(
            &format!("pod {name}"),
            labels,
            settings.opt_in == OptIn::Pod,
            "Pod",
        )?;
    }
    if matches!(spec.action(), Some(SessionAction::RemoteExec(_))) {
        script(facts.script_sha256, &settings.scripts)?;
    }
    Ok(())
}

/// Whether the session needs the requester's own right to run code. One without an action that is known might.
pub fn runs_code(session: &DebugSession) -> bool {
    session.spec.action().is_none_or(SessionAction::runs_code)
}

/// Whether the kill switch concerns the session.
pub fn switched_off(session: &DebugSession, settings: &Settings) -> Option<Refusal> {
    let (what, setting) = match settings.kill_switch {
        KillSwitch::None => return None,
        KillSwitch::CodeRunning if !runs_code(session) => return None,
        KillSwitch::CodeRunning => ("sessions that run code", "CodeRunning"),
        KillSwitch::All => ("all sessions", "All"),
    };
    Some(denied(format!(
        "the kill switch is on: {what} are refused (killSwitch is {setting} in the operator's settings)"
    )))
}

fn denied(message: impl Into<String>) -> Refusal {
    Refusal::new(Reason::PolicyDenied, message)
}

/// `deny` holds for every value but `false`, so that whoever writes `yes` is understood; `allow` for `true` alone.
fn welcome(what: &str, labels: &Labels, opt_in: bool, setting: &str) -> Result<(), Refusal> {
    if let Some(value) = labels.get(DENY_LABEL).filter(|value| *value != "false") {
        return Err(denied(format!(
            "{what} has the label {DENY_LABEL}={value}, which keeps sessions out"
        )));
    }
    if opt_in && labels.get(ALLOW_LABEL).is_none_or(|value| value != "true") {
        return Err(denied(format!(
            "{what} has no label {ALLOW_LABEL}=true, which the setting optIn: {setting} demands"
        )));
    }
    Ok(())
}

/// A script whose digest is not known yet is not judged by the list, and must be once it is read.
fn script(digest: Option<&str>, scripts: &Scripts) -> Result<(), Refusal> {
    match (scripts, digest) {
        (Scripts::Any, _) | (Scripts::AllowList(_), None) => Ok(()),
        (Scripts::AllowList(allowed), Some(digest)) if allowed.contains(digest) => Ok(()),
        (Scripts::AllowList(_), Some(digest)) => Err(denied(format!(
            "the script's SHA-256 digest {digest} is not in the setting scriptsAllowedSha256"
        ))),
        (Scripts::RecipesOnly, _) => Err(denied(
            "the setting scriptsMode is RecipesOnly: scripts are refused, recipes are not",
        )),
    }
}

/// What the configuration says once and for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demands {
    /// Whether code runs only while the admission policies are in place.
    pub policies: bool,
    /// Whether code runs only for somebody who is named in the session.
    pub requester: bool,
}

/// Everything that can refuse a session, together.
pub struct Fences {
    namespaces: Namespaces,
    demands: Demands,
    settings: watch::Receiver<Settings>,
    policies: Policies,
    reviewer: Reviewer,
    /// For what only reads, which must not wait for scripts that run long.
    reading: Slots,
    /// For what runs code.
    running: Slots,
}

impl Fences {
    /// Puts them together.
    pub fn new(
        client: Client,
        demands: Demands,
        settings: watch::Receiver<Settings>,
        policies: Policies,
        reviewer: Reviewer,
        slots: impl Fn() -> Slots,
    ) -> Self {
        Self {
            namespaces: Namespaces::new(client),
            demands,
            settings,
            policies,
            reviewer,
            reading: slots(),
            running: slots(),
        }
    }

    /// Says in the log what holds and what does not, once.
    pub async fn announce(&self) {
        if !self.demands.policies {
            warn!(
                "fences.requirePolicies is false: code runs without a look at the admission policies that hold requesters and this operator"
            );
        }
        if !self.demands.requester {
            warn!(
                "fences.requireRequester is false: sessions that do not say who asks run code, and nobody's rights are asked for again"
            );
        }
        match self.policies.in_place().await {
            Ok(Ok(())) => info!("the admission policies are in place"),
            Ok(Err(refusal)) => warn!("{}", refusal.message),
            Err(error) => {
                warn!(error = %describe(&error), "the admission policies cannot be read");
            }
        }
    }

    /// How many targets are worked on at once, per pod and per node: of sessions that run code, and of those that read.
    pub fn slots(&self, session: &DebugSession) -> &Slots {
        if runs_code(session) {
            &self.running
        } else {
            &self.reading
        }
    }

    /// The way of one session through the fences. `session` is as it was asked for.
    pub fn gate(&self, session: DebugSession, script_sha256: Option<String>) -> Gate<'_> {
        Gate {
            fences: self,
            session,
            script_sha256,
            reviewed: Mutex::new(None),
        }
    }

    /// To be asked when a session is taken up, with its script's digest: whether settings, the namespace's labels and the
    /// policies allow it, and whether it says who asks. Right before anything is done, [`Gate::act`] is asked.
    ///
    /// # Errors
    /// When the API server does not answer. A refusal is the inner error.
    pub async fn session(
        &self,
        session: &DebugSession,
        script_sha256: Option<&str>,
    ) -> Result<Result<(), Refusal>, Error> {
        self.settings_seen().await;
        let settings = self.settings.borrow().clone();
        let facts = Facts {
            script_sha256,
            ..Facts::default()
        };
        // What needs no look at the API server comes first.
        if let Err(refusal) = allow(session, &facts, &settings) {
            return Ok(Err(refusal));
        }
        if let Err(refusal) = self.judge(session, facts).await? {
            return Ok(Err(refusal));
        }
        if !runs_code(session) {
            return Ok(Ok(()));
        }
        self.demands_met(session).await
    }

    /// Whether what is demanded of every session that runs code holds: the policies are in place, and it says who asks.
    async fn demands_met(&self, session: &DebugSession) -> Result<Result<(), Refusal>, Error> {
        if self.demands.policies
            && let Err(refusal) = self.policies.in_place().await?
        {
            return Ok(Err(refusal));
        }
        if self.demands.requester && session.spec.requested_by.is_none() {
            return Ok(Err(review::unknown_requester()));
        }
        Ok(Ok(()))
    }

    /// Whether the requester's own rights allow what runs code, as of now.
    async fn review(&self, session: &DebugSession) -> Result<Result<(), Refusal>, Error> {
        match &session.spec.requested_by {
            Some(requester) => self.reviewer.review(session, requester).await,
            None => Ok(Ok(())),
        }
    }

    /// Waits until the kill switch concerns this session, which then is to be cancelled for the reason returned. Waits
    /// for ever where it never does. Nothing is lost when this is dropped.
    pub async fn killed(&self, session: &DebugSession) -> Refusal {
        let mut settings = self.settings.clone();
        loop {
            if let Some(refusal) = switched_off(session, &settings.borrow_and_update()) {
                return refusal;
            }
            if settings.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// The settings, now and after each change.
    pub fn settings(&self) -> watch::Receiver<Settings> {
        self.settings.clone()
    }

    /// Waits until the settings were read for the first time, or for too long. While nobody said what there is, that is an
    /// outage of the API server like any other, and ends no session.
    async fn settings_seen(&self) {
        let mut settings = self.settings.clone();
        let heard = settings.wait_for(|settings| settings.seen != Seen::NotYet);
        let _ = tokio::time::timeout(OUTAGE_LIMIT, heard).await;
        let read = settings.wait_for(|settings| settings.seen == Seen::Yes);
        let _ = tokio::time::timeout(FIRST_SETTINGS, read).await;
    }

    /// Whether settings and labels allow it, those of the namespace as of a moment ago.
    async fn judge(
        &self,
        session: &DebugSession,
        facts: Facts<'_>,
    ) -> Result<Result<(), Refusal>, Error> {
        self.settings_seen().await;
        let name = session.namespace().unwrap_or_default();
        let labels = match self.namespaces.labels(&name).await? {
            Ok(labels) => labels,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let facts = Facts {
            namespace: Some(&labels),
            ..facts
        };
        Ok(allow(session, &facts, &self.settings.borrow()))
    }
}

/// How long a session waits for a ConfigMap of settings that is not there: an install may make it after the operator.
const FIRST_SETTINGS: Duration = Duration::from_secs(10);

/// How long an answer about the requester's rights holds: long enough for the steps of a warm session and for the pods of
/// a fleet that are begun together, and no longer.
const REVIEWED: Duration = Duration::from_secs(5);

/// One session's way through the fences, shared by its pods.
pub struct Gate<'a> {
    fences: &'a Fences,
    session: DebugSession,
    script_sha256: Option<String>,
    /// When the requester's rights were asked for.
    reviewed: Mutex<Option<Instant>>,
}

impl Gate<'_> {
    /// To be asked once, before anything else.
    ///
    /// # Errors
    /// When the API server does not answer. A refusal is the inner error.
    pub async fn begin(&self) -> Result<Result<(), Refusal>, Error> {
        self.fences
            .session(&self.session, self.script_sha256.as_deref())
            .await
    }

    /// To be asked before each step that touches `pod`: whether settings and the labels of pod and namespace still allow it
    /// (a namespace's as of [`namespaces::LIFE`] ago at most; the caller sees to the pod's), and, for what runs code, the policies and the requester's own rights as of a moment ago.
    ///
    /// # Errors
    /// When the API server does not answer. A refusal is the inner error.
    pub async fn act(&self, pod: &Pod) -> Result<Result<(), Refusal>, Error> {
        let name = pod.name_any();
        let facts = Facts {
            pod: Some((&name, pod.labels())),
            script_sha256: self.script_sha256.as_deref(),
            ..Facts::default()
        };
        if let Err(refusal) = self.fences.judge(&self.session, facts).await? {
            return Ok(Err(refusal));
        }
        if !runs_code(&self.session) {
            return Ok(Ok(()));
        }
        // They are believed for a shorter time than the rights are, and all sessions share one look at them.
        if let Err(refusal) = self.fences.demands_met(&self.session).await? {
            return Ok(Err(refusal));
        }
        // Pods that come together share one answer.
        let mut reviewed = self.reviewed.lock().await;
        if reviewed.is_some_and(|when| when.elapsed() < REVIEWED) {
            return Ok(Ok(()));
        }
        let answer = self.fences.review(&self.session).await?;
        if answer.is_ok() {
            *reviewed = Some(Instant::now());
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests;
