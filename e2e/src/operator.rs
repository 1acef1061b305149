//! The operator as a child of ours: a binary of it, told what the chart tells it, under its own service account, in place
//! of the chart's own.
//!
//! Outside of a pod it can be ended and started again at any moment, without the kubelet's growing pause between two
//! starts, and the kernel says what it used.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::EnvVar;
use kube::config::Kubeconfig;
use kube::{Api, Client};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use sidewinder_crds::names::{self, env};

use crate::{cluster, command};

/// How much of its log is shown when it ends by itself.
const SHOWN: usize = 4000;
/// How long kubectl may take.
const KUBECTL: Duration = Duration::from_mins(2);
/// What it is called among the replicas.
const IDENTITY: &str = "bench";

/// How to start it.
#[derive(Clone, Debug)]
pub struct Program {
    /// The static binary of its image.
    pub binary: PathBuf,
    /// A kubeconfig with its service account's token.
    pub kubeconfig: PathBuf,
    /// What the chart's Deployment sets.
    pub environment: Vec<(String, String)>,
    /// What it says goes here.
    pub log: PathBuf,
}

/// It, running.
#[derive(Debug)]
pub struct Operator {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl Program {
    /// The same with one more setting.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self) -> Result<Operator> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot open {}", self.log.display()))?;
        let port = free_port()?;
        // It ends with us, however we end: prctl(2), PR_SET_PDEATHSIG.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(&self.binary)
            .env_clear()
            .env("KUBECONFIG", &self.kubeconfig)
            // The lease is its own again after a restart, as it is for a container that is started again in its pod.
            .env(env::POD_NAME, IDENTITY)
            .envs(self.environment.iter().cloned())
            .env(env::HTTP_ADDRESS, format!("127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start the operator")?;
        Ok(Operator {
            child,
            port,
            log: self.log.clone(),
        })
    }
}

impl Operator {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its largest resident set since its start, or since [`Self::forget_peak`], in KiB.
    ///
    /// # Errors
    /// When it has ended.
    pub fn peak(&mut self) -> Result<u64> {
        self.check()?;
        let file = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&file).context("the operator has ended")?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next())
            .and_then(|peak| peak.parse().ok())
            .with_context(|| format!("{file} without VmHWM"))
    }

    /// Its largest resident set is what it holds now: proc(5), `clear_refs`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_peak(&mut self) -> Result<()> {
        self.check()?;
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5")
            .context("the kernel does not forget the operator's peak memory")
    }

    /// The port of this machine on which it serves its metrics.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits until it has ended by itself, and how.
    ///
    /// # Errors
    /// When it has not within `limit`; it goes on then.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self
                .child
                .try_wait()
                .context("cannot wait for the operator")?
            {
                return Ok(status);
            }
            if Instant::now() > until {
                bail!("the operator did not end within {} s", limit.as_secs());
            }
            // A child that is std's has no other sign.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// SIGTERM, and taken in: it gives its lease back.
    ///
    /// # Errors
    /// When it had ended before, does not end within `limit`, or does not end well.
    pub async fn terminate(mut self, limit: Duration) -> Result<()> {
        self.check()?;
        signal::kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGTERM)?;
        let status = self.ended(limit).await?;
        anyhow::ensure!(status.success(), "the operator ended with {status}");
        Ok(())
    }

    /// Fails if it has ended by itself.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check(&mut self) -> Result<()> {
        if command::is_running(&mut self.child) {
            return Ok(());
        }
        let log = std::fs::read(&self.log).unwrap_or_default();
        let from = log.len().saturating_sub(SHOWN);
        let words = String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned();
        bail!("the operator has ended by itself: {words}")
    }

    /// SIGKILL, and taken in.
    ///
    /// # Errors
    /// When it had ended before, by itself.
    pub fn kill(mut self) -> Result<()> {
        self.check()?;
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        // One that has ended cannot be killed any more, and is taken in all the same.
        let _ = self.child.kill();
        self.child
            .wait()
            .map(drop)
            .context("cannot wait for the operator")
    }
}

/// How many operators the chart's Deployment runs. Returns at 0 when the last has ended.
///
/// # Errors
/// When kubectl fails.
pub fn replicas(kubeconfig: &Path, count: u8) -> Result<()> {
    let kubectl = |arguments: &[&str]| {
        let namespace = format!("--namespace={}", names::NAMESPACE);
        let mut kubectl = cluster::kubectl_command(kubeconfig)?;
        command::text(kubectl.arg(namespace).args(arguments), KUBECTL)
    };
    let deployment = format!("deployment/{}", names::OPERATOR);
    kubectl(&["scale", &deployment, &format!("--replicas={count}")])?;
    if count == 0 {
        let label = format!("--selector={}={}", names::APP_LABEL, names::APP);
        kubectl(&["wait", "pods", &label, "--for=delete", "--timeout=50s"])?;
    } else {
        kubectl(&["rollout", "status", &deployment, "--timeout=90s"])?;
    }
    Ok(())
}

/// The operator of the chart as `binary`, to be started by us. Its kubeconfig is written into `folder`.
///
/// # Errors
/// When the chart is not installed, or the API server gives no token.
pub async fn program(
    client: &Client,
    admin: &Path,
    binary: PathBuf,
    folder: &Path,
    log: PathBuf,
) -> Result<Program> {
    let deployment = Api::<Deployment>::namespaced(client.clone(), names::NAMESPACE)
        .get(names::OPERATOR)
        .await
        .context("the chart is not installed")?;
    let containers = deployment
        .spec
        .and_then(|spec| spec.template.spec)
        .unwrap_or_default()
        .containers;
    let environment = containers
        .into_iter()
        .flat_map(|container| container.env.unwrap_or_default())
        .filter(|variable| variable.name.starts_with("SIDEWINDER_"))
        .filter_map(|EnvVar { name, value, .. }| Some((name, value?)))
        .collect();
    let token = command::text(
        cluster::kubectl_command(admin)?.args([
            &format!("--namespace={}", names::NAMESPACE),
            "create",
            "token",
            names::OPERATOR,
            "--duration=12h",
        ]),
        KUBECTL,
    )?;
    let kubeconfig = folder.join("operator.kubeconfig");
    std::fs::write(&kubeconfig, as_operator(admin, &token)?)
        .with_context(|| format!("cannot write {}", kubeconfig.display()))?;
    Ok(Program {
        binary,
        kubeconfig,
        environment,
        log,
    })
}

/// The kubeconfig `admin` with `token` in place of its user's certificate.
fn as_operator(admin: &Path, token: &str) -> Result<String> {
    let mut config = Kubeconfig::read_from(admin)
        .with_context(|| format!("cannot read the kubeconfig {}", admin.display()))?;
    for user in &mut config.auth_infos {
        user.auth_info = Some(kube::config::AuthInfo {
            token: Some(token.to_owned().into()),
            ..Default::default()
        });
    }
    // Written as JSON, which is YAML too.
    let mut written = serde_json::to_value(&config).context("cannot write a kubeconfig")?;
    // A secret's serialization hides nothing here, but what is not set would be written as null.
    prune(&mut written);
    serde_json::to_string(&written).context("cannot write a kubeconfig")
}

fn prune(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(prune);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

/// A port that nobody listens on.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn program(folder: &Path, script: &str) -> Program {
        let binary = folder.join("program");
        std::fs::write(&binary, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        Program {
            binary,
            kubeconfig: folder.join("kubeconfig"),
            environment: vec![("SETTING".to_owned(), "chart".to_owned())],
            log: folder.join("log"),
        }
    }

    #[test]
    fn it_is_measured_while_it_runs_and_gone_when_it_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let mut operator = program(folder.path(), "exec sleep 60").start().unwrap();
        let pid = operator.pid();
        assert!(operator.peak().unwrap() > 0);
        operator.forget_peak().unwrap();
        assert!(operator.peak().unwrap() > 0);
        operator.kill().unwrap();
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn one_that_ends_by_itself_is_an_error_with_its_own_words() {
        let folder = tempfile::tempdir().unwrap();
        let said = "echo \"$KUBECONFIG $SETTING $POD_NAME\" >&2; exit 3";
        let mut operator = program(folder.path(), said)
            .with("SETTING", "ours")
            .start()
            .unwrap();
        operator.child.wait().unwrap();
        let error = operator.check().unwrap_err().to_string();
        assert!(error.contains("kubeconfig ours bench"), "{error}");
        assert!(operator.kill().is_err());
    }

    #[test]
    fn the_operators_kubeconfig_has_a_token_and_no_certificate_of_the_administrators() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kubeconfig");
        let admin = r#"{"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "c", "cluster": {"server": "https://198.18.0.2:6443"}}],
            "users": [{"name": "admin", "user": {"client-certificate-data": "eA==", "client-key-data": "eA=="}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "admin"}}], "current-context": "c"}"#;
        std::fs::write(&file, admin).unwrap();
        let written = as_operator(&file, "secret").unwrap();
        assert!(written.contains(r#""token":"secret""#), "{written}");
        assert!(!written.contains("client-"), "{written}");
        assert!(written.contains("https://198.18.0.2:6443"), "{written}");
    }
}
