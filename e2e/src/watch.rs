//! Waiting for an object to reach a state, with a limit and with an error that shows the state it was in instead.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use kube::runtime::{WatchStreamExt as _, watcher::watch_object};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a watched object must be able to do.
pub trait Watched:
    Resource + Clone + DeserializeOwned + Serialize + Debug + Send + 'static
{
}
impl<K: Resource + Clone + DeserializeOwned + Serialize + Debug + Send + 'static> Watched for K {}

/// Watches the object called `name` until `reached` holds for it (`None`: there is no such object) and returns it.
///
/// A watch that breaks, because the API server restarts for example, is taken up again until the limit.
///
/// # Errors
/// After `limit`, naming `what` was waited for and showing the last state that was seen.
pub async fn until<K: Watched>(
    api: &Api<K>,
    name: &str,
    limit: Duration,
    what: &str,
    mut reached: impl FnMut(Option<&K>) -> bool,
) -> Result<Option<K>> {
    let mut last = None;
    let mut error = None;
    let found = tokio::time::timeout(limit, async {
        let mut states = pin!(watch_object(api.clone(), name).default_backoff());
        while let Some(state) = states.next().await {
            match state {
                Ok(object) if reached(object.as_ref()) => return Some(object),
                Ok(object) => last = Some(object),
                Err(failed) => error = Some(failed),
            }
        }
        None
    })
    .await;
    match found {
        Ok(Some(object)) => Ok(object),
        Ok(None) => bail!("the watch of {name} ended before {what}"),
        Err(_) => bail!(
            "{name}: waited {} s for {what}; last seen: {}{}",
            limit.as_secs(),
            shown(last.as_ref()),
            error
                .map(|error| format!("\nlast error of the watch: {error}"))
                .unwrap_or_default()
        ),
    }
}

/// Like [`until`], for an object that must be there.
pub async fn until_object<K: Watched>(
    api: &Api<K>,
    name: &str,
    limit: Duration,
    what: &str,
    mut reached: impl FnMut(&K) -> bool,
) -> Result<K> {
    until(api, name, limit, what, |object| {
        object.is_some_and(&mut reached)
    })
    .await?
    .context("the watch ended without an object")
}

fn shown<K: Resource + Clone + Serialize>(last: Option<&Option<K>>) -> String {
    match last {
        None => "nothing".to_owned(),
        Some(None) => "there is no such object".to_owned(),
        Some(Some(object)) => {
            let mut object = object.clone();
            // Who wrote which field is as long as the rest and explains nothing.
            object.meta_mut().managed_fields = None;
            serde_yaml::to_string(&object).unwrap_or_else(|error| error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    #[test]
    fn an_object_is_shown_without_who_wrote_which_field() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "managedFields": [{"manager": "m", "operation": "Update"}]},
            "status": {"phase": "Pending"},
        }))
        .unwrap();
        let text = shown(Some(&Some(pod)));
        assert!(
            text.contains("name: p") && text.contains("phase: Pending"),
            "{text}"
        );
        assert!(!text.contains("managedFields"), "{text}");
        assert_eq!(shown::<Pod>(Some(&None)), "there is no such object");
        assert_eq!(shown::<Pod>(None), "nothing");
    }
}
