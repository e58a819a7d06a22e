//! Tests a pod of the shim over the fake VMM, which runs the real agent on this host without a VM
//! or containerd. Needs root.
//!
//! `tests/vm` tests the behaviour of containers with real VMs. This file tests the pod's own logic,
//! in milliseconds for each test.

#![allow(clippy::unwrap_used)] // also in what the tests share

#[path = "pod/counters.rs"]
mod counters;
#[path = "pod/record.rs"]
mod record;

use std::{os::unix::fs::symlink, path::PathBuf, sync::Arc, time::Duration};

use caisson_oci::NodeConfig;
use caisson_shim::{
    events::Events,
    pod::{CreateRequest, Pod},
    process::State,
    streams::Stdio,
};
use caisson_tests::paths;
use caisson_vmm::fake::FakeVmm;
use serde_json::{json, Value};

/// A pod and the folder that holds all its files.
struct Bench {
    dir: tempfile::TempDir,
    pod: Arc<Pod>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = "[hypervisor]\naccelerator = 'tcg'";
        let mut config = NodeConfig::parse(&[("test".to_owned(), text.to_owned())]).unwrap();
        config.state_dir = dir.path().join("state");
        config.store_dir = dir.path().join("store");
        let vmm = Arc::new(FakeVmm::new(paths::agent()));
        // Nothing listens at this address, so events are queued.
        let events = Events::new(
            dir.path().join("none").display().to_string(),
            "test".to_owned(),
        );
        let pod = Pod::new("web".to_owned(), "test".to_owned(), config, vmm, events);
        Self { dir, pod }
    }

    /// Creates a bundle in which busybox is the root's shell.
    fn bundle(&self, id: &str, spec: &Value) -> PathBuf {
        let bundle = self.dir.path().join("bundles").join(id);
        if !bundle.exists() {
            let bin = bundle.join("rootfs/bin");
            std::fs::create_dir_all(&bin).unwrap();
            for dir in ["proc", "dev", "tmp"] {
                std::fs::create_dir(bundle.join("rootfs").join(dir)).unwrap();
            }
            std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
            for applet in ["sh", "sleep", "cat"] {
                symlink("busybox", bin.join(applet)).unwrap();
            }
        }
        std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        bundle
    }

    async fn create_of(&self, id: &str, spec: &Value) -> caisson_shim::Result<u32> {
        let request = CreateRequest {
            id: id.to_owned(),
            bundle: self.bundle(id, spec),
            rootfs: Vec::new(),
            stdio: Stdio::default(),
        };
        self.pod.create(request).await
    }

    async fn create(&self, script: &str) {
        self.create_of("web", &spec(script)).await.unwrap();
    }

    /// Starts the sandbox of a pod.
    async fn start_sandbox(&self) {
        let sandbox = spec_in_pod("sandbox", "/pause");
        self.create_of("web", &sandbox).await.unwrap();
        self.pod.start("web", "").await.unwrap();
    }

    /// Starts a container of that pod.
    async fn start_in_pod(&self, id: &str, script: &str) {
        let spec = spec_in_pod("container", script);
        self.create_of(id, &spec).await.unwrap();
        self.pod.start(id, "").await.unwrap();
    }

    async fn start(&self, script: &str) {
        self.create(script).await;
        self.pod.start("web", "").await.unwrap();
    }

    async fn exit_status(&self, exec: &str) -> u32 {
        self.exit_status_of("web", exec).await
    }

    async fn exit_status_of(&self, id: &str, exec: &str) -> u32 {
        let (process, ..) = self.pod.process(id, exec).unwrap();
        let exited = tokio::time::timeout(Duration::from_secs(20), process.exited());
        exited.await.unwrap().status
    }

    fn exec(&self, exec: &str, script: &str) -> caisson_shim::Result<()> {
        let process = json!({
            "cwd": "/",
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0},
        });
        let process = process.to_string().into_bytes();
        self.pod.exec("web", exec, process, Stdio::default())
    }

    fn state_is_empty(&self) -> bool {
        let state = self.dir.path().join("state");
        let pods = caisson_node::state::list(&state).unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        pods.is_empty() && !mounts.contains(&state.display().to_string())
    }
}

/// Returns the spec of a container whose init runs `script`.
fn spec(script: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "cwd": "/",
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0},
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {"namespaces": [
            {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"},
        ]},
    })
}

/// Returns the same spec for a task of the pod "web".
fn spec_in_pod(container_type: &str, script: &str) -> Value {
    let mut spec = spec(script);
    spec["annotations"] = json!({
        "io.kubernetes.cri.container-type": container_type,
        "io.kubernetes.cri.sandbox-id": "web",
    });
    spec
}

fn says(result: caisson_shim::Result<impl Sized>, text: &str) {
    let error = result.err().unwrap().chain();
    assert!(error.contains(text), "{error}");
}

#[tokio::test]
async fn container_that_ends_has_its_exit_status() {
    let bench = Bench::new();
    bench.start("exit 42").await;
    assert_eq!(bench.exit_status("").await, 42);
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn container_that_is_killed_has_128_and_the_signal() {
    let bench = Bench::new();
    bench.start("sleep 1000").await;
    bench.pod.kill("web", "", 9, true).await.unwrap();
    assert_eq!(bench.exit_status("").await, 137);
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn pod_that_was_shut_down_leaves_nothing() {
    let bench = Bench::new();
    bench.start("sleep 1000").await;
    bench.pod.shutdown().await;
    assert!(bench.state_is_empty());
}

#[tokio::test]
async fn create_that_fails_leaves_nothing() {
    let bench = Bench::new();
    let mut spec = spec("true");
    spec["process"]["args"][0] = json!("/bin/nosuch");
    says(bench.create_of("web", &spec).await, "/bin/nosuch");
    assert!(bench.state_is_empty());
}

#[tokio::test]
async fn container_is_started_once() {
    let bench = Bench::new();
    bench.start("sleep 1000").await;
    says(
        bench.pod.start("web", "").await,
        "cannot start \"web\": it is running",
    );
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn container_that_runs_is_not_deleted() {
    let bench = Bench::new();
    bench.start("sleep 1000").await;
    says(bench.pod.delete("web", "").await, "it is running");
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn container_that_was_never_started_can_be_deleted() {
    let bench = Bench::new();
    bench.create("sleep 1000").await;
    let (exit, _) = bench.pod.delete("web", "").await.unwrap();
    assert_eq!(exit.status, 137);
    assert!(bench.pod.is_empty());
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn process_that_has_ended_is_not_found_by_kill() {
    let bench = Bench::new();
    bench.start("exit 0").await;
    bench.exit_status("").await;
    says(bench.pod.kill("web", "", 15, false).await, "not found");
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn exec_has_an_end_of_its_own() {
    let bench = Bench::new();
    bench.start("sleep 1000").await;
    bench.exec("e1", "exit 7").unwrap();
    bench.pod.start("web", "e1").await.unwrap();
    assert_eq!(bench.exit_status("e1").await, 7);
    let (init, ..) = bench.pod.process("web", "").unwrap();
    assert_eq!(init.state(), State::Running);
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn exec_of_a_name_in_use_is_refused() {
    let bench = Bench::new();
    bench.start("sleep 1000").await;
    bench.exec("e1", "true").unwrap();
    says(bench.exec("e1", "true"), "already exists");
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn exec_of_a_name_that_is_a_path_is_refused() {
    let bench = Bench::new();
    bench.start("sleep 1000").await;
    says(bench.exec("../e1", "true"), "id \"../e1\"");
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn container_that_is_not_there_is_not_found() {
    let bench = Bench::new();
    says(
        bench.pod.start("nobody", "").await,
        "container \"nobody\": not found",
    );
    says(bench.pod.pids("nobody").await, "not found");
}

#[tokio::test]
async fn sandbox_runs_without_a_process_until_it_is_killed() {
    let bench = Bench::new();
    bench.start_sandbox().await;
    let (sandbox, _, pid) = bench.pod.process("web", "").unwrap();
    assert_eq!(sandbox.state(), State::Running);
    assert_eq!(bench.pod.pids("web").await.unwrap(), [pid]);
    bench.pod.kill("web", "", 9, false).await.unwrap();
    assert_eq!(bench.exit_status("").await, 137);
    bench.pod.delete("web", "").await.unwrap();
    assert!(bench.state_is_empty());
}

#[tokio::test]
async fn sandbox_outlives_its_containers() {
    let bench = Bench::new();
    bench.start_sandbox().await;
    for id in ["first", "second"] {
        bench.start_in_pod(id, "exit 3").await;
        assert_eq!(bench.exit_status_of(id, "").await, 3);
        bench.pod.delete(id, "").await.unwrap();
    }
    let (sandbox, ..) = bench.pod.process("web", "").unwrap();
    assert_eq!(sandbox.state(), State::Running);
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn containers_of_a_pod_end_with_its_sandbox() {
    let bench = Bench::new();
    bench.start_sandbox().await;
    bench.start_in_pod("app", "sleep 1000").await;
    bench.pod.kill("web", "", 15, false).await.unwrap();
    assert_eq!(bench.exit_status_of("app", "").await, 137);
    bench.pod.delete("app", "").await.unwrap();
    bench.pod.delete("web", "").await.unwrap();
    assert!(bench.state_is_empty());
}

#[tokio::test]
async fn container_that_fails_leaves_its_pod_as_it_was() {
    let bench = Bench::new();
    bench.start_sandbox().await;
    let mut bad = spec_in_pod("container", "true");
    bad["process"]["args"][0] = json!("/bin/nosuch");
    says(bench.create_of("bad", &bad).await, "/bin/nosuch");
    bench.start_in_pod("app", "sleep 1000").await;
    bench.pod.shutdown().await;
    assert!(bench.state_is_empty());
}

#[tokio::test]
async fn sandbox_takes_no_exec() {
    let bench = Bench::new();
    bench.start_sandbox().await;
    says(bench.exec("e1", "true"), "runs no process");
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn container_without_its_sandbox_is_refused() {
    let bench = Bench::new();
    let container = spec_in_pod("container", "true");
    says(bench.create_of("app", &container).await, "not found");
}
