//! What the node's shims have counted.

use caisson_node::counters::{Counters, Origin, Reason, SkillRequest, Stage, Task, VmFailure};

use super::family::Family;

/// Returns the metrics of the counters.
pub fn families(counters: &Counters) -> Vec<Family> {
    vec![
        pod_starts(counters),
        Family::histogram(
            "caisson_container_start_duration_seconds",
            "Time to create a container in a pod that runs.",
        )
        .with_times(&[], &counters.container_starts()),
        stages(counters),
        start_failures(counters),
        vm_failures(counters),
        skill_requests(counters),
        Family::counter(
            "caisson_skill_fetched_bytes_total",
            "Bytes of the skills that were fetched for pods.",
        )
        .with(&[], counters.skill_fetched_bytes() as f64),
    ]
}

fn pod_starts(counters: &Counters) -> Family {
    let help = "Time to start a pod's VM with its network, by where the VM came from.";
    let family = Family::histogram("caisson_pod_start_duration_seconds", help);
    Origin::ALL.iter().fold(family, |family, origin| {
        let times = counters.pod_starts(*origin);
        family.with_times(&[("origin", origin.name())], &times)
    })
}

fn stages(counters: &Counters) -> Family {
    let help = "Time of each stage of the starts of pods and containers. Stages overlap.";
    let family = Family::histogram("caisson_start_stage_duration_seconds", help);
    Stage::ALL.iter().fold(family, |family, stage| {
        family.with_times(&[("stage", stage.name())], &counters.stage(*stage))
    })
}

fn start_failures(counters: &Counters) -> Family {
    let help = "Pods and containers that did not start, each try counted.";
    let mut family = Family::counter("caisson_start_failures_total", help);
    for task in Task::ALL {
        for reason in Reason::ALL {
            let labels = [("task", task.name()), ("reason", reason.name())];
            let count = counters.start_failures(*task, *reason);
            family = family.with(&labels, count as f64);
        }
    }
    family
}

fn vm_failures(counters: &Counters) -> Family {
    let help = "VMs that have ended and that nobody had stopped.";
    let family = Family::counter("caisson_vm_failures_total", help);
    VmFailure::ALL.iter().fold(family, |family, failure| {
        let count = counters.vm_failures(*failure);
        family.with(&[("reason", failure.name())], count as f64)
    })
}

fn skill_requests(counters: &Counters) -> Family {
    let help = "Requests of containers for skills: in the node's store, fetched, or failed.";
    let family = Family::counter("caisson_skill_requests_total", help);
    SkillRequest::ALL.iter().fold(family, |family, request| {
        let count = counters.skill_requests(*request);
        family.with(&[("result", request.name())], count as f64)
    })
}
