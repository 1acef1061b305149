//! What people see: the columns, the Events, and the waiting that kubectl can do.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use sidewinder_crds::names;
use sidewinder_e2e::namespace::TestNamespace;
use sidewinder_e2e::session_client as sessions;
use sidewinder_model::Reason;

use crate::expect::complete;
use crate::stage::{kubectl, test};

/// A row of kubectl's table: the text below each heading.
fn row<'a>(table: &'a str, name: &str) -> Result<Vec<(&'a str, &'a str)>> {
    let mut lines = table.lines();
    let header = lines.next().context("the table is empty")?;
    let line = lines
        .find(|line| line.split_whitespace().next() == Some(name))
        .with_context(|| format!("{name} is not in\n{table}"))?;
    let mut starts: Vec<usize> = header
        .char_indices()
        .filter(|&(at, letter)| {
            !letter.is_whitespace() && (at == 0 || header[..at].ends_with("  "))
        })
        .map(|(at, _)| at)
        .collect();
    starts.push(header.len().max(line.len()));
    Ok(starts
        .windows(2)
        .map(|bounds| {
            let cell = |text: &'a str| {
                text.get(bounds[0]..bounds[1].min(text.len()))
                    .or(text.get(bounds[0]..))
                    .unwrap_or_default()
                    .trim()
            };
            (cell(header), cell(line))
        })
        .collect())
}

#[test]
fn kubectl_shows_the_answer_in_a_row() {
    test("kubectl_columns", async |namespace| {
        let pod = namespace
            .start(&namespace.python("shop", "stuck_service.py"))
            .await?;
        kubectl_apply(namespace, "apiVersion: sidewinder.dev/v1alpha1\nkind: DebugSession\nmetadata: {name: why-is-shop-stuck}\nspec: {target: {podName: shop}, asyncioSnapshot: {}}\n").await?;
        let namespaced = ["--namespace", namespace.name.as_str()];
        kubectl(
            &[
                &namespaced[..],
                &[
                    "wait",
                    "debugsession/why-is-shop-stuck",
                    "--for=condition=Complete",
                    "--timeout=90s",
                ],
            ]
            .concat(),
        )
        .await?;
        kubectl(
            &[
                &namespaced[..],
                &[
                    "wait",
                    "debugsession/why-is-shop-stuck",
                    "--for=jsonpath={.status.completionTime}",
                    "--timeout=10s",
                ],
            ]
            .concat(),
        )
        .await?;
        let table = kubectl(&[&namespaced[..], &["get", "debugsessions"]].concat()).await?;
        let cells = row(&table, "why-is-shop-stuck")?;
        let headings: Vec<&str> = cells.iter().map(|(heading, _)| *heading).collect();
        ensure!(
            headings == ["NAME", "TARGET", "ACTION", "PHASE", "SUMMARY", "AGE"],
            "{table}"
        );
        let cell = |heading: &str| {
            cells
                .iter()
                .find(|(name, _)| *name == heading)
                .map_or("", |(_, text)| *text)
        };
        ensure!(
            cell("TARGET").starts_with("shop") && cell("PHASE") == "Succeeded",
            "{table}"
        );
        ensure!(
            cell("ACTION") == "asyncioSnapshot" && cell("SUMMARY").contains("tasks in 1 loop"),
            "{table}"
        );

        let wide = kubectl(&[&namespaced[..], &["get", "pyds", "-o", "wide"]].concat()).await?;
        let cells = row(&wide, "why-is-shop-stuck")?;
        let headings: Vec<&str> = cells.iter().map(|(heading, _)| *heading).collect();
        ensure!(
            headings
                == [
                    "NAME", "TARGET", "ACTION", "PHASE", "SUMMARY", "AGE", "REASON", "PODS",
                    "NODE", "PYTHON", "DURATION"
                ],
            "{wide}"
        );
        let cell = |heading: &str| {
            cells
                .iter()
                .find(|(name, _)| *name == heading)
                .map_or("", |(_, text)| *text)
        };
        ensure!(
            cell("REASON") == "Succeeded"
                && cell("PODS") == "1/1"
                && cell("PYTHON").starts_with("3.14."),
            "{wide}"
        );
        ensure!(
            !cell("NODE").is_empty() && cell("DURATION").ends_with('s'),
            "{wide}"
        );

        let by_category = kubectl(&[&namespaced[..], &["get", "debug"]].concat()).await?;
        row(&by_category, "why-is-shop-stuck")
            .map_err(|error| error.context("the category debug"))?;
        let by_field = kubectl(
            &[
                &namespaced[..],
                &[
                    "get",
                    "debugsessions",
                    "--field-selector",
                    "spec.target.podName=shop,status.phase=Succeeded",
                ],
            ]
            .concat(),
        )
        .await?;
        row(&by_field, "why-is-shop-stuck")?;
        pod.check_untouched(namespace).await
    });
}

async fn kubectl_apply(namespace: &TestNamespace, yaml: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("session.yaml");
    std::fs::write(&file, yaml)?;
    let file = file
        .to_str()
        .context("the temporary folder's name is not UTF-8")?;
    kubectl(&["--namespace", &namespace.name, "apply", "--filename", file]).await?;
    Ok(())
}

#[test]
fn events_stand_on_the_session_and_on_the_pod() {
    test("events", async |namespace| {
        let pod = namespace
            .start(&namespace.python("shop", "stuck_service.py").arg("2"))
            .await?;
        let mut session = sessions::stacks("stacks", "shop");
        session.spec.reason = Some("INC-4711".into());
        complete(&namespace.run(&session).await?, Reason::Succeeded)?;
        for kind in [names::KIND, "Pod"] {
            event_of(namespace, kind)
                .await
                .with_context(|| format!("on the {kind}"))?;
        }
        pod.check_untouched(namespace).await
    });
}

/// Waits for an Event of the operator on an object of this kind that carries the session's reason.
async fn event_of(namespace: &TestNamespace, kind: &str) -> Result<Event> {
    let wanted = |event: &Event| {
        event
            .regarding
            .as_ref()
            .and_then(|regarding| regarding.kind.as_deref())
            == Some(kind)
            && event.reporting_controller.as_deref() == Some(names::EVENT_CONTROLLER)
            && event
                .note
                .as_deref()
                .is_some_and(|note| note.contains("INC-4711"))
    };
    event(namespace, "with INC-4711", wanted).await
}

/// Waits for an Event that is as `wanted` says.
pub(crate) async fn event(
    namespace: &TestNamespace,
    what: &str,
    wanted: impl Fn(&Event) -> bool,
) -> Result<Event> {
    use futures::StreamExt as _;
    let mut events = std::pin::pin!(
        watcher(namespace.api::<Event>(), watcher::Config::default())
            .default_backoff()
            .applied_objects()
    );
    let found = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        while let Some(event) = events.next().await {
            match event {
                Ok(event) if wanted(&event) => return Some(event),
                _ => {}
            }
        }
        None
    })
    .await;
    if let Ok(Some(event)) = found {
        return Ok(event);
    }
    let all = namespace
        .api::<Event>()
        .list(&ListParams::default())
        .await?;
    let notes: Vec<_> = all
        .items
        .iter()
        .map(|event| (&event.reporting_controller, &event.reason, &event.note))
        .collect();
    anyhow::bail!("no Event {what} within 20 s: {notes:?}")
}
