//! Work that only the leading replica does.

use std::future::Future;

use k8s_controller::LeaderElection;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::metrics::Metrics;

/// How leading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Led {
    /// The work ended, or was told to.
    Done,
    /// Another replica leads, or the lease could not be renewed. The process has to exit: what it spawned may go on.
    Lost,
}

/// Waits for the lease, runs `work` under it, and gives the lease back at the end.
///
/// Leading only avoids doing things twice. That nothing irreversible happens twice rests on the resource version of
/// each session's status and on the agent's instance.
pub async fn lead(
    election: &LeaderElection,
    metrics: &Metrics,
    stop: &CancellationToken,
    work: impl Future<Output = ()>,
) -> Led {
    let leading = async {
        metrics.leader.set(1);
        info!("leading");
        work.await;
    };
    let led = tokio::select! {
        led = election.with_lease(leading) => led,
        // On standby there is no work that would notice.
        () = standby_stopped(stop, metrics) => {
            election.release().await;
            return Led::Done;
        }
    };
    metrics.leader.set(0);
    if led.is_none() {
        error!("the lease was lost");
        return Led::Lost;
    }
    Led::Done
}

async fn standby_stopped(stop: &CancellationToken, metrics: &Metrics) {
    stop.cancelled().await;
    if metrics.leader.get() == 1 {
        // The work sees the token, too, ends, and the lease is released after it.
        std::future::pending::<()>().await;
    }
}
