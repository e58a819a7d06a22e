//! Collects the resource usage that the guest reports: asks without waiting long, limits the values
//! to what can be believed, and packs them in the message that containerd expects,
//! `io.containerd.cgroups.v2.Metrics`.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use caisson_protocol::agent::{IoStat, StatsResponse};
use containerd_shim::protos::{
    cgroups_v2::metrics::{CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat},
    protobuf::{well_known_types::any::Any, well_known_types::timestamp::Timestamp, Message},
};
use tokio::{
    sync::watch,
    time::{timeout_at, Instant},
};

use crate::{
    agent::AgentError,
    error::{Error, Result},
    limits::{STATS, STATS_WAIT},
};

/// The name that containerd's Go code registers for the message.
const TYPE_URL: &str = "io.containerd.cgroups.v2.Metrics";
/// The most block devices that are accepted. A VM has 32 places to plug one in.
const MAX_DEVICES: usize = 64;
/// The largest value that is accepted: a PiB, or 35 years in microseconds. Consumers can still
/// multiply it by a thousand without overflow.
const MAX_NUMBER: u64 = 1 << 50;
/// The longest name of a counter that is accepted: twice as long as the longest of the kernel.
const MAX_NAME: usize = 64;
/// The most counters that are accepted. The kernel has some 70 in one file.
const MAX_COUNTERS: usize = 128;

/// The last stats of one container. At most one request for fresh ones is open at a time, however
/// slow the guest is.
#[derive(Default)]
pub struct Last {
    state: Arc<Mutex<Asked>>,
}

#[derive(Default)]
struct Asked {
    /// The open request, if there is one: when it was made, and a channel that closes with its
    /// answer.
    open: Option<(Instant, watch::Receiver<()>)>,
    value: Option<StatsResponse>,
    /// The error of the last answer, if it failed.
    error: Option<Error>,
}

impl Last {
    /// Whether the guest was asked longer ago than anybody waits and has not answered yet.
    pub fn is_overdue(&self) -> bool {
        let open = &self.lock().open;
        open.as_ref()
            .is_some_and(|(since, _)| since.elapsed() >= STATS_WAIT)
    }

    /// Returns fresh stats if they arrive within `wait` of the start of the open request, otherwise
    /// the last ones. `ask` makes a request if none is open.
    pub async fn get<F>(&self, wait: Duration, ask: impl FnOnce() -> F) -> Result<StatsResponse>
    where
        F: Future<Output = Result<StatsResponse>> + Send + 'static,
    {
        let (since, mut answered) = self.open(ask);
        // An error also means that there is an answer: the sender has been dropped with it.
        let _ = timeout_at(since + wait, answered.changed()).await;
        let mut asked = self.lock();
        match (&asked.value, asked.open.is_some()) {
            (Some(value), _) => Ok(value.clone()),
            (None, true) => Err(silent(format!("no answer within {STATS_WAIT:?}"))),
            (None, false) => {
                let error = asked.error.take();
                Err(error.unwrap_or_else(|| silent("no answer".to_owned())))
            }
        }
    }

    /// Returns the open request, or makes a new one.
    fn open<F>(&self, ask: impl FnOnce() -> F) -> (Instant, watch::Receiver<()>)
    where
        F: Future<Output = Result<StatsResponse>> + Send + 'static,
    {
        let mut asked = self.lock();
        if let Some((since, answered)) = &asked.open {
            return (*since, answered.clone());
        }
        let (done, answered) = watch::channel(());
        let open = (Instant::now(), answered);
        asked.open = Some(open.clone());
        let (state, asking) = (self.state.clone(), ask());
        tokio::spawn(async move {
            let answer = asking.await;
            let mut asked = lock(&state);
            asked.open = None;
            match answer {
                Ok(stats) => (asked.value, asked.error) = (Some(believed(stats)), None),
                // The agent refused, so the container's last stats no longer hold.
                Err(error @ Error::Agent(AgentError::Refused { .. })) => {
                    (asked.value, asked.error) = (None, Some(error));
                }
                Err(error) => asked.error = Some(error),
            }
            drop(done);
        });
        open
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        lock(&self.state)
    }
}

fn silent(message: String) -> Error {
    let operation = STATS.name;
    AgentError::Silent { operation, message }.into()
}

fn lock(state: &Mutex<Asked>) -> MutexGuard<'_, Asked> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Limits a guest's stats to what can be believed.
fn believed(mut stats: StatsResponse) -> StatsResponse {
    for counters in [
        &mut stats.cpu_stat,
        &mut stats.memory_stat,
        &mut stats.memory_events,
    ] {
        *counters = believed_counters(std::mem::take(counters));
    }
    stats.io_stat.truncate(MAX_DEVICES);
    stats.io_stat.shrink_to_fit();
    for device in &mut stats.io_stat {
        device.counters = believed_counters(std::mem::take(&mut device.counters));
    }
    for number in [
        &mut stats.memory_current,
        &mut stats.swap_current,
        &mut stats.pids_current,
    ] {
        *number = (*number).min(MAX_NUMBER);
    }
    for limit in [
        &mut stats.memory_max,
        &mut stats.swap_max,
        &mut stats.pids_max,
    ] {
        if *limit != u64::MAX {
            *limit = (*limit).min(MAX_NUMBER);
        }
    }
    // Drop fields that this version does not know.
    stats.special_fields = Default::default();
    stats
}

fn believed_counters(counters: HashMap<String, u64>) -> HashMap<String, u64> {
    let named = counters
        .into_iter()
        .filter(|(name, _)| name.len() <= MAX_NAME);
    let counters = named.take(MAX_COUNTERS);
    counters
        .map(|(name, value)| (name, value.min(MAX_NUMBER)))
        .collect()
}

/// Packs the metrics for containerd.
pub fn pack(
    stats: &StatsResponse,
) -> std::result::Result<Any, containerd_shim::protos::protobuf::Error> {
    Ok(Any {
        type_url: TYPE_URL.to_owned(),
        value: metrics(stats).write_to_bytes()?,
        ..Default::default()
    })
}

/// Adds a container's usage to a sum. Limits are not added, since the limits of several containers
/// together are set elsewhere.
pub fn add(sum: &mut StatsResponse, container: &StatsResponse) {
    let counters = [
        (&mut sum.cpu_stat, &container.cpu_stat),
        (&mut sum.memory_stat, &container.memory_stat),
        (&mut sum.memory_events, &container.memory_events),
    ];
    for (sum, more) in counters {
        add_counters(sum, more);
    }
    let numbers = [
        (&mut sum.memory_current, container.memory_current),
        (&mut sum.swap_current, container.swap_current),
        (&mut sum.pids_current, container.pids_current),
    ];
    for (sum, more) in numbers {
        *sum = sum.saturating_add(more);
    }
    for more in container.io_stat.iter().take(MAX_DEVICES) {
        let same = |device: &&mut IoStat| (device.major, device.minor) == (more.major, more.minor);
        match sum.io_stat.iter_mut().find(same) {
            Some(device) => add_counters(&mut device.counters, &more.counters),
            None => sum.io_stat.push(more.clone()),
        }
    }
}

fn add_counters(sum: &mut HashMap<String, u64>, more: &HashMap<String, u64>) {
    for (key, value) in more {
        let sum = sum.entry(key.clone()).or_default();
        *sum = sum.saturating_add(*value);
    }
}

/// Converts a time of the host to protobuf's form.
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: since.as_secs() as i64,
        nanos: since.subsec_nanos() as i32,
        ..Default::default()
    }
}

fn metrics(stats: &StatsResponse) -> Metrics {
    Metrics {
        pids: Some(PidsStat {
            current: stats.pids_current,
            // containerd itself reports "max" as 0, which means "no limit".
            limit: if stats.pids_max == u64::MAX {
                0
            } else {
                stats.pids_max
            },
            ..Default::default()
        })
        .into(),
        cpu: Some(cpu(&stats.cpu_stat)).into(),
        memory: Some(memory(stats)).into(),
        memory_events: Some(memory_events(&stats.memory_events)).into(),
        io: Some(IOStat {
            usage: stats
                .io_stat
                .iter()
                .take(MAX_DEVICES)
                .map(|device| {
                    let of = |key| value(&device.counters, key);
                    IOEntry {
                        major: device.major,
                        minor: device.minor,
                        rbytes: of("rbytes"),
                        wbytes: of("wbytes"),
                        rios: of("rios"),
                        wios: of("wios"),
                        ..Default::default()
                    }
                })
                .collect(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn cpu(stat: &HashMap<String, u64>) -> CPUStat {
    let of = |key| value(stat, key);
    CPUStat {
        usage_usec: of("usage_usec"),
        user_usec: of("user_usec"),
        system_usec: of("system_usec"),
        nr_periods: of("nr_periods"),
        nr_throttled: of("nr_throttled"),
        throttled_usec: of("throttled_usec"),
        ..Default::default()
    }
}

fn memory(stats: &StatsResponse) -> MemoryStat {
    let of = |key| value(&stats.memory_stat, key);
    MemoryStat {
        anon: of("anon"),
        file: of("file"),
        kernel_stack: of("kernel_stack"),
        slab: of("slab"),
        sock: of("sock"),
        shmem: of("shmem"),
        file_mapped: of("file_mapped"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        anon_thp: of("anon_thp"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        slab_reclaimable: of("slab_reclaimable"),
        slab_unreclaimable: of("slab_unreclaimable"),
        pgfault: of("pgfault"),
        pgmajfault: of("pgmajfault"),
        pgrefill: of("pgrefill"),
        pgscan: of("pgscan"),
        pgsteal: of("pgsteal"),
        pgactivate: of("pgactivate"),
        pgdeactivate: of("pgdeactivate"),
        pglazyfree: of("pglazyfree"),
        pglazyfreed: of("pglazyfreed"),
        thp_fault_alloc: of("thp_fault_alloc"),
        thp_collapse_alloc: of("thp_collapse_alloc"),
        usage: stats.memory_current,
        usage_limit: stats.memory_max,
        swap_usage: stats.swap_current,
        swap_limit: stats.swap_max,
        ..Default::default()
    }
}

fn memory_events(events: &HashMap<String, u64>) -> MemoryEvents {
    let of = |key| value(events, key);
    MemoryEvents {
        low: of("low"),
        high: of("high"),
        max: of("max"),
        oom: of("oom"),
        oom_kill: of("oom_kill"),
        ..Default::default()
    }
}

fn value(counters: &HashMap<String, u64>, key: &str) -> u64 {
    counters.get(key).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_has_what_both_containers_use() {
        let of = |rbytes, minor| StatsResponse {
            cpu_stat: HashMap::from([("usage_usec".to_owned(), 7)]),
            memory_current: u64::MAX,
            io_stat: vec![IoStat {
                minor,
                counters: HashMap::from([("rbytes".to_owned(), rbytes)]),
                ..Default::default()
            }],
            ..Default::default()
        };
        let mut sum = StatsResponse::default();
        for container in [of(1, 0), of(2, 0), of(4, 1)] {
            add(&mut sum, &container);
        }
        assert_eq!(sum.cpu_stat["usage_usec"], 21);
        assert_eq!(sum.memory_current, u64::MAX);
        let rbytes: Vec<_> = sum.io_stat.iter().map(|d| d.counters["rbytes"]).collect();
        assert_eq!(rbytes, [3, 4]);
    }

    fn using(memory: u64) -> StatsResponse {
        StatsResponse {
            memory_current: memory,
            ..Default::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn guest_that_does_not_answer_gives_the_last_numbers_within_a_second() {
        let last = Last::default();
        let first = last
            .get(STATS_WAIT, || async { Ok(using(7)) })
            .await
            .unwrap();
        assert_eq!(first.memory_current, 7);
        let started = Instant::now();
        let asked = std::cell::Cell::new(0);
        for _ in 0..100 {
            let stats = last.get(STATS_WAIT, || {
                asked.set(asked.get() + 1);
                std::future::pending()
            });
            assert_eq!(stats.await.unwrap().memory_current, 7);
        }
        // All requests together: a later one does not wait again.
        assert!(started.elapsed() < Duration::from_secs(1));
        assert_eq!(asked.get(), 1, "requests are open at once");
    }

    #[tokio::test(start_paused = true)]
    async fn guest_that_never_answered_is_an_error_within_a_second() {
        let last = Last::default();
        let started = Instant::now();
        let stats = last.get(STATS_WAIT, std::future::pending).await;
        assert!(matches!(
            stats,
            Err(Error::Agent(AgentError::Silent { .. }))
        ));
        assert!(started.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn numbers_of_a_guest_that_lies_are_bounded() {
        let counters: HashMap<String, u64> =
            (0..50_000).map(|n| (format!("c{n}"), u64::MAX)).collect();
        let long = HashMap::from([("x".repeat(1 << 20), 1)]);
        let device = IoStat {
            counters: counters.clone(),
            ..Default::default()
        };
        let stats = believed(StatsResponse {
            cpu_stat: counters,
            memory_stat: long,
            memory_current: u64::MAX,
            memory_max: u64::MAX,
            swap_max: u64::MAX - 1,
            io_stat: vec![device; 100],
            ..Default::default()
        });
        assert_eq!(stats.cpu_stat.len(), MAX_COUNTERS);
        assert!(stats.cpu_stat.values().all(|value| *value == MAX_NUMBER));
        assert!(stats.memory_stat.is_empty());
        assert_eq!(stats.io_stat.len(), MAX_DEVICES);
        assert!(stats.io_stat[0].counters.len() <= MAX_COUNTERS);
        assert_eq!(stats.memory_current, MAX_NUMBER);
        assert_eq!((stats.memory_max, stats.swap_max), (u64::MAX, MAX_NUMBER));
    }

    #[test]
    fn metrics_carry_the_guests_numbers() {
        let stats = StatsResponse {
            cpu_stat: HashMap::from([("usage_usec".to_owned(), 7)]),
            memory_current: 9,
            pids_max: u64::MAX,
            ..Default::default()
        };
        let packed = pack(&stats).unwrap();
        let metrics = Metrics::parse_from_bytes(&packed.value).unwrap();
        assert_eq!(packed.type_url, TYPE_URL);
        assert_eq!(metrics.cpu.usage_usec, 7);
        assert_eq!(metrics.memory.usage, 9);
        assert_eq!(metrics.pids.limit, 0);
    }
}
