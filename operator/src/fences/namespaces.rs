//! The labels of namespaces, which say whether sessions are welcome there. Many sessions of one namespace share one look at
//! them, which holds for [`LIFE`]: a namespace that opts out is left alone after that at the latest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::Api;
use kube::core::PartialObjectMeta;
use tokio::time::Instant;

use super::{Labels, denied};
use crate::error::{Error, patiently};
use crate::inject::Refusal;

/// How long what was read holds, from before it was asked for.
pub const LIFE: Duration = Duration::from_secs(3);
/// How many namespaces are remembered before those are forgotten whose look is too old.
const MANY: usize = 256;

type Look = Option<(Instant, Arc<Labels>)>;

/// What was read a moment ago.
pub struct Namespaces {
    client: Client,
    known: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Look>>>>,
}

impl Namespaces {
    /// Nothing yet.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            known: Mutex::default(),
        }
    }

    /// The labels of a namespace, read within [`LIFE`]. Whoever comes while they are read waits for the same answer.
    ///
    /// # Errors
    /// When the API server does not answer. That they cannot be read is a refusal, the inner error, and is not remembered.
    pub async fn labels(&self, name: &str) -> Result<Result<Arc<Labels>, Refusal>, Error> {
        let slot = self.slot(name);
        let mut look = slot.lock().await;
        if let Some((_, labels)) = look.as_ref().filter(|(when, _)| when.elapsed() < LIFE) {
            return Ok(Ok(Arc::clone(labels)));
        }
        let asked = Instant::now();
        let api: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
        let answer = patiently(
            || format!("read namespace {name}"),
            || api.get_metadata(name),
        )
        .await;
        match answer {
            Ok(found) => {
                let labels = Arc::new(found.metadata.labels.unwrap_or_default());
                *look = Some((asked, Arc::clone(&labels)));
                Ok(Ok(labels))
            }
            Err(error) if matches!(error.code(), Some(403 | 404)) => Ok(Err(denied(format!(
                "the labels of namespace {name} cannot be read, which say whether sessions are welcome there: {}",
                error.api().map_or("", |status| status.message.as_str())
            )))),
            Err(error) => Err(error),
        }
    }

    fn slot(&self, name: &str) -> Arc<tokio::sync::Mutex<Look>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MANY {
            known.retain(|_, slot| {
                slot.try_lock().map_or(true, |look| {
                    look.as_ref().is_some_and(|(when, _)| when.elapsed() < LIFE)
                })
            });
        }
        Arc::clone(known.entry(name.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::testing::{FakeApi, NAMESPACE};

    #[tokio::test(start_paused = true)]
    async fn those_who_come_together_share_one_look_and_the_next_one_is_fresh() {
        let (client, api) = FakeApi::new();
        let namespaces = Namespaces::new(client);
        let looks = || api.made(&Method::GET, NAMESPACE).len();
        let asked = futures::future::join_all((0..50).map(|_| namespaces.labels(NAMESPACE)));
        for answer in asked.await {
            assert!(answer.unwrap().unwrap().is_empty());
        }
        assert_eq!(looks(), 1);
        let path = format!("/api/v1/namespaces/{NAMESPACE}");
        api.change(&path, json!({"metadata": {"labels": {"a": "b"}}}));
        tokio::time::advance(LIFE).await;
        let labels = namespaces.labels(NAMESPACE).await.unwrap().unwrap();
        assert_eq!(labels.get("a").map(String::as_str), Some("b"));
        assert_eq!(looks(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_read_and_what_is_too_old_is_not_kept() {
        let (client, api) = FakeApi::new();
        let namespaces = Namespaces::new(client);
        for _ in 0..2 {
            assert!(namespaces.labels("nowhere").await.unwrap().is_err());
        }
        assert_eq!(api.made(&Method::GET, "nowhere").len(), 2);
        for number in 0..3 * MANY {
            let _ = namespaces.labels(&format!("n{number}")).await.unwrap();
        }
        assert!(namespaces.known.lock().unwrap().len() <= MANY);
    }
}
