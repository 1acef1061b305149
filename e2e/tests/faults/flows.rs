//! The ways that a session can take, and the points on each.

use std::collections::BTreeMap;

use sidewinder_crds::{AttachMode, DebugSession, PodCount, PodMode, PodSelector};
use sidewinder_e2e::session_client as sessions;
use sidewinder_operator::faults::Point;

/// The pods with a sidecar that several sessions share, so that at most eight wait for one process.
pub(crate) const WARM: [&str; 4] = ["warm-0", "warm-1", "warm-2", "warm-3"];
/// The pods of a fleet.
pub(crate) const FLEET: [&str; 2] = ["fleet-0", "fleet-1"];
/// The label of the pods of a fleet.
pub(crate) const FLEET_LABEL: (&str, &str) = ("example.com/fleet", "faults");

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Reads, in a pod with a sidecar.
    Stacks,
    /// Runs a script there.
    Exec,
    /// Runs a script whose result takes several Secrets.
    Large,
    /// Runs a script in a pod without a sidecar.
    Fresh,
    /// Runs a script in a pod that does not run yet.
    Waiting,
    /// Reads, and is refused by the kernel on the first way in.
    Refused,
    /// Runs a script in two pods.
    Fleet,
    /// Runs a script that is cancelled.
    Cancelled,
    /// Runs a script, and is deleted meanwhile.
    Deleted,
    /// Runs a script that cannot be stopped and outlives its session.
    Outliving,
}

impl Flow {
    const ALL: [Self; 10] = [
        Self::Stacks,
        Self::Exec,
        Self::Large,
        Self::Fresh,
        Self::Waiting,
        Self::Refused,
        Self::Fleet,
        Self::Cancelled,
        Self::Deleted,
        Self::Outliving,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Stacks => "stacks",
            Self::Exec => "exec",
            Self::Large => "large",
            Self::Fresh => "fresh",
            Self::Waiting => "waiting",
            Self::Refused => "refused",
            Self::Fleet => "fleet",
            Self::Cancelled => "cancelled",
            Self::Deleted => "deleted",
            Self::Outliving => "outliving",
        }
    }

    /// The points at which it is disturbed: all of the two common flows, and of the others those that are theirs.
    fn points(self) -> &'static [Point] {
        use Point::{
            Abandon, Accepted, Acknowledged, Admitted, Answered, Ask, Asked, AwaitPod, AwaitedPod,
            Begin, Cancel, CancelSent, End, FallBack, FellBack, Finish, Finished, Gate, Inject,
            Injected, Noted, Open, Opened, Patched, Record, Recorded, Report, Reported,
            ScriptEnded, Secret, SecretStored, Sent, Stored, TakenUp, Told, Watch, Write, Written,
        };
        match self {
            Self::Stacks => &[
                TakenUp,
                Gate,
                Open,
                Opened,
                Ask,
                Sent,
                Accepted,
                Answered,
                Asked,
                End,
                Finish,
                Stored,
                Finished,
                Acknowledged,
                Report,
                Reported,
            ],
            Self::Exec => &[
                TakenUp,
                Gate,
                Open,
                Opened,
                Record,
                Write,
                Written,
                Recorded,
                Ask,
                Begin,
                Sent,
                Accepted,
                Answered,
                Asked,
                End,
                Finish,
                Secret,
                SecretStored,
                Stored,
                Finished,
                Acknowledged,
                Report,
                Reported,
            ],
            Self::Large => &[Answered, Secret, SecretStored, Stored, Finished],
            Self::Fresh => &[Inject, Admitted, Patched, Injected, Open, Opened],
            Self::Waiting => &[AwaitPod, AwaitedPod],
            Self::Refused => &[FallBack, FellBack],
            Self::Fleet => &[
                Write, Written, Record, Recorded, Sent, Answered, Finish, Finished,
            ],
            Self::Cancelled => &[Cancel, CancelSent, Answered],
            Self::Deleted => &[Abandon],
            Self::Outliving => &[Watch, ScriptEnded, Told, Noted],
        }
    }

    /// Whether its script counts itself.
    pub(crate) fn counts(self) -> bool {
        !matches!(self, Self::Stacks | Self::Refused)
    }

    /// Whether its script runs until somebody ends it.
    pub(crate) fn is_long(self) -> bool {
        matches!(self, Self::Cancelled | Self::Deleted)
    }

    /// Whether its sessions have pods of their own, which are used again and again.
    pub(crate) fn has_own_pods(self) -> bool {
        self.is_long() || matches!(self, Self::Fresh | Self::Refused | Self::Outliving)
    }
}

/// One session that is disturbed at one point.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) flow: Flow,
    pub(crate) point: Point,
    /// The session's name.
    pub(crate) name: String,
    pub(crate) pods: Vec<String>,
    /// For a script that runs until it is ended: its `timeoutSeconds`.
    pub(crate) long: i32,
}

/// For much longer than anything here takes.
const LONG: i32 = 300;

/// Every flow at every point of it. `round` begins the names of the sessions and of pods that can be used once.
pub(crate) fn cases(round: &str) -> Vec<Case> {
    let all = Flow::ALL
        .into_iter()
        .flat_map(|flow| flow.points().iter().map(move |&point| (flow, point)));
    all.enumerate()
        .map(|(number, (flow, point))| {
            let own = format!("{}-{}", flow.name(), point.name().to_lowercase());
            let name = format!("{round}-{own}");
            let pods = match flow {
                Flow::Stacks | Flow::Exec | Flow::Large => {
                    let pod = WARM.get(number % WARM.len()).copied();
                    pod.into_iter().map(str::to_owned).collect()
                }
                Flow::Fleet => FLEET.map(str::to_owned).to_vec(),
                Flow::Waiting => vec![name.clone()],
                Flow::Fresh | Flow::Refused | Flow::Cancelled | Flow::Deleted | Flow::Outliving => {
                    vec![own]
                }
            };
            Case {
                flow,
                point,
                name,
                pods,
                long: LONG,
            }
        })
        .collect()
}

impl Case {
    /// The pod of a flow that has one.
    pub(crate) fn pod(&self) -> &str {
        self.pods.first().map_or("", String::as_str)
    }

    pub(crate) fn session(&self) -> DebugSession {
        let count = format!(
            "import os\nruns = os.open('/tmp/runs', os.O_WRONLY | os.O_APPEND | os.O_CREAT)\nos.write(runs, b'{}\\n')\nos.close(runs)\n",
            self.name
        );
        let mut session = match self.flow {
            Flow::Stacks | Flow::Refused => sessions::stacks(&self.name, self.pod()),
            Flow::Exec | Flow::Fresh | Flow::Waiting | Flow::Fleet => {
                sessions::exec(&self.name, self.pod(), &format!("{count}'{}'", self.name))
            }
            // What does not compress to less than a Secret holds, and is known by its digest.
            Flow::Large => sessions::exec(
                &self.name,
                self.pod(),
                &format!(
                    "{count}import base64, hashlib\ntext = base64.b64encode(os.urandom(1 << 20)).decode()\nprint(text, end='')\nhashlib.sha256(text.encode()).hexdigest()"
                ),
            ),
            Flow::Cancelled | Flow::Deleted => {
                let running = self.running();
                let script = format!(
                    "{count}import time\nopen('{running}', 'w').close()\ntry:\n    while True:\n        time.sleep(0.05)\nfinally:\n    os.remove('{running}')\n"
                );
                let mut session = sessions::exec(&self.name, self.pod(), &script);
                session.spec.timeout_seconds = self.long;
                session
            }
            Flow::Outliving => {
                let mut session =
                    sessions::exec(&self.name, self.pod(), &format!("{count}{UNSTOPPABLE}"));
                session.spec.timeout_seconds = 1;
                session
            }
        };
        if self.flow == Flow::Fleet {
            let target = &mut session.spec.target;
            target.pod_name = None;
            target.selector = Some(PodSelector {
                match_labels: BTreeMap::from([(
                    FLEET_LABEL.0.to_owned(),
                    FLEET_LABEL.1.to_owned(),
                )]),
                ..PodSelector::default()
            });
            target.pods = Some(PodCount {
                mode: PodMode::All,
                value: None,
                max_parallel: 2,
            });
        }
        session
    }

    /// The file that is there while a long script runs.
    pub(crate) fn running(&self) -> String {
        format!("/tmp/running-{}", self.name)
    }

    /// For [`Flow::Refused`], what brings a sidecar that the kernel refuses, and that the next session tries first.
    pub(crate) fn before(&self) -> DebugSession {
        let mut session = sessions::stacks(&format!("{}-before", self.name), self.pod());
        session.spec.attach = AttachMode::SameUser;
        session
    }
}

/// Spins in C for a lock that a shell in the container has, without the GIL and without a system call: nothing from
/// outside can end that.
const UNSTOPPABLE: &str = "\
import ctypes, mmap
libc = ctypes.CDLL(None)
with open('/tmp/lock', 'w+b') as file:
    file.truncate(4096)
    memory = mmap.mmap(file.fileno(), 4096)
lock = ctypes.byref(ctypes.c_int.from_buffer(memory))
libc.pthread_spin_init(lock, 0)
free = memory[:4]
libc.pthread_spin_lock(lock)
with open('/tmp/free', 'wb') as file:
    file.write(free)
libc.pthread_spin_lock(lock)";
/// Ends [`UNSTOPPABLE`], which may not have come so far yet.
pub(crate) const RELEASE: &str = "for i in $(seq 150); do if [ -s /tmp/free ]; then dd if=/tmp/free of=/tmp/lock conv=notrunc 2>/dev/null; \
    rm /tmp/free; exit 0; fi; sleep 0.1; done; exit 1";

#[test]
fn every_point_is_in_a_flow() {
    for point in Point::ALL {
        assert!(
            Flow::ALL.iter().any(|flow| flow.points().contains(point)),
            "no flow comes past {}: what happens there is not tried",
            point.name()
        );
    }
}

#[test]
fn at_most_eight_scripts_wait_for_one_process() {
    let cases = cases("round");
    for pod in WARM.iter().chain(&FLEET) {
        let scripts = cases
            .iter()
            .filter(|case| case.flow.counts() && case.pods.iter().any(|other| other == pod));
        assert!(scripts.count() <= 8, "{pod}");
    }
}
