//! The embedded cluster itself: several side by side, and nothing left of one that ended, in order or not.

#![expect(
    clippy::unwrap_used,
    reason = "in a test a panic is the report; clippy exempts only functions marked as tests, not what they call"
)]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sidewinder_e2e::cluster::{self, Cluster};
use sidewinder_e2e::{cache, command, images};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: sleeper}\nspec:\n  containers:\n  - {name: main, image: 'localhost/pause:1', imagePullPolicy: Never}\n";

fn run_pod(cluster: &Cluster) {
    let manifest = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(manifest.path(), POD).unwrap();
    cluster
        .kubectl(["apply", "--filename", manifest.path().to_str().unwrap()])
        .unwrap();
    cluster
        .kubectl([
            "wait",
            "--for=condition=Ready",
            "pod/sleeper",
            "--timeout=30s",
        ])
        .unwrap();
}

/// What of a cluster is on the machine, by the id that all its traces carry.
fn traces(id: &str) -> Vec<String> {
    let mut found = Vec::new();
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        found.push(hierarchy.path().join(format!("sidewinder-{id}")));
    }
    found.push(Path::new("/sys/fs/cgroup").join(format!("sidewinder-{id}")));
    found.push(Path::new("/sys/class/net").join(format!("sw-{id}")));
    found.retain(|path| path.exists());
    let mut found: Vec<String> = found
        .into_iter()
        .map(|path| path.display().to_string())
        .collect();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        // Every process of a cluster, its pods' included, is in the groups of its id or is a process that names its folder or its fixed paths.
        let groups = std::fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        if groups.contains(&format!("sidewinder-{id}")) {
            found.push(process.path().display().to_string());
        }
    }
    found
}

/// The processes in the namespace of the cluster's mounts.
fn processes_in(namespace: &Path) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|process| {
            std::fs::read_link(process.path().join("ns/mnt")).is_ok_and(|found| found == namespace)
        })
        .count()
}

fn id_of(cluster: &Cluster) -> String {
    let kubelet = std::fs::read_to_string(cluster.dir().join("kubelet.yaml")).unwrap();
    let kubelet: serde_json::Value = serde_json::from_str(&kubelet).unwrap();
    kubelet
        .get("cgroupRoot")
        .unwrap()
        .as_str()
        .unwrap()
        .trim_start_matches("/sidewinder-")
        .to_owned()
}

/// The mount namespace of the cluster's first process.
fn mounts_of(cluster: &Cluster) -> std::path::PathBuf {
    let dir = cluster.dir().to_str().unwrap();
    let first = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .find(|process| {
            let arguments =
                std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&str> = arguments.split('\0').collect();
            words.get(1..3) == Some(&["cluster", "node"]) && words.contains(&dir)
        });
    std::fs::read_link(first.unwrap().path().join("ns/mnt")).unwrap()
}

/// Ends the cluster of a folder also when the test fails.
struct Ended<'a>(&'a Path);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if let Err(error) = cluster::down(self.0) {
            eprintln!("{error:#}");
        }
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < limit, "waited 30 s until {what}");
        std::thread::yield_now();
    }
}

#[test]
fn two_run_side_by_side_and_one_that_is_up_is_taken_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let _ended = (Ended(&one), Ended(&two));
    let (first, second) = (Cluster::up(&one).unwrap(), Cluster::up(&two).unwrap());
    run_pod(&first);
    run_pod(&second);
    first.kubectl(["create", "namespace", "only-here"]).unwrap();
    let there = second
        .kubectl(["get", "namespaces", "--output=name"])
        .unwrap();
    assert!(!there.contains("only-here"), "{there}");

    let start = Instant::now();
    let again = Cluster::up(&one).unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "it was started again"
    );
    assert!(
        again.kubectl(["get", "namespace", "only-here"]).is_ok(),
        "another cluster took its place"
    );

    let id = id_of(&first);
    let mounts = mounts_of(&first);
    assert!(!traces(&id).is_empty() && processes_in(&mounts) > 6);
    cluster::down(&one).unwrap();
    assert_eq!(traces(&id), Vec::<String>::new());
    assert_eq!(processes_in(&mounts), 0);
    assert!(
        one.join("logs/kube-apiserver.log").exists(),
        "the logs stay"
    );
    assert!(
        !one.join("etcd").exists() && !one.join("kubeconfig").exists(),
        "the data goes"
    );
    assert!(
        second.kubectl(["get", "nodes"]).is_ok(),
        "the other one was touched"
    );
    cluster::down(&two).unwrap();
}

#[test]
fn nothing_runs_on_when_the_supervisor_is_killed_and_the_next_start_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cluster");
    let _ended = Ended(&dir);
    let cluster = Cluster::up(&dir).unwrap();
    run_pod(&cluster);
    let (id, mounts) = (id_of(&cluster), mounts_of(&cluster));
    let supervisor: i32 = std::fs::read_to_string(cluster.dir().join("supervisor.lock"))
        .unwrap()
        .parse()
        .unwrap();
    kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
    wait_until("every process has ended", || processes_in(&mounts) == 0);
    wait_until("every trace is gone", || traces(&id).is_empty());
    assert!(Cluster::running(&dir).is_err());
    let anew = Cluster::up(&dir).unwrap();
    assert!(
        anew.kubectl(["get", "pod", "sleeper"]).is_err(),
        "the old data was taken"
    );
    anew.down().unwrap();
}

#[test]
fn a_linked_cluster_ends_with_its_value_and_its_folder_goes() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cluster");
    let cluster = Cluster::up_linked(&dir).unwrap();
    let (id, mounts) = (id_of(&cluster), mounts_of(&cluster));
    assert!(
        Cluster::up_linked(&dir)
            .unwrap_err()
            .to_string()
            .contains("already runs")
    );
    drop(cluster);
    assert_eq!(traces(&id), Vec::<String>::new());
    assert_eq!(processes_in(&mounts), 0);
    assert!(!dir.exists());
    assert!(!cache::root().unwrap().join("clusters").join(&id).exists());
}

#[test]
fn the_machines_kernel_settings_stay() {
    let read = || {
        [
            "vm/overcommit_memory",
            "kernel/panic",
            "kernel/panic_on_oops",
        ]
        .map(|name| std::fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap())
    };
    let before = read();
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::up_linked(&folder.path().join("cluster")).unwrap();
    run_pod(&cluster);
    assert_eq!(read(), before);
}

#[test]
fn what_is_no_image_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::up_linked(&folder.path().join("cluster")).unwrap();
    let file = folder.path().join("not-an-image.tar");
    std::fs::write(&file, "text").unwrap();
    for wrong in [file.as_path(), folder.path(), Path::new("/no/such/file")] {
        let error = format!("{:#}", cluster.load(wrong).unwrap_err());
        assert!(error.contains(wrong.to_str().unwrap()), "{error}");
    }
    let version = command::text(
        Command::new("kubectl")
            .arg("version")
            .env("KUBECONFIG", cluster.kubeconfig()),
        Duration::from_secs(30),
    );
    // Any kubectl of the machine, if there is one.
    if let Ok(version) = version {
        assert!(version.contains("Server Version"), "{version}");
    }
}

#[test]
fn a_pod_runs_the_python_of_the_workloads_image_with_its_packages() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::up_linked(&folder.path().join("cluster")).unwrap();
    let image = images::workloads("3.14").unwrap();
    cluster.load_image(&image).unwrap();
    let code = "import sys, gevent, greenlet, uvloop; print(sys.version_info[:2])";
    let name = image.name();
    let image = format!("--image={name}");
    cluster
        .kubectl([
            "run",
            "python",
            "--restart=Never",
            "--image-pull-policy=Never",
            &image,
            "--",
            "-c",
            code,
        ])
        .unwrap();
    cluster
        .kubectl([
            "wait",
            "--for=jsonpath={.status.phase}=Succeeded",
            "pod/python",
            "--timeout=30s",
        ])
        .unwrap();
    assert_eq!(cluster.kubectl(["logs", "python"]).unwrap(), "(3, 14)");
}
