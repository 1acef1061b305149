//! What a session would do in a pod, without doing it: the same plan is asked, and where it would write, the server is
//! asked whether it would take it.
//!
//! What only a sidecar could see stays open and is said: which Pythons there are, and the node's ptrace scope.

use k8s_openapi::api::core::v1::EphemeralContainer;
use sidewinder_crds::{DebugSession, SessionAction};
use sidewinder_model::Reason;

use super::run::Run;
use crate::error::Error;
use crate::relay::connect::Connect;
use crate::session::apply::{self, Admission};
use crate::session::plan::{End, POD_LIMIT, Step, Way};

/// How often the pod may change while the server is asked.
const MAX_LOOKS: usize = 8;

impl<C: Connect> Run<'_, C> {
    /// What would become of the pod's part. Changes nothing.
    pub(super) async fn preflight(&mut self) -> Result<End, Error> {
        for _ in 0..MAX_LOOKS {
            self.take_signal();
            match self.plan() {
                Step::End(end) => return Ok(*end),
                Step::AwaitPod { what, .. } => {
                    let words = format!(
                        "pod {} {what}; it would be waited for, at most {} s",
                        self.session.spec.pod_name(),
                        POD_LIMIT.as_secs()
                    );
                    return Ok(end(Reason::PodNotRunning, words));
                }
                Step::FallBack { way, refusal } => self.fall_back(way, refusal),
                Step::Inject { way, container } => {
                    let Some(pod) = self.observed.pod.clone() else {
                        continue;
                    };
                    match apply::admits(&self.context.client, &pod, &container).await? {
                        Admission::Admitted => {
                            return Ok(would(&self.session, &adds(way, &container)));
                        }
                        Admission::Unknown(words) => {
                            let what = format!(
                                "{}; whether admission lets it in shows only then: {words}",
                                adds(way, &container)
                            );
                            return Ok(would(&self.session, &what));
                        }
                        Admission::Refused(refusal) => {
                            self.observed.refused.insert(way, refusal);
                        }
                        Admission::Changed => {
                            let pod = self.read_pod().await?;
                            self.set_pod(pod);
                        }
                    }
                }
                Step::Open { sidecar, way, .. } => {
                    let what = format!("use sidecar {sidecar}, which is there ({})", way.name());
                    return Ok(would(&self.session, &what));
                }
                // A request or an intent needs a stream, and none is opened here.
                Step::Record(_) | Step::Ask { .. } => break,
            }
        }
        Ok(end(
            Reason::InternalError,
            "the pod changed again and again while it was looked at".to_owned(),
        ))
    }
}

fn end(reason: Reason, message: String) -> End {
    End {
        reason,
        message,
        outcome: None,
        maybe_armed: false,
    }
}

/// How the sidecar would get in.
fn adds(way: Way, container: &EphemeralContainer) -> String {
    let security = container.security_context.as_ref();
    let id = |id: Option<i64>| id.map_or_else(|| "?".to_owned(), |id| id.to_string());
    let how = match way {
        Way::Ptrace => "as root with the capability SYS_PTRACE".to_owned(),
        Way::SameUser => format!(
            "as user {} of group {}, without a capability that the target has not; that works where the node's kernel.yama.ptrace_scope is 0, which shows only inside",
            id(security.and_then(|security| security.run_as_user)),
            id(security.and_then(|security| security.run_as_group)),
        ),
    };
    format!(
        "add ephemeral container {} {how} (attach {})",
        container.name,
        way.name()
    )
}

/// The end of a dry run in which nothing was refused.
fn would(session: &DebugSession, how: &str) -> End {
    let spec = &session.spec;
    let what = match spec.action() {
        Some(SessionAction::RemoteExec(_)) => "run the script in",
        Some(SessionAction::Processes(_)) => "list",
        _ => "read",
    };
    let which = match &spec.target.process {
        None => "the Python processes".to_owned(),
        Some(process) => match (process.pid, &process.command) {
            (Some(pid), _) => format!("process {pid}"),
            (None, Some(command)) => {
                format!("the Python processes whose command matches {command}")
            }
            (None, None) => "the Python processes".to_owned(),
        },
    };
    end(
        Reason::DryRun,
        format!(
            "in pod {} it would {how}, and {what} {which} of the container; which there are shows only inside",
            session.spec.pod_name()
        ),
    )
}
