//! What the cluster's processes are told. Inside the cluster's mount namespace every path is the same for every cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::cluster::network::{API_PORT, BRIDGE};
use crate::cluster::{cgroups, pki};

/// Where the cluster's folder is seen inside. Short: socket paths hold 107 bytes (unix(7)).
pub(crate) const INSIDE: &str = "/run/sidewinder";
/// Where the folders of the binaries are seen inside.
pub(crate) const TOOLS: &str = "/run/sidewinder-tools";
/// The node's name.
pub const NODE: &str = "node1";
/// The pods' sandbox image.
pub(crate) const PAUSE_IMAGE: &str = "localhost/pause:1";

/// One process of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
}

fn process(name: &'static str, module: &str, binary: &str, arguments: &[String]) -> Process {
    Process {
        name,
        program: Path::new(TOOLS).join(module).join(binary),
        arguments: arguments.to_vec(),
    }
}

macro_rules! flags {
    ($($flag:expr),* $(,)?) => { [$(format!($flag)),*] };
}

/// What the API server needs, and what needs nothing.
pub(crate) fn first() -> [Process; 3] {
    let etcd = flags!(
        "--name=node1",
        "--data-dir={INSIDE}/etcd",
        // The data lives as long as the cluster: nothing has to survive a power cut.
        "--unsafe-no-fsync",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=node1=http://127.0.0.1:2380",
    );
    let apiserver = flags!(
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=0.0.0.0",
        "--secure-port={API_PORT}",
        "--advertise-address={BRIDGE}",
        "--endpoint-reconciler-type=none",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--client-ca-file={INSIDE}/pki/ca.crt",
        "--tls-cert-file={INSIDE}/pki/apiserver.crt",
        "--tls-private-key-file={INSIDE}/pki/apiserver.key",
        "--kubelet-client-certificate={INSIDE}/pki/kubelet-client.crt",
        "--kubelet-client-key={INSIDE}/pki/kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-account-key-file={INSIDE}/pki/service-accounts.pub",
        "--service-account-signing-key-file={INSIDE}/pki/service-accounts.key",
        "--audit-policy-file={INSIDE}/audit-policy.yaml",
        "--audit-log-path={INSIDE}/logs/audit.log",
    );
    [
        process("etcd", "etcd", "server", &etcd),
        process(
            "containerd",
            "containerd",
            "containerd",
            &flags!("--config={INSIDE}/containerd.toml"),
        ),
        process("kube-apiserver", "kubernetes", "kube-apiserver", &apiserver),
    ]
}

/// What needs the API server.
pub(crate) fn second() -> [Process; 3] {
    let controllers = flags!(
        "--kubeconfig={INSIDE}/controller-manager.kubeconfig",
        "--authentication-kubeconfig={INSIDE}/controller-manager.kubeconfig",
        "--authorization-kubeconfig={INSIDE}/controller-manager.kubeconfig",
        "--leader-elect=false",
        "--use-service-account-credentials",
        // It makes this folder.
        "--flex-volume-plugin-dir={INSIDE}/kubelet/volume-plugins",
        "--root-ca-file={INSIDE}/pki/ca.crt",
        "--service-account-private-key-file={INSIDE}/pki/service-accounts.key",
        "--bind-address=127.0.0.1",
    );
    let scheduler = flags!(
        "--kubeconfig={INSIDE}/scheduler.kubeconfig",
        "--authentication-kubeconfig={INSIDE}/scheduler.kubeconfig",
        "--authorization-kubeconfig={INSIDE}/scheduler.kubeconfig",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
    );
    let kubelet = flags!(
        "--config={INSIDE}/kubelet.yaml",
        "--kubeconfig={INSIDE}/kubelet.kubeconfig",
        "--hostname-override={NODE}",
        "--node-ip={BRIDGE}",
        "--root-dir={INSIDE}/kubelet",
        "--cert-dir={INSIDE}/kubelet/pki",
        "--v=2",
    );
    [
        process(
            "kube-controller-manager",
            "kubernetes",
            "kube-controller-manager",
            &controllers,
        ),
        process("kube-scheduler", "kubernetes", "kube-scheduler", &scheduler),
        process("kubelet", "kubernetes", "kubelet", &kubelet),
    ]
}

/// The files below the cluster's folder, by name; `open_files` is the most descriptors a process of this machine may have.
pub(crate) fn files(id: &str, open_files: u64) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("containerd.toml", containerd()),
        ("cni/10-sidewinder.conflist", cni().to_string()),
        ("kubelet.yaml", kubelet(id, open_files).to_string()),
        ("audit-policy.yaml", AUDIT_POLICY.to_owned()),
        // There is no DNS: a look-up fails at once instead of asking the machine's servers, which the network namespace does not reach.
        (
            "resolv.conf",
            "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n".to_owned(),
        ),
    ])
}

const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- level: Metadata\n";

fn containerd() -> String {
    format!(
        r#"version = 3
root = "{INSIDE}/containerd"
state = "/run/containerd"

[grpc]
  address = "{INSIDE}/containerd.sock"
[ttrpc]
  address = "{INSIDE}/containerd.sock.ttrpc"

[plugins.'io.containerd.internal.v1.opt']
  path = "{INSIDE}/opt"
[plugins.'io.containerd.nri.v1.nri']
  disable = true
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{PAUSE_IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
  # Without CAP_SYS_RESOURCE nobody may lower oom_score_adj, and every sandbox would fail.
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = "{TOOLS}/runc/runc"
      SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{TOOLS}/cni"]
    conf_dir = "{INSIDE}/cni"
    use_internal_loopback = true
"#
    )
}

fn cni() -> serde_json::Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "sidewinder",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
            "ipam": {
                "type": "host-local", "dataDir": format!("{INSIDE}/cni-addresses"),
                "ranges": [[{"subnet": "10.88.0.0/16", "rangeStart": "10.88.1.1"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}

fn kubelet(id: &str, open_files: u64) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", cgroups::name(id)),
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": ["pods"],
        "containerRuntimeEndpoint": format!("unix://{INSIDE}/containerd.sock"),
        "authentication": {
            "anonymous": {"enabled": false}, "webhook": {"enabled": true}, "x509": {"clientCAFile": format!("{INSIDE}/pki/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "failSwapOn": false,
        "oomScoreAdj": 0,
        // 110 by default: a fan-out over a hundred pods needs more beside it.
        "maxPods": 250,
        "maxOpenFiles": open_files.min(1_000_000),
        // What RuntimeDefault forbids is what production forbids.
        "seccompDefault": true,
        "makeIPTablesUtilChains": false,
        "localStorageCapacityIsolation": false,
        "hairpinMode": "none",
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%"},
        "resolvConf": format!("{INSIDE}/resolv.conf"),
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
        "podLogsDir": format!("{INSIDE}/logs/pods"),
        "volumePluginDir": format!("{INSIDE}/kubelet/volume-plugins"),
    })
}

/// The kernel settings the kubelet wants, and would write: inside, files with these values stand in their place, so the machine's stay as they are.
pub(crate) const KERNEL_SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// The cluster's name, and its context's, in the kubeconfigs.
pub(crate) const NAME: &str = "sidewinder";

/// A kubeconfig for the client whose certificate is `client` in `pki`.
pub(crate) fn kubeconfig(pki: &Path, client: &str, server: std::net::Ipv4Addr) -> Result<String> {
    let read = |name: String| {
        let file = pki.join(name);
        std::fs::read(&file)
            .map(|bytes| base64(&bytes))
            .with_context(|| format!("cannot read {}", file.display()))
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": NAME, "cluster": {
            "server": format!("https://{server}:{API_PORT}"), "certificate-authority-data": read("ca.crt".to_owned())?,
        }}],
        "users": [{"name": client, "user": {
            "client-certificate-data": read(format!("{client}.crt"))?, "client-key-data": read(format!("{client}.key"))?,
        }}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": client}}],
        "current-context": NAME,
    });
    Ok(serde_json::to_string_pretty(&config)?)
}

/// Writes the configuration of cluster `id` into its folder.
pub(crate) fn write(dir: &Path, id: &str, host_side: std::net::Ipv4Addr) -> Result<()> {
    for folder in ["pki", "cni", "logs/pods", "kubelet", "etcd"] {
        std::fs::create_dir_all(dir.join(folder))
            .with_context(|| format!("cannot make {}", dir.join(folder).display()))?;
    }
    let save = |name: &str, content: String| {
        std::fs::write(dir.join(name), content)
            .with_context(|| format!("cannot write {}", dir.join(name).display()))
    };
    private(&dir.join("etcd"))?;
    private(&dir.join("pki"))?;
    let pki = dir.join("pki");
    pki::write(&pki, host_side)?;
    let (_, open_files) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    for (name, content) in files(id, open_files) {
        save(name, content)?;
    }
    for client in &pki::CLIENTS {
        save(
            &format!("{}.kubeconfig", client.file),
            kubeconfig(&pki, client.file, std::net::Ipv4Addr::LOCALHOST)?,
        )?;
        owner_only(&dir.join(format!("{}.kubeconfig", client.file)))?;
    }
    save("kubeconfig", kubeconfig(&pki, "admin", host_side)?)?;
    owner_only(&dir.join("kubeconfig"))
}

fn private(folder: &Path) -> Result<()> {
    set_mode(folder, 0o700)
}

fn owner_only(file: &Path) -> Result<()> {
    set_mode(file, 0o600)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

/// RFC 4648 with padding, which kubeconfigs use.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or_default());
        let word = (at(0) << 16) | (at(1) << 8) | at(2);
        for digit in 0..4 {
            let value = (word >> (18 - 6 * digit)) & 63;
            let shown = digit <= chunk.len();
            let character = DIGITS
                .get(value as usize)
                .copied()
                .filter(|_| shown)
                .unwrap_or(b'=');
            text.push(char::from(character));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn clusters_differ_in_their_control_groups_and_in_nothing_else() {
        let (one, two) = (files("00000001", 20_000), files("00000002", 20_000));
        let differing: Vec<&str> = one
            .iter()
            .filter(|(name, content)| two.get(*name) != Some(content))
            .map(|(name, _)| *name)
            .collect();
        assert_eq!(differing, ["kubelet.yaml"]);
    }

    #[test]
    fn the_kubelet_is_not_told_more_descriptors_than_the_machine_allows() {
        assert_eq!(
            kubelet("00000001", 20_000).get("maxOpenFiles"),
            Some(&json!(20_000))
        );
        assert_eq!(
            kubelet("00000001", u64::MAX).get("maxOpenFiles"),
            Some(&json!(1_000_000))
        );
    }

    #[test]
    fn certificates_and_kubeconfigs_fit_together() {
        let folder = tempfile::tempdir().unwrap();
        let address = std::net::Ipv4Addr::new(198, 18, 0, 2);
        write(folder.path(), "00000001", address).unwrap();
        let config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.path().join("kubeconfig")).unwrap())
                .unwrap();
        assert_eq!(
            config.pointer("/clusters/0/cluster/server"),
            Some(&json!("https://198.18.0.2:6443"))
        );
        let public =
            std::fs::read_to_string(folder.path().join("pki/service-accounts.pub")).unwrap();
        assert!(public.starts_with("-----BEGIN PUBLIC KEY-----"), "{public}");
        for client in ["admin", "controller-manager", "scheduler", "kubelet"] {
            assert!(folder.path().join(format!("{client}.kubeconfig")).exists());
        }
    }
}
