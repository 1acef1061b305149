//! Who may enter the sidecars, and with what.

use sidewinder_crds::names;

use serde_json::json;

use crate::fixture::{
    CONTAINERS, Fixture, OPERATOR, is_let_through, is_refused, operator, refused_by, until,
};

#[tokio::test]
async fn only_the_relay_may_be_started_in_a_sidecar_and_only_by_the_operator() {
    Fixture::run("policy-exec", async |fixture| {
        let account = operator();
        let relay = [names::SIDECAR_BINARY, names::RELAY_SUBCOMMAND];
        let ours = Some("sidewinder-app-1");
        // In force first: an exec that is admitted cannot be told from one that was not looked at.
        until("sidewinder-containers is in force", async || {
            refused_by(&fixture.exec(None, ours, &["sh"]).await, CONTAINERS)
        })
        .await;
        until("sidewinder-operator is in force", async || {
            refused_by(
                &fixture.exec(Some(&account), Some("app"), &relay).await,
                OPERATOR,
            )
        })
        .await;
        fixture
            .add(Some(&account), "web", &[fixture.sidecar(&json!({}))], false)
            .await
            .unwrap();

        is_let_through(
            "the relay",
            &fixture.exec(Some(&account), ours, &relay).await,
        );
        for (what, container, command) in [
            ("a shell", ours, vec!["/bin/sh", "relay"]),
            (
                "another task",
                ours,
                vec![names::SIDECAR_BINARY, "exec", "--pid", "1"],
            ),
            ("no task", ours, vec![names::SIDECAR_BINARY]),
            (
                "a path",
                ours,
                vec![names::SIDECAR_BINARY, "relay", "/etc/passwd"],
            ),
            (
                "a word with a blank",
                ours,
                vec![names::SIDECAR_BINARY, "relay", "a b"],
            ),
            ("in the application", Some("app"), relay.to_vec()),
            ("in the default container", None, relay.to_vec()),
        ] {
            is_refused(
                what,
                &fixture.exec(Some(&account), container, &command).await,
                OPERATOR,
            );
        }
        let terminal = fixture.exec_on_a_terminal(&account, "sidewinder-app-1", &relay);
        is_refused("on a terminal", &terminal.await, OPERATOR);
        is_refused(
            "attach",
            &fixture.attach(Some(&account), "sidewinder-app-1").await,
            OPERATOR,
        );

        is_refused(
            "an admin's relay",
            &fixture.exec(None, ours, &relay).await,
            CONTAINERS,
        );
        is_refused(
            "an admin's attach",
            &fixture.attach(None, "sidewinder-app-1").await,
            CONTAINERS,
        );
        is_let_through(
            "an admin in the application",
            &fixture.exec(None, Some("app"), &["sh"]).await,
        );
        is_let_through(
            "an admin in the default container",
            &fixture.exec(None, None, &["sh"]).await,
        );
    })
    .await;
}
