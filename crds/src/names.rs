//! Every string that two processes of Sidewinder, or Sidewinder and its chart, must spell alike.

/// The API group.
pub const GROUP: &str = "sidewinder.dev";
/// The API version.
pub const VERSION: &str = "v1alpha1";
/// The kind.
pub const KIND: &str = "DebugSession";
/// The resource's name in URLs and RBAC rules.
pub const PLURAL: &str = "debugsessions";

/// The namespace that Sidewinder is installed into unless the chart's release says otherwise.
pub const NAMESPACE: &str = "sidewinder-system";
/// The operator's Deployment and ServiceAccount.
pub const OPERATOR: &str = "sidewinder-operator";
/// The Lease that operator replicas elect their leader with, in the operator's own namespace.
pub const LEASE: &str = "sidewinder-operator";
/// The field manager of every status the operator writes.
pub const FIELD_MANAGER: &str = "sidewinder-operator";
/// The `reportingController` of every Event.
pub const EVENT_CONTROLLER: &str = "sidewinder.dev/operator";

/// The label that marks everything of Sidewinder, with the value [`APP`].
pub const APP_LABEL: &str = "app.kubernetes.io/name";
/// The value of [`APP_LABEL`].
pub const APP: &str = "sidewinder";
/// The label of a result's Secrets: the UID of the session they belong to.
pub const SESSION_UID_LABEL: &str = "sidewinder.dev/session-uid";
/// The type of the Secrets that hold results too large or too sensitive for the status.
pub const RESULT_SECRET_TYPE: &str = "sidewinder.dev/result";
/// The key of a result's bytes in such a Secret.
pub const RESULT_SECRET_KEY: &str = "result";

/// The label with which a namespace or a pod keeps sessions out, with any value but `false`. The admission policies know it.
pub const DENY_LABEL: &str = "sidewinder.dev/deny";
/// The label with which a namespace or a pod lets sessions in, with the value `true`, where a setting demands it.
pub const ALLOW_LABEL: &str = "sidewinder.dev/allow";

/// The annotation with which a pod names its default container.
///
/// See <https://kubernetes.io/docs/reference/labels-annotations-taints/#kubectl-kubernetes-io-default-container>.
pub const DEFAULT_CONTAINER_ANNOTATION: &str = "kubectl.kubernetes.io/default-container";

/// What the names of our ephemeral containers begin with. The admission policies rely on it.
pub const SIDECAR_PREFIX: &str = "sidewinder-";
/// The sidecar's executable in its image. The admission policies rely on it.
pub const SIDECAR_BINARY: &str = "/sidewinder-sidecar";
/// The argument that makes the sidecar the resident agent: the ephemeral container's main process.
pub const AGENT_SUBCOMMAND: &str = "agent";
/// The argument that makes the sidecar a relay: what the operator starts with `pods/exec`.
pub const RELAY_SUBCOMMAND: &str = "relay";

/// The environment variables that configure the operator; the chart sets them.
pub mod env {
    /// The sidecar's image, as it is written into pods.
    pub const SIDECAR_IMAGE: &str = "SIDEWINDER_SIDECAR_IMAGE";
    /// `Always`, `IfNotPresent` (default) or `Never`.
    pub const SIDECAR_PULL_POLICY: &str = "SIDEWINDER_SIDECAR_PULL_POLICY";
    /// Where script output and values of local variables go: `Secret` (default) or `Status`.
    pub const RESULTS_SENSITIVE: &str = "SIDEWINDER_RESULTS_SENSITIVE";
    /// The largest result of one process, in bytes of JSON (default 16777216).
    pub const RESULT_MAX_BYTES: &str = "SIDEWINDER_RESULT_MAX_BYTES";
    /// What results may take of the operator's memory, all sessions together, in bytes (default 134217728).
    pub const RESULT_MEMORY_BYTES: &str = "SIDEWINDER_RESULT_MEMORY_BYTES";
    /// After how many idle seconds an agent exits (default 1800).
    pub const AGENT_IDLE_SECONDS: &str = "SIDEWINDER_AGENT_IDLE_SECONDS";
    /// How many sidecars one pod may carry (default 32).
    pub const SIDECARS_PER_POD: &str = "SIDEWINDER_SIDECARS_PER_POD";
    /// From how many sidecars in a pod on outcomes warn of it (default 24).
    pub const SIDECARS_WARNING: &str = "SIDEWINDER_SIDECARS_WARNING";
    /// The log filter (default `info`).
    pub const LOG: &str = "SIDEWINDER_LOG";
    /// `json` or `text`.
    pub const LOG_FORMAT: &str = "SIDEWINDER_LOG_FORMAT";
    /// Whether replicas elect a leader (default `true`).
    pub const LEADER_ELECTION: &str = "SIDEWINDER_LEADER_ELECTION";
    /// The one namespace whose sessions are served; empty (default) for all.
    pub const WATCH_NAMESPACE: &str = "SIDEWINDER_WATCH_NAMESPACE";
    /// Where `/healthz`, `/readyz` and `/metrics` are served (default `0.0.0.0:8080`).
    pub const HTTP_ADDRESS: &str = "SIDEWINDER_HTTP_ADDRESS";
    /// How many sessions are worked on at once (default 64).
    pub const MAX_CONCURRENT: &str = "SIDEWINDER_MAX_CONCURRENT";
    /// The ConfigMap with the settings that are in force as soon as they change; empty (default) for none.
    pub const SETTINGS: &str = "SIDEWINDER_SETTINGS";
    /// Whether code runs only while the admission policies are in place (default `true`).
    pub const REQUIRE_POLICIES: &str = "SIDEWINDER_REQUIRE_POLICIES";
    /// Whether code runs only for a requester that the session names (default `true`).
    pub const REQUIRE_REQUESTER: &str = "SIDEWINDER_REQUIRE_REQUESTER";
    /// How many targets of one pod are worked on at once (default 16).
    pub const MAX_PER_POD: &str = "SIDEWINDER_MAX_PER_POD";
    /// How many requests of the API server the operator makes each second for long (default 500, at least 20).
    pub const API_REQUESTS_PER_SECOND: &str = "SIDEWINDER_API_REQUESTS_PER_SECOND";
    /// How many requests of the API server the operator may make at once (default 1000, at least 20).
    pub const API_BURST: &str = "SIDEWINDER_API_BURST";
    /// How many targets on one node are worked on at once (default 64).
    pub const MAX_PER_NODE: &str = "SIDEWINDER_MAX_PER_NODE";
    /// The operator's own pod.
    pub const POD_NAME: &str = "POD_NAME";
    /// The operator's own namespace.
    pub const POD_NAMESPACE: &str = "POD_NAMESPACE";
}
