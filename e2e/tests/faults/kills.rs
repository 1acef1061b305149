//! SIGKILL at each moment.

use std::os::unix::process::ExitStatusExt as _;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use sidewinder_e2e::operator::Operator;
use sidewinder_e2e::session_client as sessions;

use crate::checks::check;
use crate::flows::{Case, Flow, cases};
use crate::points::Plan;
use crate::stage::{World, test};
use crate::targets::{self, SOON};

/// One operator after the other dies at its point; the next one takes up what the last one left, and has a point of its
/// own.
#[test]
fn an_operator_that_is_killed_at_any_point_loses_nothing_and_repeats_nothing() {
    test("killed", async |world| {
        let mut cases = cases("kill");
        // Nobody knows any more of a session that was deleted: its script ends at its own deadline.
        for case in cases.iter_mut().filter(|case| case.flow == Flow::Deleted) {
            case.long = 6;
        }
        let pods = targets::start(world.namespace, &cases).await?;
        let mut operator = world.operator()?;
        targets::warm_up(world.namespace).await?;
        for case in &cases {
            operator = kill(world, operator, case)
                .await
                .with_context(|| case.name.clone())?;
        }
        check(world, &mut operator, "kill", &cases, &pods, |_| &[]).await?;
        world.end(operator).await
    });
}

async fn kill(world: &World<'_>, mut operator: Operator, case: &Case) -> Result<Operator> {
    case.prepare(world.namespace).await?;
    world.points.plan(&case.name, case.point, Plan::Kill);
    sessions::create(&world.namespace.sessions(), &case.session()).await?;
    case.runs(world.namespace).await?;
    case.approach(world).await?;
    world.points.seen(&case.name, case.point, SOON).await?;
    let status = operator.ended(SOON).await?;
    ensure!(
        status.signal() == Some(Signal::SIGKILL as i32),
        "the operator ended with {status}"
    );
    let operator = world.operator()?;
    case.go_on(world).await?;
    case.stopped(world.namespace).await?;
    Ok(operator)
}
