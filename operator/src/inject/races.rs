//! Two that add a sidecar to one pod at the same time: two sessions, or an operator that does not know yet that it leads
//! no more.

use k8s_openapi::api::core::v1::{EphemeralContainer, Pod};
use serde_json::json;
use sidewinder_crds::AttachedAs;

use super::*;
use crate::session::apply::{Injected, inject};
use crate::testing::{FakeApi, pod, sidecar};

const POD: &str = "/api/v1/namespaces/shop/pods/web-0";

/// What somebody who sees `pod` would add.
fn next(pod: &Pod, attach: AttachedAs) -> EphemeralContainer {
    let name = next_name(pod, "app", &sidecar()).unwrap();
    ephemeral_container(pod, "app", attach, &sidecar(), &name).unwrap()
}

fn carried(api: &FakeApi) -> Vec<Resident> {
    let pod: Pod = serde_json::from_value(api.get(POD).unwrap()).unwrap();
    residents(&pod, "app", &sidecar())
}

#[tokio::test]
async fn two_that_add_the_same_add_one() {
    let (client, api) = FakeApi::new();
    let seen = pod(json!({}));
    api.put(POD, &seen);
    let container = next(&seen, AttachedAs::Ptrace);
    let (one, other) = futures::join!(
        inject(&client, &seen, &container),
        inject(&client, &seen, &container)
    );
    for added in [one.unwrap(), other.unwrap()] {
        assert!(matches!(added, Injected::Added { .. }), "{added:?}");
    }
    assert_eq!(carried(&api).len(), 1);
}

#[tokio::test]
async fn of_two_that_add_another_one_looks_again_and_takes_what_is_there_or_the_next_name() {
    let (client, api) = FakeApi::new();
    let seen = pod(json!({}));
    api.put(POD, &seen);
    let (mut added, mut changed) = (0, 0);
    let (capable, same) = (
        next(&seen, AttachedAs::Ptrace),
        next(&seen, AttachedAs::SameUser),
    );
    assert_eq!(capable.name, same.name);
    let (one, other) = futures::join!(
        inject(&client, &seen, &capable),
        inject(&client, &seen, &same)
    );
    for outcome in [one.unwrap(), other.unwrap()] {
        match outcome {
            Injected::Added { .. } => added += 1,
            Injected::Changed => changed += 1,
            Injected::Refused(refusal) => panic!("{refusal:?}"),
        }
    }
    assert_eq!((added, changed), (1, 1));
    let there = carried(&api);
    assert_eq!(there.len(), 1);
    let pod: Pod = serde_json::from_value(api.get(POD).unwrap()).unwrap();
    let missing = match there[0].attach.unwrap() {
        AttachedAs::Ptrace => AttachedAs::SameUser,
        AttachedAs::SameUser => AttachedAs::Ptrace,
    };
    let second = inject(&client, &pod, &next(&pod, missing)).await.unwrap();
    assert!(matches!(second, Injected::Added { .. }), "{second:?}");
    let names: Vec<String> = carried(&api)
        .into_iter()
        .map(|resident| resident.name)
        .collect();
    assert_eq!(names, ["sidewinder-app-1", "sidewinder-app-2"]);
}
