//! The counters and what counts in them.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::labels::{Origin, Reason, SkillRequest, Stage, Task, VmFailure};

/// The upper bounds of a histogram's buckets, in seconds. One more bucket has what is above.
pub const BOUNDS: [f64; 13] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// Something that a shim counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// A pod's VM has started for it, from the request until containerd was answered.
    PodStarted(Origin, Duration),
    /// A container was created in a pod that runs, from the request until containerd was answered.
    ContainerStarted(Duration),
    /// A stage of either is over.
    Stage(Stage, Duration),
    /// Something did not start.
    StartFailed(Task, Reason),
    /// A VM has ended that nobody had stopped.
    VmFailed(VmFailure),
    /// A container has asked for a skill.
    Skill(SkillRequest),
    /// A skill was fetched, with its size in bytes.
    SkillFetched(u64),
}

/// The counters of a node.
///
/// The keys are texts, so that programs of two versions can count in one file: each keeps what it
/// does not know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    counts: BTreeMap<String, u64>,
    times: BTreeMap<String, Histogram>,
}

/// How long something took, each time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// How often it took at most each of the [`BOUNDS`] and more than the one before, then how
    /// often it took longer.
    buckets: Vec<u64>,
    /// The sum in seconds.
    pub sum: f64,
}

impl Histogram {
    fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        // One with other bounds is from another version.
        if self.buckets.len() != BOUNDS.len() + 1 {
            *self = Self {
                buckets: vec![0; BOUNDS.len() + 1],
                sum: 0.0,
            };
        }
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.buckets[bucket] += 1;
        self.sum += seconds;
    }

    /// Returns how often it took at most each of the [`BOUNDS`].
    pub fn cumulative(&self) -> Vec<u64> {
        let buckets = (0..BOUNDS.len()).map(|at| self.buckets.get(at).unwrap_or(&0));
        let counts = buckets.scan(0, |before, count| {
            *before += count;
            Some(*before)
        });
        counts.collect()
    }

    /// Returns how often it was counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl Counters {
    /// Counts an event.
    pub fn count(&mut self, event: Event) {
        match event {
            Event::PodStarted(origin, took) => self.observe(pod_start(origin), took),
            Event::ContainerStarted(took) => self.observe(CONTAINER_START.to_owned(), took),
            Event::Stage(stage, took) => self.observe(of_stage(stage), took),
            Event::StartFailed(task, reason) => self.add(start_failure(task, reason), 1),
            Event::VmFailed(failure) => self.add(vm_failure(failure), 1),
            Event::Skill(request) => self.add(skill_request(request), 1),
            Event::SkillFetched(bytes) => self.add(SKILL_BYTES.to_owned(), bytes),
        }
    }

    fn observe(&mut self, key: String, took: Duration) {
        self.times.entry(key).or_default().observe(took);
    }

    fn add(&mut self, key: String, more: u64) {
        let count = self.counts.entry(key).or_default();
        *count = count.saturating_add(more);
    }

    /// Returns how long the starts of pods took whose VMs came from `origin`.
    pub fn pod_starts(&self, origin: Origin) -> Histogram {
        self.time(&pod_start(origin))
    }

    /// Returns how long the starts of containers in running pods took.
    pub fn container_starts(&self) -> Histogram {
        self.time(CONTAINER_START)
    }

    /// Returns how long a stage of the starts took.
    pub fn stage(&self, stage: Stage) -> Histogram {
        self.time(&of_stage(stage))
    }

    /// Returns how many starts have failed for a reason.
    pub fn start_failures(&self, task: Task, reason: Reason) -> u64 {
        self.get(&start_failure(task, reason))
    }

    /// Returns how many VMs have ended in a way that nobody wanted.
    pub fn vm_failures(&self, failure: VmFailure) -> u64 {
        self.get(&vm_failure(failure))
    }

    /// Returns how many requests for skills had this result.
    pub fn skill_requests(&self, request: SkillRequest) -> u64 {
        self.get(&skill_request(request))
    }

    /// Returns how many bytes of skills were fetched.
    pub fn skill_fetched_bytes(&self) -> u64 {
        self.get(SKILL_BYTES)
    }

    fn time(&self, key: &str) -> Histogram {
        self.times.get(key).cloned().unwrap_or_default()
    }

    fn get(&self, key: &str) -> u64 {
        self.counts.get(key).copied().unwrap_or_default()
    }
}

const CONTAINER_START: &str = "container_start";
const SKILL_BYTES: &str = "skill_fetched_bytes";

fn pod_start(origin: Origin) -> String {
    format!("pod_start/{}", origin.name())
}

fn of_stage(stage: Stage) -> String {
    format!("stage/{}", stage.name())
}

fn start_failure(task: Task, reason: Reason) -> String {
    format!("start_failure/{}/{}", task.name(), reason.name())
}

fn vm_failure(failure: VmFailure) -> String {
    format!("vm_failure/{}", failure.name())
}

fn skill_request(request: SkillRequest) -> String {
    format!("skill/{}", request.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_counted_in_each_bucket_from_its_own_on() {
        let mut counters = Counters::default();
        for ms in [5, 6, 700, 90_000] {
            counters.count(Event::ContainerStarted(Duration::from_millis(ms)));
        }
        let starts = counters.container_starts();
        assert_eq!(starts.cumulative(), [1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3]);
        assert_eq!(starts.count(), 4);
        assert!((starts.sum - 90.711).abs() < 1e-9, "{}", starts.sum);
    }

    #[test]
    fn histogram_that_nothing_was_counted_in_has_all_buckets() {
        let starts = Counters::default().pod_starts(Origin::Pool);
        assert_eq!(starts.cumulative(), [0; BOUNDS.len()]);
        assert_eq!(starts.count(), 0);
    }

    #[test]
    fn events_are_counted_each_by_its_labels() {
        let mut counters = Counters::default();
        counters.count(Event::StartFailed(Task::Pod, Reason::Vm));
        counters.count(Event::StartFailed(Task::Pod, Reason::Vm));
        counters.count(Event::VmFailed(VmFailure::Process));
        counters.count(Event::Skill(SkillRequest::Hit));
        counters.count(Event::SkillFetched(7));
        counters.count(Event::Stage(Stage::Guest, Duration::from_secs(1)));
        assert_eq!(counters.start_failures(Task::Pod, Reason::Vm), 2);
        assert_eq!(counters.start_failures(Task::Container, Reason::Vm), 0);
        assert_eq!(counters.vm_failures(VmFailure::Process), 1);
        assert_eq!(counters.skill_requests(SkillRequest::Hit), 1);
        assert_eq!(counters.skill_fetched_bytes(), 7);
        assert_eq!(counters.stage(Stage::Guest).count(), 1);
    }

    #[test]
    fn count_of_another_version_stays() {
        let text = r#"{"counts":{"new/thing":3},"times":{"old":{"buckets":[1],"sum":1.0}},"x":1}"#;
        let mut counters: Counters = serde_json::from_str(text).unwrap();
        counters.count(Event::Skill(SkillRequest::Failed));
        assert_eq!(counters.get("new/thing"), 3);
        assert_eq!(counters.time("old").count(), 1);
    }
}
