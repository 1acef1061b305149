//! From a pod and a container in it to the ephemeral container that may look into it. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, Container, ContainerState, ContainerStatus, EphemeralContainer,
    Pod, PodSecurityContext, SELinuxOptions, SeccompProfile, SecurityContext,
};
use kube::ResourceExt;
use sidewinder_crds::AttachedAs;
use sidewinder_crds::names::env::SIDECARS_PER_POD;
use sidewinder_crds::names::{
    AGENT_SUBCOMMAND, DEFAULT_CONTAINER_ANNOTATION, SIDECAR_BINARY, SIDECAR_PREFIX,
};
use sidewinder_model::Reason;

/// How many ephemeral containers of ours one pod may carry unless the settings say otherwise: Kubernetes never removes
/// them, and a pod that is debugged once a week should stay so for months.
pub const MAX_SIDECARS: usize = 32;

/// From how many on that is said beforehand, of [`MAX_SIDECARS`].
pub const WARN_SIDECARS: usize = 24;

/// The annotation of the API server's image of a static pod.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// The longest name of a container (an RFC 1123 label).
const MAX_NAME: usize = 63;
/// What `Ptrace` adds. `DAC_READ_SEARCH` because `/proc/PID/{environ,fd,io}` of another user are closed without it,
/// `SETUID` and `SETGID` to take the target's identity where the target itself must open a file.
const PTRACE_CAPABILITIES: [&str; 4] = ["SYS_PTRACE", "DAC_READ_SEARCH", "SETUID", "SETGID"];

/// What the operator's settings say about the sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidecarImage {
    /// The image, by digest or tag.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub pull_policy: String,
    /// After how many idle seconds the agent exits.
    pub idle_seconds: u32,
    /// How many of our containers one pod may carry.
    pub max_per_pod: usize,
    /// From how many on outcomes warn of it.
    pub warn_per_pod: usize,
}

/// Why a pod takes no sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which of the closed list.
    pub reason: Reason,
    /// A sentence about this pod, with what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// Whether a sidecar can be put into the pod at all, whatever it is doing at the moment.
pub fn check_kind(pod: &Pod) -> Result<(), Refusal> {
    let name = pod.name_any();
    let spec = pod.spec.as_ref();
    if pod.annotations().contains_key(MIRROR_ANNOTATION) {
        return Err(Refusal::new(
            Reason::StaticPod,
            format!(
                "pod {name} is a static pod (its node's kubelet reads it from a file), and Kubernetes adds no ephemeral container to those"
            ),
        ));
    }
    if spec.is_some_and(|spec| spec.host_pid == Some(true)) {
        return Err(Refusal::new(
            Reason::HostPID,
            format!(
                "pod {name} has hostPID: a sidecar would see, and could touch, every process of the node"
            ),
        ));
    }
    let windows = spec.is_some_and(|spec| {
        spec.os.as_ref().is_some_and(|os| os.name == "windows")
            || spec
                .security_context
                .as_ref()
                .is_some_and(|security| security.windows_options.is_some())
            || spec
                .node_selector
                .as_ref()
                .and_then(|selector| selector.get("kubernetes.io/os"))
                .is_some_and(|os| os == "windows")
    });
    if windows {
        return Err(Refusal::new(
            Reason::UnsupportedPlatform,
            format!("pod {name} runs on Windows; only Linux is supported"),
        ));
    }
    Ok(())
}

/// The names of the containers that may be targets: regular ones, then restartable init containers (native sidecars).
pub fn container_names(pod: &Pod) -> Vec<&str> {
    targets(pod)
        .map(|container| container.name.as_str())
        .collect()
}

fn targets(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let regular = spec
        .map(|spec| spec.containers.as_slice())
        .unwrap_or_default();
    let init = spec
        .and_then(|spec| spec.init_containers.as_deref())
        .unwrap_or_default();
    regular.iter().chain(
        init.iter()
            .filter(|container| container.restart_policy.as_deref() == Some("Always")),
    )
}

/// The container that is meant: the one asked for, else the pod's default one, else the first.
pub fn choose_container<'a>(pod: &'a Pod, wanted: Option<&str>) -> Result<&'a str, Refusal> {
    let names = container_names(pod);
    let found = |wanted: &str| names.iter().copied().find(|name| *name == wanted);
    if let Some(wanted) = wanted {
        return found(wanted).ok_or_else(|| {
            Refusal::new(
                Reason::ContainerNotFound,
                format!(
                    "pod {} has no container {wanted}; it has: {}",
                    pod.name_any(),
                    names.join(", ")
                ),
            )
        });
    }
    pod.annotations()
        .get(DEFAULT_CONTAINER_ANNOTATION)
        .and_then(|default| found(default))
        .or_else(|| names.first().copied())
        .ok_or_else(|| {
            Refusal::new(
                Reason::ContainerNotFound,
                format!("pod {} has no container", pod.name_any()),
            )
        })
}

fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    targets(pod).find(|container| container.name == name)
}

/// The kubelet's word on a container, ours included.
pub fn container_status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    [
        status.container_statuses.as_deref(),
        status.init_container_statuses.as_deref(),
        status.ephemeral_container_statuses.as_deref(),
    ]
    .into_iter()
    .flatten()
    .flatten()
    .find(|container| container.name == name)
}

/// The state of a container, where the kubelet has said one.
pub fn container_state<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerState> {
    container_status(pod, name)?.state.as_ref()
}

/// Our ephemeral container for `target`, under `name`.
///
/// # Errors
/// When the container does not exist, or its user is not known for [`AttachedAs::SameUser`].
pub fn ephemeral_container(
    pod: &Pod,
    target: &str,
    attach: AttachedAs,
    sidecar: &SidecarImage,
    name: &str,
) -> Result<EphemeralContainer, Refusal> {
    let security = match attach {
        AttachedAs::Ptrace => SecurityContext {
            run_as_user: Some(0),
            run_as_group: Some(0),
            run_as_non_root: Some(false),
            capabilities: Some(Capabilities {
                add: Some(PTRACE_CAPABILITIES.map(str::to_owned).to_vec()),
                drop: Some(vec!["ALL".to_owned()]),
            }),
            ..confinement(pod, target)
        },
        AttachedAs::SameUser => {
            let (user, group) = identity(pod, target)?;
            SecurityContext {
                run_as_user: Some(user),
                run_as_group: Some(group),
                run_as_non_root: Some(user != 0),
                capabilities: Some(same_capabilities(pod, target, user)),
                ..confinement(pod, target)
            }
        }
    };
    // Everything the API server would fill in is written out, so that what stands in a pod can be compared with it.
    Ok(EphemeralContainer {
        name: name.to_owned(),
        image: Some(sidecar.image.clone()),
        image_pull_policy: Some(sidecar.pull_policy.clone()),
        command: Some(vec![SIDECAR_BINARY.to_owned()]),
        args: Some(vec![
            AGENT_SUBCOMMAND.to_owned(),
            "--idle-seconds".to_owned(),
            sidecar.idle_seconds.to_string(),
        ]),
        target_container_name: Some(target.to_owned()),
        termination_message_path: Some("/dev/termination-log".to_owned()),
        termination_message_policy: Some("File".to_owned()),
        security_context: Some(security),
        ..EphemeralContainer::default()
    })
}

/// What both ways have in common. The target's AppArmor profile and SELinux options are needed to be let through by
/// them: both let a process trace only its own kind.
fn confinement(pod: &Pod, target: &str) -> SecurityContext {
    let own = container(pod, target).and_then(|container| container.security_context.as_ref());
    let shared = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref());
    let app_armor: Option<AppArmorProfile> = own
        .and_then(|own| own.app_armor_profile.clone())
        .or_else(|| shared.and_then(|shared| shared.app_armor_profile.clone()));
    let se_linux: Option<SELinuxOptions> = own
        .and_then(|own| own.se_linux_options.clone())
        .or_else(|| shared.and_then(|shared| shared.se_linux_options.clone()));
    SecurityContext {
        allow_privilege_escalation: Some(false),
        privileged: Some(false),
        // The agent's socket lies in /run/sidewinder of its own image.
        read_only_root_filesystem: Some(false),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            localhost_profile: None,
        }),
        app_armor_profile: app_armor,
        se_linux_options: se_linux,
        ..SecurityContext::default()
    }
}

/// The user and group that the target's first process has: what the kubelet saw (Kubernetes 1.33 and newer with a
/// current runtime, KEP-3619), else what the pod's spec demands.
///
/// Supplementary groups need no word: the kernel compares none when one process looks into another (ptrace(2)), a container
/// cannot ask for its own, and those of the pod (`supplementalGroups`, `fsGroup`) are ours too.
fn identity(pod: &Pod, target: &str) -> Result<(i64, i64), Refusal> {
    if let Some(linux) = container_status(pod, target)
        .and_then(|status| status.user.as_ref())
        .and_then(|user| user.linux.as_ref())
    {
        return Ok((linux.uid, linux.gid));
    }
    let own = container(pod, target).and_then(|container| container.security_context.as_ref());
    let shared: Option<&PodSecurityContext> = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref());
    let user = own
        .and_then(|own| own.run_as_user)
        .or_else(|| shared.and_then(|shared| shared.run_as_user));
    let group = own
        .and_then(|own| own.run_as_group)
        .or_else(|| shared.and_then(|shared| shared.run_as_group));
    match user {
        // Without a group the runtime takes the image's, which is 0 for a user that the image does not list.
        Some(user) => Ok((user, group.unwrap_or(0))),
        None => Err(Refusal::new(
            Reason::PermissionDenied,
            format!(
                "the user that container {target} runs as is not known: this cluster's kubelet does not report it \
                 (status.containerStatuses[].user, Kubernetes 1.33 and containerd 2.0 or newer do) and the pod sets no runAsUser; \
                 use attach: Ptrace, or set runAsUser and runAsGroup"
            ),
        )),
    }
}

/// The kernel lets a process trace only what has no capability that itself lacks (ptrace(2), access mode checking).
fn same_capabilities(pod: &Pod, target: &str, user: i64) -> Capabilities {
    if user != 0 {
        return Capabilities {
            add: None,
            drop: Some(vec!["ALL".to_owned()]),
        };
    }
    let own = container(pod, target).and_then(|container| container.security_context.as_ref());
    if own.and_then(|own| own.privileged) == Some(true) {
        return Capabilities {
            add: Some(vec!["ALL".to_owned()]),
            drop: None,
        };
    }
    own.and_then(|own| own.capabilities.clone())
        .unwrap_or_default()
}

/// Whether a container that stands in a pod is what we would write. The pull policy does not count: clusters may
/// force it (the `AlwaysPullImages` admission plugin), and it changes nothing about what runs.
pub fn same_spec(found: &EphemeralContainer, ours: &EphemeralContainer) -> bool {
    normal(found) == normal(ours)
}

fn normal(container: &EphemeralContainer) -> EphemeralContainer {
    let mut container = container.clone();
    container.image_pull_policy = None;
    container.env = container.env.filter(|list| !list.is_empty());
    container.env_from = container.env_from.filter(|list| !list.is_empty());
    container.volume_mounts = container.volume_mounts.filter(|list| !list.is_empty());
    container.volume_devices = container.volume_devices.filter(|list| !list.is_empty());
    container.ports = container.ports.filter(|list| !list.is_empty());
    container.resize_policy = container.resize_policy.filter(|list| !list.is_empty());
    container.resources = container.resources.filter(|resources| {
        resources.claims.is_some() || resources.limits.is_some() || resources.requests.is_some()
    });
    container.stdin = container.stdin.filter(|set| *set);
    container.stdin_once = container.stdin_once.filter(|set| *set);
    container.tty = container.tty.filter(|set| *set);
    container
}

/// One ephemeral container of ours in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Its name.
    pub name: String,
    /// Which way of ours it is equal to; `None` when it only has our name.
    pub attach: Option<AttachedAs>,
    /// Whether its image is the one that would be added now, not that of another release.
    pub current: bool,
    /// What the kubelet says.
    pub state: ResidentState,
}

impl Resident {
    /// Whether an agent may live in it, as far as the kubelet has said.
    pub fn may_live(&self) -> bool {
        !matches!(self.state, ResidentState::Ended { .. })
    }
}

/// Whether two references name the same repository, whatever the tag or digest behind it.
fn same_repository(one: &str, other: &str) -> bool {
    fn repository(image: &str) -> &str {
        let name = image.split_once('@').map_or(image, |(name, _)| name);
        match name.rsplit_once(':') {
            // A port is followed by a path, a tag by nothing.
            Some((name, tag)) if !tag.contains('/') => name,
            _ => name,
        }
    }
    repository(one) == repository(other)
}

/// What the kubelet says about one of our containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResidentState {
    /// Nothing yet, or that it is being made.
    Starting,
    /// Why it does not start: the kubelet's reason and words.
    Stuck {
        /// The kubelet's reason.
        reason: String,
        /// The kubelet's words.
        message: String,
    },
    /// It runs.
    Running,
    /// It has ended.
    Ended {
        /// The exit code.
        code: i32,
        /// The runtime's reason and words.
        message: String,
    },
}

/// Our containers in the pod that are aimed at `target`, in the pod's order.
///
/// One that differs in nothing but the tag or digest of our image's repository is ours too: it is of another release of
/// the operator, and as long as its agent speaks the same protocol, which the handshake tells, it is used. A second
/// container beside it could not be removed again, in every pod after every upgrade. Another repository is somebody
/// else's program, which would be handed scripts.
pub fn residents(pod: &Pod, target: &str, sidecar: &SidecarImage) -> Vec<Resident> {
    own_containers(pod)
        .filter(|found| found.target_container_name.as_deref() == Some(target))
        .map(|found| {
            let image = found.image.as_deref().unwrap_or_default();
            let mut release = sidecar.clone();
            if same_repository(image, &sidecar.image) {
                image.clone_into(&mut release.image);
            }
            let ours = |attach: AttachedAs| {
                ephemeral_container(pod, target, attach, &release, &found.name)
                    .is_ok_and(|ours| same_spec(found, &ours))
            };
            Resident {
                name: found.name.clone(),
                attach: [AttachedAs::Ptrace, AttachedAs::SameUser]
                    .into_iter()
                    .find(|attach| ours(*attach)),
                current: image == sidecar.image,
                state: resident_state(pod, &found.name),
            }
        })
        .collect()
}

/// What the kubelet says about the container `name`.
pub fn resident_state(pod: &Pod, name: &str) -> ResidentState {
    let Some(state) = container_state(pod, name) else {
        return ResidentState::Starting;
    };
    if let Some(ended) = &state.terminated {
        let words = [ended.reason.as_deref(), ended.message.as_deref()];
        return ResidentState::Ended {
            code: ended.exit_code,
            message: words.into_iter().flatten().collect::<Vec<_>>().join(": "),
        };
    }
    if state.running.is_some() {
        return ResidentState::Running;
    }
    match &state.waiting {
        Some(waiting)
            if waiting.reason.as_deref().is_some_and(|reason| {
                !matches!(reason, "ContainerCreating" | "PodInitializing" | "")
            }) =>
        {
            ResidentState::Stuck {
                reason: waiting.reason.clone().unwrap_or_default(),
                message: waiting.message.clone().unwrap_or_default(),
            }
        }
        _ => ResidentState::Starting,
    }
}

/// Whether the kubelet's reason says that the image cannot be had.
pub fn is_pull_failure(reason: &str) -> bool {
    matches!(
        reason,
        "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName"
    )
}

fn own_containers(pod: &Pod) -> impl Iterator<Item = &EphemeralContainer> {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.ephemeral_containers.as_deref())
        .unwrap_or_default()
        .iter()
        .filter(|container| container.name.starts_with(SIDECAR_PREFIX))
}

/// What people are told about a pod that will soon take no more sidecars; `None` while there is room.
pub fn sidecars_warning(pod: &Pod, sidecar: &SidecarImage) -> Option<String> {
    let carried = own_containers(pod).count();
    (carried >= sidecar.warn_per_pod).then(|| {
        format!(
            "pod {} carries {carried} of at most {} sidecars, which Kubernetes never removes: replace the pod before it takes no more",
            pod.name_any(),
            sidecar.max_per_pod
        )
    })
}

/// The name of the next sidecar for `target`: deterministic for what is in the pod, so that doing it twice is doing
/// it once.
///
/// # Errors
/// When the pod carries as many of ours as it may.
pub fn next_name(pod: &Pod, target: &str, sidecar: &SidecarImage) -> Result<String, Refusal> {
    let carried = own_containers(pod).count();
    if carried >= sidecar.max_per_pod {
        return Err(Refusal::new(
            Reason::TooManySidecars,
            format!(
                "pod {} carries {carried} sidecars, at most {} are allowed ({SIDECARS_PER_POD}), and Kubernetes never removes one: \
                 delete the pod so that its controller makes another one, or look for what ends its sidecars",
                pod.name_any(),
                sidecar.max_per_pod
            ),
        ));
    }
    let taken: BTreeSet<&str> = pod
        .spec
        .iter()
        .flat_map(|spec| {
            let ephemeral = spec.ephemeral_containers.iter().flatten();
            let init = spec.init_containers.iter().flatten();
            ephemeral
                .map(|container| container.name.as_str())
                .chain(init.map(|container| container.name.as_str()))
                .chain(
                    spec.containers
                        .iter()
                        .map(|container| container.name.as_str()),
                )
        })
        .collect();
    // A container's name is ASCII; three places are kept for the number.
    let short: String = target
        .chars()
        .take(MAX_NAME - SIDECAR_PREFIX.len() - 4)
        .collect();
    let short = short.trim_end_matches('-');
    (1..1000)
        .map(|number| format!("{SIDECAR_PREFIX}{short}-{number}"))
        .find(|name| !taken.contains(name.as_str()))
        .ok_or_else(|| {
            Refusal::new(
                Reason::TooManySidecars,
                format!("pod {} has no name left for a sidecar", pod.name_any()),
            )
        })
}

#[cfg(test)]
mod races;
#[cfg(test)]
mod tests;
