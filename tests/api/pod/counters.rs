//! Tests what a pod counts in the node's counters.

use caisson_node::counters::{self, Counters, Origin, Reason, Stage, Task, VmFailure};

use super::{spec, spec_in_pod, Bench};

impl Bench {
    /// Returns the node's counters, once everything so far has been counted: a pod's end waits for
    /// that.
    async fn counted(&self) -> Counters {
        self.pod.shutdown().await;
        counters::read(&self.dir.path().join("state")).unwrap()
    }
}

#[tokio::test]
async fn start_of_a_pod_and_of_its_container_are_counted_apart() {
    let bench = Bench::new();
    bench.start_sandbox().await;
    bench.start_in_pod("main", "sleep 1000").await;
    let counted = bench.counted().await;
    assert_eq!(counted.pod_starts(Origin::Boot).count(), 1);
    assert_eq!(counted.container_starts().count(), 1);
    assert_eq!(counted.start_failures(Task::Pod, Reason::Refused), 0);
}

#[tokio::test]
async fn container_that_is_refused_is_counted_with_the_reason() {
    let bench = Bench::new();
    bench.start_sandbox().await;
    let mut refused = spec_in_pod("container", "true");
    refused["annotations"]["caisson.dev/nosuch"] = "x".into();
    bench.create_of("main", &refused).await.unwrap_err();
    let counted = bench.counted().await;
    assert_eq!(counted.start_failures(Task::Container, Reason::Refused), 1);
    assert_eq!(counted.container_starts().count(), 0);
}

#[tokio::test]
async fn container_with_a_vm_to_itself_is_a_pod() {
    let bench = Bench::new();
    bench.create_of("web", &spec("sleep 1000")).await.unwrap();
    let counted = bench.counted().await;
    assert_eq!(counted.pod_starts(Origin::Boot).count(), 1);
    for failure in VmFailure::ALL {
        assert_eq!(counted.vm_failures(*failure), 0, "{failure:?}");
    }
    // Stages are of the log, which a test has none of.
    assert_eq!(counted.stage(Stage::Vmm).count(), 0);
}
