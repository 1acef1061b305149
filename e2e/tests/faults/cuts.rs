//! What the operator needs is away at each moment.
//!
//! Sessions of every flow are held at each of its points; then something is cut, all of them go on, and it comes back
//! after a while.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::{DeleteParams, ListParams};
use sidewinder_e2e::cluster::stopped::Stopped;
use sidewinder_e2e::deploy::Destination;
use sidewinder_e2e::session_client as sessions;
use sidewinder_model::Reason;
use sidewinder_operator::faults::Point;

use crate::checks::{MayFail, check, gauge, metrics, until};
use crate::flows::{Case, Flow, cases};
use crate::points::Plan;
use crate::proxy::Way;
use crate::stage::{World, test};
use crate::targets::{self, SOON};

/// How long something is away.
const AWAY: Duration = Duration::from_secs(2);

/// So many sessions are on their way to their points at the same time.
const AT_ONCE: usize = 8;

/// What is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Every connection to the API server, and with it every stream.
    Api,
    /// What the API server answers: each request is done, and nobody hears of it.
    Answers,
    /// Every connection of the kubelet, which answers nothing.
    Kubelet,
    /// The process in the pod at the end of the stream.
    Relay,
    /// The agent.
    Agent,
}

impl Cut {
    fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Answers => "answers",
            Self::Kubelet => "kubelet",
            Self::Relay => "relay",
            Self::Agent => "agent",
        }
    }

    /// With which reasons a session may fail. Only an agent takes a script with it, and only one that it has, or that it
    /// alone may be given.
    fn may_fail(self) -> MayFail {
        match self {
            Self::Agent => |case| {
                let given = case.point >= Point::Opened && case.point < Point::Answered;
                // The sidecar that it added may have begun to live.
                let added = case.flow == Flow::Fresh && case.point >= Point::Patched;
                // The other pod is anywhere.
                let fleet = case.flow == Flow::Fleet;
                if case.flow.counts() && (given || added || fleet) {
                    &[
                        Reason::SidecarLost,
                        Reason::SidecarFailed,
                        Reason::PartiallyFailed,
                    ]
                } else {
                    &[]
                }
            },
            _ => |_| &[],
        }
    }
}

#[test]
fn whatever_is_cut_off_at_any_point_nothing_is_lost_or_repeated() {
    cut_off("cut", &[Cut::Api, Cut::Answers, Cut::Kubelet, Cut::Relay]);
}

#[test]
fn an_agent_that_is_killed_at_any_point_takes_at_most_its_own_scripts_with_it() {
    cut_off("agents", &[Cut::Agent]);
}

fn cut_off(name: &str, cuts: &[Cut]) {
    test(name, async |world| {
        let first = cases(name);
        let pods = targets::start(world.namespace, &first).await?;
        let mut operator = world.operator()?;
        targets::warm_up(world.namespace).await?;
        for &cut in cuts {
            if cut == Cut::Kubelet && !matches!(world.destination, Destination::Embedded(_)) {
                // The kubelet of somebody's own cluster is not ours to stop.
                continue;
            }
            let begun = Instant::now();
            let cases = cases(cut.name());
            try_join_all(cases.iter().map(|case| case.prepare(world.namespace))).await?;
            for case in &cases {
                world.points.plan(&case.name, case.point, Plan::Hold);
            }
            // A script that gets no processor for two seconds is taken back.
            stream::iter(&cases)
                .map(|case| reach(world, case))
                .buffer_unordered(AT_ONCE)
                .try_collect::<Vec<()>>()
                .await?;
            disturb(world, cut, &pods).await?;
            try_join_all(cases.iter().map(|case| case.go_on(world))).await?;
            check(
                world,
                &mut operator,
                cut.name(),
                &cases,
                &pods,
                cut.may_fail(),
            )
            .await?;
            eprintln!(
                "{cut:?}: {} sessions in {:.0} s",
                cases.len(),
                begun.elapsed().as_secs_f64()
            );
        }
        // Without pods there are no streams.
        let all = world.namespace.pods();
        all.delete_collection(&DeleteParams::default(), &ListParams::default())
            .await?;
        until(SOON, "the streams to be closed", async || {
            let open = gauge(&metrics(operator.port()).await?, "sidewinder_relay_streams")?;
            Ok((open > 0).then(|| open.to_string()).into_iter().collect())
        })
        .await?;
        world.end(operator).await
    });
}

async fn reach(world: &World<'_>, case: &Case) -> Result<()> {
    sessions::create(&world.namespace.sessions(), &case.session()).await?;
    case.approach(world).await?;
    world.points.seen(&case.name, case.point, SOON).await
}

/// Cuts, lets everybody go on, and brings back what was cut.
async fn disturb(world: &World<'_>, cut: Cut, pods: &[String]) -> Result<()> {
    let mut away: Option<Stopped> = None;
    match cut {
        Cut::Api => world.proxy.set(Way::Cut),
        Cut::Answers => world.proxy.set(Way::Deaf),
        Cut::Kubelet => {
            if let Destination::Embedded(cluster) = world.destination {
                away = Some(cluster.stop_kubelet()?);
            }
        }
        Cut::Relay | Cut::Agent => {
            let kills = pods
                .iter()
                .map(|pod| targets::kill(world.namespace, pod, cut.name()));
            try_join_all(kills).await?;
        }
    }
    world.points.release();
    if matches!(cut, Cut::Api | Cut::Answers | Cut::Kubelet) {
        tokio::time::sleep(AWAY).await;
    }
    drop(away);
    world.proxy.set(Way::Open);
    Ok(())
}
