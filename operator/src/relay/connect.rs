//! Opening a relay: `pods/exec` of the sidecar's own binary in its own container, and nothing else.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams};
use sidewinder_crds::names::{RELAY_SUBCOMMAND, SIDECAR_BINARY};

use super::{RelayError, Streams};

/// How long the API server, the kubelet and the runtime may take to start the relay.
const OPEN_LIMIT: Duration = Duration::from_secs(15);
/// Bytes buffered in each direction; kube's default of 1 KiB makes large outcomes slow.
const BUFFER_BYTES: usize = 1 << 20;

/// Where an agent is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID: a pod of the same name that came later is another one.
    pub pod_uid: String,
    /// Our ephemeral container. Within one pod a name is never used twice.
    pub container: String,
}

/// Starts relays.
pub trait Connect: Send + Sync + 'static {
    /// Starts the relay in the container of `endpoint`.
    fn connect(
        &self,
        endpoint: &Endpoint,
    ) -> impl Future<Output = Result<Streams, RelayError>> + Send;
}

/// Starts relays through the API server.
#[derive(Clone)]
pub struct PodExec {
    client: kube::Client,
}

impl PodExec {
    /// Uses `client`, which should not retry by itself: a container that is not there yet is asked for often.
    pub fn new(client: kube::Client) -> Self {
        Self { client }
    }
}

impl Connect for PodExec {
    async fn connect(&self, endpoint: &Endpoint) -> Result<Streams, RelayError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &endpoint.namespace);
        let params = AttachParams::default()
            .container(&endpoint.container)
            .stdin(true)
            .stdout(true)
            .stderr(true)
            .max_stdin_buf_size(BUFFER_BYTES)
            .max_stdout_buf_size(BUFFER_BYTES)
            .max_stderr_buf_size(4096);
        let command = [SIDECAR_BINARY, RELAY_SUBCOMMAND];
        let mut process =
            tokio::time::timeout(OPEN_LIMIT, pods.exec(&endpoint.pod, command, &params))
                .await
                .map_err(|_| {
                    RelayError::Unavailable(format!("no answer within {} s", OPEN_LIMIT.as_secs()))
                })?
                .map_err(|error| classify(&error))?;
        let missing = || RelayError::Unavailable("the exec stream has no standard streams".into());
        Ok(Streams {
            stdin: Box::new(process.stdin().ok_or_else(missing)?),
            stdout: Box::new(process.stdout().ok_or_else(missing)?),
            stderr: Box::new(process.stderr().ok_or_else(missing)?),
            guard: Box::new(process),
        })
    }
}

/// What a refused exec means. The API server passes the kubelet's and the runtime's errors on as text only.
fn classify(error: &kube::Error) -> RelayError {
    let kube::Error::Api(status) = error else {
        return RelayError::Unavailable(super::describe(error));
    };
    let words = super::clip(&status.message);
    match status.code {
        404 if words.contains("container") => RelayError::NotRunning(words),
        404 => RelayError::PodGone(words),
        401 | 403 => RelayError::Forbidden(words),
        // `container NAME is not valid for pod POD`: an API server that has not seen the patch yet.
        400 => RelayError::NotRunning(words),
        _ if words.contains("container not found")
            || words.contains("not running")
            || words.contains("CONTAINER_EXITED")
            || words.contains("cannot exec in a stopped")
            || words.contains("task not found")
            || words.contains("process already finished")
            || words.contains("init process") =>
        {
            RelayError::NotRunning(words)
        }
        _ if words.contains("error dialing backend") || words.contains("dial tcp") => {
            RelayError::NodeUnreachable(words)
        }
        _ => RelayError::Unavailable(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, message: &str) -> RelayError {
        classify(&kube::Error::Api(Box::new(kube::core::Status {
            code,
            message: message.to_owned(),
            ..kube::core::Status::default()
        })))
    }

    #[test]
    fn the_words_of_a_refused_exec_are_told_apart() {
        for (code, message, expected) in [
            (
                500,
                "container not found (\"sidewinder-app-1\")",
                "NotRunning",
            ),
            (
                400,
                "container sidewinder-app-1 is not valid for pod web-0",
                "NotRunning",
            ),
            (404, "pods \"web-0\" not found", "PodGone"),
            (
                403,
                "pods \"web-0\" is forbidden: cannot create resource \"pods/exec\"",
                "Forbidden",
            ),
            (
                500,
                "error dialing backend: dial tcp 10.0.0.7:10250: connect: connection refused",
                "NodeUnreachable",
            ),
            (500, "something else", "Unavailable"),
        ] {
            let got = format!("{:?}", refused(code, message));
            assert!(got.starts_with(expected), "{message}: {got}");
        }
    }
}
