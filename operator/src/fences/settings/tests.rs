use http::Method;
use serde_json::json;
use tokio::time::Instant;

use super::*;
use crate::testing::FakeApi;

fn data(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn what_the_chart_writes_can_be_read() {
    let digest = "AB".repeat(32);
    let found = Settings::read(&data(&[
        ("killSwitch", "CodeRunning"),
        ("optIn", "Pod"),
        ("maxTimeoutSeconds", "600"),
        ("requireReason", "true"),
        ("scriptsMode", "AllowList"),
        (
            "scriptsAllowedSha256",
            &format!("{digest}\n{}", "0".repeat(64)),
        ),
    ]));
    let allowed = BTreeSet::from(["ab".repeat(32), "0".repeat(64)]);
    assert_eq!(
        found,
        Settings {
            readable: Ok(()),
            seen: Seen::Yes,
            kill_switch: KillSwitch::CodeRunning,
            opt_in: OptIn::Pod,
            max_timeout_seconds: 600,
            require_reason: true,
            scripts: Scripts::AllowList(allowed),
        }
    );
    assert_eq!(Settings::read(&BTreeMap::new()), Settings::default());
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_holds() {
    for (key, value, words) in [
        (
            "killSwitch",
            "On",
            "killSwitch is `On`, and may be None, CodeRunning or All",
        ),
        ("killswitch", "All", "there is no setting killswitch"),
        ("optIn", "label", "optIn"),
        ("maxTimeoutSeconds", "0", "maxTimeoutSeconds"),
        ("maxTimeoutSeconds", "3601", "a number from 1 to 3600"),
        ("maxTimeoutSeconds", "1h", "maxTimeoutSeconds"),
        ("requireReason", "yes", "true or false"),
        ("scriptsMode", "", "scriptsMode"),
        ("scriptsAllowedSha256", "abc", "no SHA-256 digest"),
        ("optIn", "a\nb", "a\\nb"),
    ] {
        let found = Settings::read(&data(&[(key, value), ("requireReason2", "x")]));
        let wrong = found.readable.unwrap_err();
        assert!(wrong.contains(words), "{wrong}");
        assert!(wrong.contains("requireReason2"), "{wrong}");
    }
    let half = Settings::read(&data(&[("killSwitch", "All"), ("optIn", "x")]));
    assert_eq!(half.kill_switch, KillSwitch::All);
    assert!(half.readable.is_err());
    let hasty = Settings::read(&data(&[("killSwitch", "all")]));
    assert_eq!(hasty.kill_switch, KillSwitch::All);
}

#[test]
fn an_allow_list_without_digests_allows_nothing() {
    let found = Settings::read(&data(&[("scriptsMode", "AllowList")]));
    assert_eq!(found.scripts, Scripts::AllowList(BTreeSet::new()));
}

#[tokio::test]
async fn a_change_is_in_force_at_once_and_a_deletion_fails_closed() {
    let (client, api) = FakeApi::new();
    let path = "/api/v1/namespaces/sidewinder-system/configmaps/sidewinder-settings";
    let map = |data: serde_json::Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "sidewinder-settings", "uid": "1"}, "data": data});
    api.put(path, &map(json!({"killSwitch": "None"})));
    let mut settings = watched(client, "sidewinder-system", "sidewinder-settings").await;
    assert_eq!(*settings.borrow_and_update(), Settings::default());
    api.put(path, &map(json!({"killSwitch": "All"})));
    settings.changed().await.unwrap();
    assert_eq!(settings.borrow_and_update().kill_switch, KillSwitch::All);
    api.remove(path);
    settings.changed().await.unwrap();
    let kept = settings.borrow_and_update().clone();
    assert!(kept.readable.is_err() && kept.seen == Seen::Yes);
    assert_eq!(
        kept.kill_switch,
        KillSwitch::All,
        "what only reads stays refused"
    );
}

#[tokio::test]
async fn a_config_map_that_is_not_there_fails_closed_and_no_name_means_none() {
    let (client, _api) = FakeApi::new();
    let settings = watched(client.clone(), "sidewinder-system", "sidewinder-settings").await;
    let found = settings.borrow().clone();
    assert_eq!(found.seen, Seen::Absent, "nobody knows what it said");
    let wrong = found.readable.unwrap_err();
    assert!(
        wrong.contains("there is no ConfigMap sidewinder-system/sidewinder-settings"),
        "{wrong}"
    );
    let none = watched(client, "sidewinder-system", "").await;
    assert_eq!(*none.borrow(), Settings::default());
}

const MAP: &str = "/api/v1/namespaces/sidewinder-system/configmaps/sidewinder-settings";

fn with_kill_switch(value: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "sidewinder-settings", "uid": "1"}, "data": {"killSwitch": value}})
}

#[tokio::test(start_paused = true)]
async fn an_outage_says_nothing_of_what_there_is() {
    let (client, api) = FakeApi::new();
    api.put(MAP, &with_kill_switch("All"));
    // Longer than the first look is waited for.
    for _ in 0..20 {
        api.refuse(Method::GET, "configmaps", "", 503, "away");
    }
    let mut settings = watched(client, "sidewinder-system", "sidewinder-settings").await;
    let found = settings.borrow_and_update().clone();
    assert_eq!(found.seen, Seen::NotYet);
    settings.changed().await.unwrap();
    let found = settings.borrow_and_update().clone();
    assert_eq!(
        (found.seen, found.kill_switch),
        (Seen::Yes, KillSwitch::All)
    );
}

#[tokio::test(start_paused = true)]
async fn the_kill_switch_is_heard_soon_after_an_outage() {
    let (client, api) = FakeApi::new();
    api.put(MAP, &with_kill_switch("None"));
    // As many tries as the pauses of other watches would make minutes of.
    let tries = 12;
    for _ in 0..tries {
        api.refuse(Method::GET, "configmaps", "watch=true", 503, "away");
    }
    let mut settings = watched(client, "sidewinder-system", "sidewinder-settings").await;
    assert_eq!(*settings.borrow_and_update(), Settings::default());
    let began = Instant::now();
    api.put(MAP, &with_kill_switch("All"));
    settings.changed().await.unwrap();
    assert_eq!(settings.borrow_and_update().kill_switch, KillSwitch::All);
    let took = began.elapsed();
    assert!(took <= (tries + 1) * LONGEST_PAUSE, "{took:?}");
}

#[tokio::test]
async fn a_config_map_that_may_not_be_read_is_an_answer() {
    let (client, api) = FakeApi::new();
    api.refuse(
        Method::GET,
        "configmaps",
        "",
        403,
        "configmaps is forbidden",
    );
    let settings = watched(client, "sidewinder-system", "sidewinder-settings").await;
    let found = settings.borrow().clone();
    assert_eq!(found.seen, Seen::Absent);
    let wrong = found.readable.unwrap_err();
    assert!(wrong.contains("configmaps is forbidden"), "{wrong}");
}
