//! The guest's numbers as the message that containerd expects: `io.containerd.cgroups.v2.Metrics`.

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use caisson_protocol::agent::{IoStat, StatsResponse};
use containerd_shim::protos::{
    cgroups_v2::metrics::{CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat},
    protobuf::{well_known_types::any::Any, well_known_types::timestamp::Timestamp, Message},
};

/// The name under which containerd's Go code has the message registered.
const TYPE_URL: &str = "io.containerd.cgroups.v2.Metrics";
/// The most block devices that are believed.
const MAX_DEVICES: usize = 256;

/// The metrics, packed.
pub fn pack(stats: &StatsResponse) -> Result<Any, containerd_shim::protos::protobuf::Error> {
    Ok(Any {
        type_url: TYPE_URL.to_owned(),
        value: metrics(stats).write_to_bytes()?,
        ..Default::default()
    })
}

/// Adds what a container uses to a sum. Limits are not added: who has several containers is limited elsewhere.
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

/// A time of the host in protobuf's form.
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
            // 0 is "no limit" in containerd's own reading of "max".
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
