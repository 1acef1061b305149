//! Waiting for the threads that are to run a script.

use std::time::{Duration, Instant};

use sidewinder_model::{ExecRequest, Reason};

use super::choose::{Candidate, Occupied, Wanted, candidates};
use super::queue::{Answer, Claim, Holder, Queue, Stage};
use super::{Refusal, Run, refuse};

/// Of all processes. Requests of other sidecars stand in no line of ours: what they do is seen in the target.
static QUEUE: Queue = Queue::new();
/// A thread that another sidecar uses, and what for.
type Elsewhere = (u64, Occupied);

/// How often somebody who waits looks whether the script is still wanted and the process lives.
const CHECK: Duration = Duration::from_millis(100);
/// How long until a thread is looked at again that another sidecar uses: at first, and at most. Nothing tells when it is
/// free.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

impl Run<'_> {
    /// Waits until some of the threads that may run the script are free, in the order of asking; the time for that is the
    /// request's whole time, unless its script has been asked for already.
    pub(super) fn turn(
        &self,
        request: &ExecRequest,
        wanted: Wanted,
        deadline: Instant,
    ) -> Result<(Claim, Vec<Candidate>), Refusal> {
        let began = Instant::now();
        let key = (self.process.pid(), self.process.start_time());
        let place = QUEUE.enter(key, self.asker);
        let mut pause = LOOKS.0;
        let mut in_the_way: Option<(Option<Holder>, Option<Elsewhere>)> = None;
        loop {
            if let Some((holder, other)) = in_the_way.take()
                && Instant::now() >= deadline
            {
                return Err(refuse(
                    Reason::TargetBusy,
                    format!(
                        "{}; this script waited {:.1} s, until its time was over, and was not begun",
                        self.in_the_way(holder.as_ref(), other),
                        began.elapsed().as_secs_f64()
                    ),
                ));
            }
            let chosen = candidates(self.process, self.runtime, request, wanted)?;
            let free: Vec<u64> = chosen.free.iter().map(|one| one.tid).collect();
            let busy: Vec<u64> = chosen.busy.iter().map(|(tid, _)| *tid).collect();
            let (holder, changes) = match place.ask(&free, &busy) {
                Answer::Yours(claim) => {
                    let mut candidates = chosen.free;
                    candidates.retain(|one| claim.tids().contains(&one.tid));
                    return Ok((claim, candidates));
                }
                Answer::Wait { holder, changes } => (holder, changes),
                Answer::LeftRunning(holder) => return Err(self.left_running(&holder)),
                Answer::Full(waiting) => {
                    return Err(refuse(
                        Reason::QueueFull,
                        format!(
                            "{waiting} scripts wait for process {} already; this one was not begun",
                            self.process.ns_pid()
                        ),
                    ));
                }
            };
            // What this sidecar does is told; what another one does has to be looked for.
            let other = chosen
                .busy
                .iter()
                .find(|(tid, _)| holder.as_ref().is_none_or(|holder| holder.tid != *tid))
                .copied();
            let look = other.map(|_| Instant::now() + pause);
            pause = (pause * 2).min(LOOKS.1);
            in_the_way = Some((holder, other));
            loop {
                self.still_wanted()?;
                if !self.process.alive() {
                    return Err(self.exited());
                }
                let now = Instant::now();
                if now >= deadline {
                    break;
                }
                let until = look.map_or(deadline, |look| look.min(deadline));
                if place.wait(changes, until.saturating_duration_since(now).min(CHECK))
                    || look.is_some_and(|look| Instant::now() >= look)
                {
                    break;
                }
            }
        }
    }

    fn left_running(&self, holder: &Holder) -> Refusal {
        refuse(
            Reason::TargetBusy,
            format!(
                "{} is still running in thread {} of process {}, {} s after it started: it could not be stopped when its \
                 time was over. Until it has ended, only other threads take scripts",
                holder.who,
                holder.tid,
                self.process.ns_pid(),
                holder.since.elapsed().as_secs()
            ),
        )
    }

    /// What is waited for, in words.
    fn in_the_way(&self, holder: Option<&Holder>, other: Option<Elsewhere>) -> String {
        let pid = self.process.ns_pid();
        match (holder, other) {
            (Some(holder), _) => {
                let what = match holder.stage {
                    Stage::Starting => "is waiting to start",
                    Stage::Running | Stage::LeftRunning => "has been running",
                };
                format!(
                    "{} {what} in thread {} of process {pid} for {} s",
                    holder.who,
                    holder.tid,
                    holder.since.elapsed().as_secs()
                )
            }
            (None, Some((tid, Occupied::Script))) => {
                format!(
                    "an earlier script, which another sidecar started, still runs in thread {tid} of process {pid}"
                )
            }
            (None, Some((tid, Occupied::Request))) => {
                format!("a request of another sidecar waits in thread {tid} of process {pid}")
            }
            (None, None) => format!("others wait for the same thread of process {pid}"),
        }
    }
}
