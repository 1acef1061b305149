//! What the operator needs is away at each moment.
//!
//! Sessions of every flow are held at each of its points; then something is cut, all of them go on, and it comes back
//! after a while: in time for the operator, or so late that it has lost its lease and was started again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::{DeleteParams, ListParams};
use sidewinder_e2e::cluster::stopped::Stopped;
use sidewinder_e2e::deploy::Destination;
use sidewinder_e2e::operator::Operator;
use sidewinder_e2e::session_client as sessions;
use sidewinder_model::Reason;
use sidewinder_operator::faults::Point;

use crate::checks::{MayFail, check, gauge, metrics, until};
use crate::flows::{Case, Flow, WARM, cases};
use crate::points::Plan;
use crate::proxy::Way;
use crate::stage::{World, test};
use crate::targets::{self, SOON};

/// How long something is away.
const AWAY: Duration = Duration::from_secs(2);
/// How long the API server is away after the operator was started again: until its watches pause for longer than a session
/// waits for the settings.
const AWAY_AGAIN: Duration = Duration::from_secs(13);
/// How long an operator may take to end that cannot renew its lease: 10 s until it gives up, two tries more, and 5 s for
/// the Events that it still has.
const LOST: Duration = Duration::from_secs(25);

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
    /// Every connection to the API server, until the operator has lost its lease and was started again.
    Lease,
}

impl Cut {
    fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Answers => "answers",
            Self::Kubelet => "kubelet",
            Self::Relay => "relay",
            Self::Agent => "agent",
            Self::Lease => "lease",
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

    /// Whether it says something about a case.
    fn concerns(self, case: &Case) -> bool {
        match self {
            // A carrier without its agent stays with its script until the deadline.
            Self::Agent => !case.flow.is_long(),
            // One of each kind of work is enough. Nobody knows any more of a session that was deleted: its script ends
            // at its own deadline.
            Self::Lease => matches!(
                (case.flow, case.point),
                (
                    Flow::Stacks,
                    Point::Open | Point::Accepted | Point::Finished
                ) | (
                    Flow::Exec,
                    Point::TakenUp
                        | Point::Written
                        | Point::Recorded
                        | Point::Begin
                        | Point::Sent
                        | Point::Answered
                        | Point::Stored
                ) | (Flow::Large, Point::SecretStored)
                    | (Flow::Fresh, Point::Admitted | Point::Patched)
                    | (Flow::Fleet, Point::Recorded)
                    | (Flow::Outliving, Point::Watch)
            ),
            // The ten seconds in which a cancellation has to be confirmed pass while the session is held there.
            _ => (case.flow, case.point) != (Flow::Cancelled, Point::CancelSent),
        }
    }
}

#[test]
fn whatever_is_cut_off_at_any_point_nothing_is_lost_or_repeated() {
    let cuts = [Cut::Api, Cut::Answers, Cut::Kubelet, Cut::Relay, Cut::Lease];
    cut_off("cut", &cuts);
}

#[test]
fn an_agent_that_is_killed_at_any_point_takes_at_most_its_own_scripts_with_it() {
    cut_off("agents", &[Cut::Agent]);
}

fn cut_off(name: &str, cuts: &[Cut]) {
    test(name, async |world| {
        let mut first = cases(name);
        first.retain(|case| cuts.iter().any(|cut| cut.concerns(case)));
        let pods = targets::start(world.namespace, &first).await?;
        let mut operator = world.operator()?;
        targets::warm_up(world.namespace).await?;
        for &cut in cuts {
            if cut == Cut::Kubelet && !matches!(world.destination, Destination::Embedded(_)) {
                // The kubelet of somebody's own cluster is not ours to stop.
                continue;
            }
            let begun = Instant::now();
            let mut cases = cases(cut.name());
            cases.retain(|case| cut.concerns(case));
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
            // Those are not to wait: an agent has 10 s to confirm that it stopped a script.
            let long = cases.iter().filter(|case| case.flow.is_long());
            try_join_all(long.map(|case| arrive(world, case))).await?;
            disturb(world, cut, &pods, &mut operator).await?;
            try_join_all(cases.iter().map(|case| case.go_on(world))).await?;
            check(
                world,
                &mut operator,
                cut.name(),
                &cases,
                &looked_at(cut, &cases, &pods),
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
        no_streams(&operator).await?;
        world.end(operator).await
    });
}

/// The pods that are looked at after a cut: where few were in use, those.
fn looked_at(cut: Cut, cases: &[Case], pods: &[String]) -> Vec<String> {
    let used = |pod: &&String| {
        let mut all = cases.iter().flat_map(|case| &case.pods);
        cut != Cut::Lease || all.any(|other| other == *pod)
    };
    pods.iter().filter(used).cloned().collect()
}

async fn reach(world: &World<'_>, case: &Case) -> Result<()> {
    sessions::create(&world.namespace.sessions(), &case.session()).await?;
    if case.flow.is_long() {
        return case.runs(world.namespace).await;
    }
    arrive(world, case).await
}

async fn arrive(world: &World<'_>, case: &Case) -> Result<()> {
    case.approach(world).await?;
    world.points.seen(&case.name, case.point, SOON).await
}

/// Cuts, lets everybody go on, and brings back what was cut.
async fn disturb(
    world: &World<'_>,
    cut: Cut,
    pods: &[String],
    operator: &mut Operator,
) -> Result<()> {
    let mut away: Option<Stopped> = None;
    match cut {
        Cut::Api | Cut::Lease => world.proxy.set(Way::Cut),
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
            let killed = try_join_all(kills).await?;
            let mut counts = pods.iter().zip(killed);
            ensure!(
                counts.all(|(pod, count)| count > 0 || !WARM.contains(&pod.as_str())),
                "no process of {} was found in a pod that has one",
                cut.name()
            );
        }
    }
    if cut == Cut::Agent {
        // An operator that does not know yet that an agent is dead may give it another script, which is lost with it.
        no_streams(operator).await?;
    }
    world.points.release();
    match cut {
        Cut::Api | Cut::Answers | Cut::Kubelet => tokio::time::sleep(AWAY).await,
        Cut::Lease => {
            lose_the_lease(world, operator).await?;
            tokio::time::sleep(AWAY_AGAIN).await;
        }
        Cut::Relay | Cut::Agent => {}
    }
    drop(away);
    world.proxy.set(Way::Open);
    Ok(())
}

/// Waits until no stream to an agent is open.
async fn no_streams(operator: &Operator) -> Result<()> {
    until(SOON, "the streams to be closed", async || {
        let open = gauge(&metrics(operator.port()).await?, "sidewinder_relay_streams")?;
        Ok((open > 0).then(|| open.to_string()).into_iter().collect())
    })
    .await
}

/// Waits until the operator has lost its lease, and starts it again as the kubelet does.
async fn lose_the_lease(world: &World<'_>, operator: &mut Operator) -> Result<()> {
    let status = operator.ended(LOST).await?;
    let words = operator.check().err().map(|error| format!("{error:#}"));
    ensure!(
        status.code() == Some(1)
            && words.is_some_and(|words| words.contains("leadership was lost")),
        "the operator ended with {status}, and not for its lease"
    );
    *operator = world.operator()?;
    Ok(())
}
