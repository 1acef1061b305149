//! Storing, against an API server in memory.

use http::Method;
use k8s_openapi::ByteString;
use serde_json::json;
use sha2::{Digest, Sha256};
use sidewinder_model::{Data, ExecOutcome, Outcome, Reason, TargetOutcome};

use super::*;
use crate::relay::budget::Delivered;
use crate::session::result::spill::{DOCUMENT_BYTES, PART_BYTES, hex};
use crate::testing::{FakeApi, session};

const SECRETS: &str = "/api/v1/namespaces/shop/secrets";

/// Output that hardly compresses.
fn noise(bytes: usize) -> String {
    let mut state = 1_u64;
    (0..bytes)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            char::from(b' ' + u8::try_from(state >> 58).unwrap())
        })
        .collect()
}

fn ran(stdout: String) -> Outcome {
    Outcome {
        targets: vec![TargetOutcome {
            data: Some(Data::Exec(Box::new(ExecOutcome {
                stdout,
                ..ExecOutcome::default()
            }))),
            ..TargetOutcome::failed(Reason::Succeeded, "")
        }],
        ..Outcome::default()
    }
}

async fn stored(
    client: &Client,
    outcome: &Delivered,
    budget: &Budget,
) -> Result<ResultRef, NotStored> {
    let session = session(json!({"remoteExec": {"script": "print(1)"}}));
    let whole = Whole {
        outcome: outcome.clone(),
        place: 0,
    };
    store(client, &session, &whole, DOCUMENT_BYTES, budget).await
}

#[tokio::test]
async fn a_result_comes_back_from_its_secrets_and_is_stored_once() {
    let (client, api) = FakeApi::new();
    let outcome = ran(noise(3_000_000));
    let json = serde_json::to_vec(&outcome.targets[0]).unwrap();
    let outcome = Delivered::from(outcome);
    let budget = Budget::default();
    let first = stored(&client, &outcome, &budget).await.unwrap();
    assert!(first.parts.len() > 2);
    assert!(!first.truncated);
    assert_eq!(first.encoding, "zstd");
    assert_eq!(first.size_bytes, i64::try_from(json.len()).unwrap());
    assert_eq!(first.sha256, hex(&Sha256::digest(&json)));
    let mut stream = Vec::new();
    for part in &first.parts {
        let secret: Secret =
            serde_json::from_value(api.get(&format!("{SECRETS}/{}", part.secret_name)).unwrap())
                .unwrap();
        assert_eq!(secret.immutable, Some(true));
        let ByteString(bytes) = secret.data.unwrap().remove(&part.key).unwrap();
        assert!(bytes.len() <= PART_BYTES);
        stream.extend(bytes);
    }
    assert_eq!(zstd::stream::decode_all(stream.as_slice()).unwrap(), json);
    // An operator that was killed before it wrote the status does it again.
    assert_eq!(stored(&client, &outcome, &budget).await.unwrap(), first);
    let made = api.made(&Method::POST, "secrets");
    assert_eq!(made.len(), 2 * first.parts.len());
    let secrets = api.requests_of("secrets");
    assert_eq!(secrets, made.len(), "something else than a create");
}

#[tokio::test]
async fn a_refused_part_ends_it_with_the_servers_words() {
    let (client, api) = FakeApi::new();
    let outcome = Delivered::from(ran(noise(3_000_000)));
    api.refuse(Method::POST, "secrets", "", 403, "exceeded quota: secrets");
    let error = stored(&client, &outcome, &Budget::default())
        .await
        .unwrap_err();
    assert_eq!(error.words(), "exceeded quota: secrets");
    assert_eq!(api.made(&Method::POST, "secrets").len(), 1);
    // Nothing holds the outcome any more.
    while outcome.is_shared() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_dropped_call_lets_go_of_the_outcome() {
    let (client, api) = FakeApi::new();
    let outcome = Delivered::from(ran(noise(3_000_000)));
    let budget = Budget::default();
    let mut call = Box::pin(stored(&client, &outcome, &budget));
    while api.made(&Method::POST, "secrets").is_empty() {
        assert!(futures::poll!(&mut call).is_pending());
        tokio::task::yield_now().await;
    }
    drop(call);
    while outcome.is_shared() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_answer_that_is_not_there_is_an_error() {
    let (client, _api) = FakeApi::new();
    let error = stored(&client, &Outcome::default().into(), &Budget::default())
        .await
        .unwrap_err();
    assert!(matches!(error, NotStored::Write(_)), "{error}");
}
