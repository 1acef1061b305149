//! The operator, from its chart, into a cluster: the embedded one or somebody's own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

use crate::cluster::{self, Cluster, network};
use crate::images::{self, Image, Images};
use crate::tools::Module;
use crate::{checkout, command};

/// Where the operator runs.
pub const NAMESPACE: &str = "sidewinder-system";
/// The chart's release, and the Deployment's name after `sidewinder-`.
pub const RELEASE: &str = "sidewinder";
/// The command that shows what the operator says.
pub const OPERATOR_LOG: &str =
    "kubectl --namespace sidewinder-system logs deploy/sidewinder-operator";
/// Until the operator is ready: with the images in place, seconds.
const ROLLOUT: Duration = Duration::from_mins(2);

/// Where to install, and how images get there.
#[derive(Debug)]
pub enum Destination {
    /// An embedded cluster: its node loads the images.
    Embedded(Cluster),
    /// Somebody's own cluster.
    Own {
        /// Its kubeconfig.
        kubeconfig: PathBuf,
        /// A shell command that brings one image to the nodes: the tar is `$1` and the image's name `$2`. Without it they must be there already.
        load: Option<String>,
    },
}

impl Destination {
    /// The cluster that a kubeconfig names: if an embedded one on this machine, as such.
    pub fn of(kubeconfig: &Path, load: Option<String>) -> Result<Self> {
        if !kubeconfig.is_file() {
            bail!("there is no kubeconfig {}", kubeconfig.display());
        }
        let kubeconfig = kubeconfig
            .canonicalize()
            .with_context(|| format!("cannot resolve {}", kubeconfig.display()))?;
        Ok(match cluster::embedded(&kubeconfig)? {
            Some(cluster) => Self::Embedded(cluster),
            None => Self::Own { kubeconfig, load },
        })
    }

    /// The file with which kubectl reaches it.
    pub fn kubeconfig(&self) -> PathBuf {
        match self {
            Self::Embedded(cluster) => cluster.kubeconfig(),
            Self::Own { kubeconfig, .. } => kubeconfig.clone(),
        }
    }

    /// Brings an image to its nodes.
    pub fn load(&self, image: &Image) -> Result<()> {
        match self {
            Self::Embedded(cluster) => cluster.load_image(image),
            Self::Own {
                load: Some(load), ..
            } => {
                let mut shell = Command::new("/bin/sh");
                shell
                    .args(["-c", load, "load"])
                    .arg(&image.archive)
                    .arg(image.name());
                command::visible(&mut shell, Duration::from_mins(10))
                    .with_context(|| format!("cannot load {}", image.name()))
            }
            Self::Own { load: None, .. } => {
                eprintln!(
                    "{} must be on the nodes: its tar is {}",
                    image.name(),
                    image.archive.display()
                );
                Ok(())
            }
        }
    }
}

/// Builds the images, brings them to the nodes, installs or upgrades the chart, and returns when the operator is ready.
pub fn deploy(destination: &Destination) -> Result<Images> {
    let images = images::build()?;
    install(destination, &images)?;
    Ok(images)
}

/// [`deploy`] with images that are built.
pub fn install(destination: &Destination, images: &Images) -> Result<()> {
    for image in [&images.operator, &images.sidecar] {
        destination.load(image)?;
    }
    let embedded = matches!(destination, Destination::Embedded(_));
    let mut helm = Command::new(Module::Helm.binary("helm")?);
    helm.env("KUBECONFIG", destination.kubeconfig())
        .args(["upgrade", "--install", RELEASE])
        .arg(checkout().join("charts/sidewinder"))
        .args(["--namespace", NAMESPACE, "--create-namespace"])
        .args(values_as_arguments(images, embedded));
    command::output(&mut helm, ROLLOUT).context("cannot install the chart")?;
    let kubectl = |arguments: &[&str]| -> Result<String> {
        let mut kubectl = cluster::kubectl_command(&destination.kubeconfig())?;
        command::text(
            kubectl.args(["--namespace", NAMESPACE]).args(arguments),
            ROLLOUT + Duration::from_secs(10),
        )
    };
    let wait = format!("--timeout={}s", ROLLOUT.as_secs());
    kubectl(&["rollout", "status", "deployment/sidewinder-operator", &wait])
        .map(|_| ())
        .map_err(|error| {
            // Why, in the words of the cluster: an image that is not there, a container that ends.
            let state = kubectl(&["get", "pods,events", "--output=wide"])
                .unwrap_or_else(|error| format!("{error:#}"));
            let logs = kubectl(&["logs", "--tail=20", "deployment/sidewinder-operator"])
                .unwrap_or_else(|error| format!("{error:#}"));
            error.context(format!(
                "the operator did not become ready; its log: `{OPERATOR_LOG}`\n{state}\n{logs}"
            ))
        })
}

/// The chart's values for these images as helm's arguments; `embedded`: in an embedded cluster.
pub fn values_as_arguments(images: &Images, embedded: bool) -> Vec<String> {
    arguments(&values(images, embedded))
}

/// The chart's values as helm's arguments: a file would stay behind when we are interrupted.
fn arguments(values: &Map<String, Value>) -> Vec<String> {
    values
        .iter()
        .flat_map(|(name, value)| ["--set-json".to_owned(), format!("{name}={value}")])
        .collect()
}

fn values(images: &Images, embedded: bool) -> Map<String, Value> {
    let image = |image: &Image| json!({"repository": image.repository, "tag": image.tag, "pullPolicy": "IfNotPresent"});
    let mut values = Map::from_iter([
        ("image".to_owned(), image(&images.operator)),
        (
            "sidecar".to_owned(),
            json!({"image": image(&images.sidecar)}),
        ),
    ]);
    if embedded {
        // Without kube-proxy the address of the service `kubernetes` leads nowhere.
        let variable = |name: &str, value: String| json!({"name": name, "value": value});
        values.insert(
            "extraEnv".to_owned(),
            json!([
                variable("KUBERNETES_SERVICE_HOST", network::BRIDGE.to_string()),
                variable("KUBERNETES_SERVICE_PORT", network::API_PORT.to_string()),
            ]),
        );
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images() -> Images {
        let image = |name: &str| Image {
            repository: format!("localhost/{name}"),
            tag: "1-a".to_owned(),
            archive: PathBuf::new(),
        };
        Images {
            operator: image("operator"),
            sidecar: image("sidecar"),
        }
    }

    #[test]
    fn only_the_embedded_cluster_is_told_where_its_api_server_is() {
        assert_eq!(values(&images(), false).get("extraEnv"), None);
        let values = Value::Object(values(&images(), true));
        assert_eq!(
            values.pointer("/extraEnv/0/value"),
            Some(&json!("10.88.0.1"))
        );
        assert_eq!(
            values.pointer("/sidecar/image/repository"),
            Some(&json!("localhost/sidecar"))
        );
    }

    #[test]
    fn every_value_is_an_argument_of_helm() {
        let values = values(&images(), true);
        let arguments = arguments(&values);
        assert_eq!(arguments.len(), 2 * values.len());
        let sidecar = arguments
            .iter()
            .find_map(|argument| argument.strip_prefix("sidecar="))
            .unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(sidecar).unwrap(),
            json!({"image": {"repository": "localhost/sidecar", "tag": "1-a", "pullPolicy": "IfNotPresent"}})
        );
    }

    #[test]
    fn the_operators_log_is_looked_for_where_it_is_installed() {
        assert!(OPERATOR_LOG.contains(&format!("--namespace {NAMESPACE} ")));
        assert!(OPERATOR_LOG.ends_with(&format!("/{RELEASE}-operator")));
    }

    #[test]
    fn a_kubeconfig_that_is_not_there_is_named() {
        let error = Destination::of(Path::new("/no/such/file"), None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/no/such/file"), "{error}");
    }
}
