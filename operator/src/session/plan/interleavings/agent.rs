//! An agent and the target beside it: what becomes of a message that arrives, and how a request that has begun goes on.

use std::collections::BTreeSet;

use sidewinder_model::Reason;

use super::world::{Ending, Instance, Message, Request, World};
use crate::session::plan::Way;

/// What happens to a request that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Progressed {
    Starts,
    StartsAfterAll,
    Ends(Ending),
}

impl World {
    /// A message reaches an agent (`sidecar/src/agent.rs`: `objection`, `start`). What it is refused with.
    pub(super) fn arrives(&mut self, instance: Instance, message: Message) -> Option<Reason> {
        let (script, kernel) = (self.script, self.kernel_refuses);
        let agent = &mut self.agents[instance];
        match message {
            Message::Cancel => {
                agent.cancelled |=
                    agent.request == Request::Begun || agent.request == Request::Started;
            }
            Message::Run {
                instance: meant,
                container_id,
                late,
            } => {
                if script && meant != Some(instance) {
                    return Some(Reason::SidecarLost);
                }
                if agent.request != Request::Unknown {
                    return None;
                }
                if agent.full {
                    // It is never begun later, either.
                    agent.full = false;
                    agent.request = Request::Done(Ending::Turned);
                    return Some(Reason::QueueFull);
                }
                agent.request = if container_id != agent.container_id {
                    Request::Done(Ending::Elsewhere)
                } else if late {
                    Request::Done(Ending::NotBegun)
                } else if kernel && agent.way == Way::Ptrace {
                    Request::Done(Ending::Denied)
                } else {
                    self.ever_armed |= script;
                    Request::Begun
                };
            }
        }
        None
    }

    /// How a request that has begun can go on (`sidecar/src/inject`).
    pub(super) fn goes_on(&self, instance: Instance) -> BTreeSet<Progressed> {
        let agent = &self.agents[instance];
        let mut ways = BTreeSet::new();
        match agent.request {
            Request::Begun if !self.script => {
                ways.extend(agent.alive.then_some(Progressed::Ends(Ending::Ran)));
            }
            Request::Begun => {
                ways.insert(Progressed::Starts);
                if agent.alive {
                    ways.insert(Progressed::Ends(if agent.cancelled {
                        Ending::Withdrawn
                    } else {
                        Ending::Blocked
                    }));
                    ways.insert(Progressed::Ends(Ending::Stuck));
                } else {
                    // The carrier's deadline, or the next agent's sweep.
                    ways.insert(Progressed::Ends(Ending::Withdrawn));
                }
            }
            Request::Started => {
                ways.insert(Progressed::Ends(Ending::Ran));
                if agent.alive {
                    ways.insert(Progressed::Ends(Ending::Overran));
                }
            }
            _ => {}
        }
        if agent.left {
            ways.insert(Progressed::StartsAfterAll);
        }
        ways
    }

    pub(super) fn go_on(&mut self, instance: Instance, how: Progressed) {
        let agent = &mut self.agents[instance];
        match how {
            Progressed::Starts => {
                agent.request = Request::Started;
                self.starts += 1;
            }
            Progressed::StartsAfterAll => {
                agent.left = false;
                self.starts += 1;
            }
            Progressed::Ends(ending) => {
                agent.left = ending == Ending::Stuck;
                agent.request = Request::Done(ending);
            }
        }
    }
}
