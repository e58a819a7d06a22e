//! Tests what a pod's record says at each point of its life.

use caisson_node::record::{self, MachineState, PodState, ProcessState, Record};

use super::{spec_in_pod, Bench};

impl Bench {
    /// Returns the record as `caisson list` would read it now.
    fn record(&self) -> Record {
        let folder = self.dir.path().join("state/web");
        record::read(&folder).unwrap().unwrap()
    }

    /// Returns the recorded state of a container.
    fn recorded(&self, id: &str) -> ProcessState {
        self.record().containers[id].state
    }
}

#[tokio::test]
async fn record_of_a_pod_has_its_machine_and_its_size() {
    let bench = Bench::new();
    bench.create("sleep 1000").await;
    let record = bench.record();
    assert_eq!(
        (record.id.as_str(), record.namespace.as_str()),
        ("web", "test")
    );
    assert_eq!(record.state, PodState::Running);
    let machine = record.machine.unwrap();
    assert_eq!(machine.state, MachineState::Running);
    assert_eq!(machine.cpus, 1);
    assert!(machine.devices.contains_key("share-pod"), "{machine:?}");
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn record_of_a_container_follows_its_init() {
    let bench = Bench::new();
    bench.create("exit 3").await;
    assert_eq!(bench.recorded("web"), ProcessState::Created);
    bench.pod.start("web", "").await.unwrap();
    bench.exit_status("").await;
    match bench.recorded("web") {
        ProcessState::Stopped(exit) => assert_eq!(exit.status, 3),
        state => panic!("{state:?}"),
    }
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn record_of_a_container_that_runs_says_so() {
    let bench = Bench::new();
    bench.start("sleep 1000").await;
    assert_eq!(bench.recorded("web"), ProcessState::Running);
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn record_has_an_exec_from_its_beginning_to_its_removal() {
    let bench = Bench::new();
    bench.start("sleep 1000").await;
    let exec = |bench: &Bench| bench.record().containers["web"].execs.get("e1").copied();
    bench.exec("e1", "exit 7").unwrap();
    assert_eq!(exec(&bench), Some(ProcessState::Created));
    bench.pod.start("web", "e1").await.unwrap();
    bench.exit_status("e1").await;
    assert!(matches!(exec(&bench), Some(ProcessState::Stopped(exit)) if exit.status == 7));
    bench.pod.delete("web", "e1").await.unwrap();
    assert_eq!(exec(&bench), None);
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn record_has_the_containers_of_a_pod_until_they_are_removed() {
    let bench = Bench::new();
    bench.start_sandbox().await;
    bench.start_in_pod("app", "exit 0").await;
    bench.exit_status_of("app", "").await;
    assert_eq!(bench.record().count(), (0, 1));
    bench.pod.delete("app", "").await.unwrap();
    let names: Vec<_> = bench.record().containers.into_keys().collect();
    assert_eq!(names, ["web"]);
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn record_has_nothing_of_a_container_that_failed() {
    let bench = Bench::new();
    bench.start_sandbox().await;
    let before = bench.record();
    let mut bad = spec_in_pod("container", "true");
    bad["process"]["args"][0] = serde_json::json!("/bin/nosuch");
    bench.create_of("bad", &bad).await.unwrap_err();
    assert_eq!(bench.record().containers, before.containers);
    bench.pod.shutdown().await;
}

#[tokio::test]
async fn record_of_a_vm_that_was_killed_has_the_reason() {
    let bench = Bench::new();
    bench.start("sleep 1000").await;
    let pid = bench.pod.pid().unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid as i32),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    bench.exit_status("").await;
    let record = bench.record();
    assert_eq!(record.state, PodState::Ended);
    match record.machine.unwrap().state {
        MachineState::Ended(reason) => assert!(reason.contains("died"), "{reason}"),
        state => panic!("{state:?}"),
    }
    bench.pod.shutdown().await;
}
