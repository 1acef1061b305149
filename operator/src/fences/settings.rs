//! The settings that are in force as soon as they change: the data of one ConfigMap, which is watched.
//!
//! A ConfigMap that is mounted would need no right to read it, but reaches the pod only a minute later: too late for a
//! kill switch.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::error::{describe, passes};

/// The most seconds that the API itself lets a session ask for.
const MAX_TIMEOUT_SECONDS: i32 = 3600;
/// How long the first look at the ConfigMap is waited for.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// The longest pause of a watch that fails: after an outage the kill switch would else be heard half a minute late.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What is refused at once, whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillSwitch {
    /// Nothing.
    None,
    /// What runs code, or shows values.
    CodeRunning,
    /// Everything.
    All,
}

/// Where the label that allows sessions is demanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptIn {
    /// Nowhere.
    None,
    /// On the namespace.
    Namespace,
    /// On the pod.
    Pod,
}

/// Which scripts may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scripts {
    /// Every one.
    Any,
    /// Those with these SHA-256 digests, in lower case.
    AllowList(BTreeSet<String>),
    /// None.
    RecipesOnly,
}

/// What is known of the ConfigMap since this operator started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing: the API server has not said yet what there is.
    NotYet,
    /// That there is none, or that it may not be read.
    Absent,
    /// What stands in it, or stood in it.
    Yes,
}

/// The settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether they could be read; else why not. Then nothing runs code.
    pub readable: Result<(), String>,
    /// Whether there was anything to read since this operator started. Until then nothing is done at all: what only reads
    /// could be switched off, or unwelcome, and nobody knows. Nothing is refused for it, either, before the API server has
    /// said that there is nothing.
    pub seen: Seen,
    /// What is refused at once.
    pub kill_switch: KillSwitch,
    /// Where the label that allows sessions is demanded.
    pub opt_in: OptIn,
    /// The longest timeout.
    pub max_timeout_seconds: i32,
    /// Whether a session must say why.
    pub require_reason: bool,
    /// Which scripts may run.
    pub scripts: Scripts,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            readable: Ok(()),
            seen: Seen::Yes,
            kill_switch: KillSwitch::None,
            opt_in: OptIn::None,
            max_timeout_seconds: MAX_TIMEOUT_SECONDS,
            require_reason: false,
            scripts: Scripts::Any,
        }
    }
}

impl Settings {
    /// Settings that could not be read.
    pub fn unreadable(why: impl Into<String>) -> Self {
        Self {
            readable: Err(why.into()),
            ..Self::default()
        }
    }

    /// Settings of which nothing was heard yet: nobody answered.
    pub fn unread(why: impl Into<String>) -> Self {
        Self {
            seen: Seen::NotYet,
            ..Self::unreadable(why)
        }
    }

    /// What becomes of them when there is no ConfigMap, or none that may be read. What was known holds on for what only
    /// reads; where there never was one, nothing is known.
    #[must_use]
    pub fn without(&self, why: impl Into<String>) -> Self {
        Self {
            readable: Err(why.into()),
            seen: match self.seen {
                Seen::Yes => Seen::Yes,
                Seen::NotYet | Seen::Absent => Seen::Absent,
            },
            ..self.clone()
        }
    }

    /// The settings in the data of a ConfigMap. What is absent has its default; what cannot be read, also a key that
    /// nobody knows, makes the whole unreadable, and what could be read of it still holds.
    pub fn read(data: &BTreeMap<String, String>) -> Self {
        let mut settings = Self::default();
        let mut wrong = Vec::new();
        let mut allowed = BTreeSet::new();
        for (key, value) in data {
            let value = value.trim();
            let choice =
                |choices: &str| format!("{key} is `{}`, and may be {choices}", shown(value));
            match (key.as_str(), value) {
                ("killSwitch", "None") => settings.kill_switch = KillSwitch::None,
                ("killSwitch", "CodeRunning") => settings.kill_switch = KillSwitch::CodeRunning,
                ("killSwitch", "All") => settings.kill_switch = KillSwitch::All,
                ("killSwitch", _) => {
                    // Whoever reaches for it is in a hurry, and means to stop something.
                    settings.kill_switch = KillSwitch::All;
                    wrong.push(choice("None, CodeRunning or All"));
                }
                ("optIn", "None") => settings.opt_in = OptIn::None,
                ("optIn", "Namespace") => settings.opt_in = OptIn::Namespace,
                ("optIn", "Pod") => settings.opt_in = OptIn::Pod,
                ("optIn", _) => wrong.push(choice("None, Namespace or Pod")),
                ("maxTimeoutSeconds", _) => match value.parse() {
                    Ok(seconds @ 1..=MAX_TIMEOUT_SECONDS) => settings.max_timeout_seconds = seconds,
                    _ => wrong.push(choice("a number from 1 to 3600")),
                },
                ("requireReason", "true") => settings.require_reason = true,
                ("requireReason", "false") => settings.require_reason = false,
                ("requireReason", _) => wrong.push(choice("true or false")),
                ("scriptsMode", "Any") => settings.scripts = Scripts::Any,
                ("scriptsMode", "AllowList") => {
                    settings.scripts = Scripts::AllowList(BTreeSet::new());
                }
                ("scriptsMode", "RecipesOnly") => settings.scripts = Scripts::RecipesOnly,
                ("scriptsMode", _) => wrong.push(choice("Any, AllowList or RecipesOnly")),
                ("scriptsAllowedSha256", _) => {
                    for digest in value.split_whitespace() {
                        if digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
                        {
                            allowed.insert(digest.to_ascii_lowercase());
                        } else {
                            wrong.push(format!(
                                "{key} has `{}`, which is no SHA-256 digest of 64 hexadecimal digits",
                                shown(digest)
                            ));
                        }
                    }
                }
                _ => wrong.push(format!("there is no setting {}", shown(key))),
            }
        }
        if let Scripts::AllowList(list) = &mut settings.scripts {
            *list = allowed;
        }
        if !wrong.is_empty() {
            settings.readable = Err(wrong.join("; "));
        }
        settings
    }
}

/// As much of a wrong value as helps to find it.
fn shown(value: &str) -> String {
    value
        .chars()
        .take(80)
        .flat_map(char::escape_default)
        .collect()
}

/// The pauses of a watch that fails, none of them longer than [`LONGEST_PAUSE`].
struct Pauses(watcher::DefaultBackoff);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause.min(LONGEST_PAUSE))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// Watches the ConfigMap `name`, and returns its settings as soon as they are known or `FIRST_LOOK` is over. A watch that
/// fails keeps what was known. Without a name there is no ConfigMap and every setting has its default.
pub async fn watched(client: Client, namespace: &str, name: &str) -> watch::Receiver<Settings> {
    if name.is_empty() {
        return watch::channel(Settings::default()).1;
    }
    let place = format!("ConfigMap {namespace}/{name}");
    let (sender, mut receiver) =
        watch::channel(Settings::unread(format!("{place} was not read yet")));
    receiver.borrow_and_update();
    let api: Api<ConfigMap> = Api::namespaced(client, namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    tokio::spawn(async move {
        let pauses = Pauses(watcher::DefaultBackoff::default());
        let mut events = watcher(api, config).backoff(pauses).boxed();
        let mut listed = None;
        while let Some(event) = events.next().await {
            let settings = match event {
                Ok(watcher::Event::Init) => {
                    listed = None;
                    continue;
                }
                Ok(watcher::Event::InitApply(map)) => {
                    listed = Some(map);
                    continue;
                }
                Ok(watcher::Event::InitDone) => match listed.take() {
                    Some(map) => read_map(map),
                    None => sender.borrow().without(format!("there is no {place}")),
                },
                Ok(watcher::Event::Apply(map)) => read_map(map),
                Ok(watcher::Event::Delete(_)) => {
                    sender.borrow().without(format!("there is no {place}"))
                }
                Err(failed) => {
                    warn!(error = %describe(&failed), "the watch of {place} failed");
                    let known = sender.borrow().clone();
                    match failed {
                        // An answer, and one that will not pass by itself.
                        watcher::Error::InitialListFailed(answer)
                            if known.seen == Seen::NotYet && !passes(&answer) =>
                        {
                            known.without(format!("{place} cannot be read: {answer}"))
                        }
                        _ => continue,
                    }
                }
            };
            match &settings.readable {
                Ok(()) => info!(?settings, "settings"),
                Err(wrong) => error!(
                    ?settings,
                    "nothing runs code, because {place} cannot be read: {wrong}"
                ),
            }
            if sender.send(settings).is_err() {
                return;
            }
        }
    });
    if tokio::time::timeout(FIRST_LOOK, receiver.changed())
        .await
        .is_err()
    {
        warn!("the settings were not read in time; until they are, every session waits");
    }
    receiver
}

fn read_map(map: ConfigMap) -> Settings {
    Settings::read(&map.data.unwrap_or_default())
}

#[cfg(test)]
mod tests;
