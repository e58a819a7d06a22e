//! Fuzzes QEMU's messages on its monitor: a greeting, then for each command the lines up to the
//! next one that has an `id`.
#![no_main]

use std::{path::PathBuf, sync::Arc, sync::Mutex, time::Duration};

use caisson_fuzz::{json, memory};
use caisson_vmm::{
    qemu::{
        qmp::Qmp,
        resize::{add_cpus, resize_memory},
    },
    Accelerator, Credentials, Guest, Placement, Secret, VmSpec,
};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

const LIMIT: usize = 16 << 20;
/// More answers than are ever requested.
const MAX_ANSWERS: usize = 200;

const WORDS: &[&str] = &[
    "QMP",
    "return",
    "error",
    "class",
    "desc",
    "id",
    "event",
    "data",
    "reason",
    "guest-panic",
    "SHUTDOWN",
    "STOP",
    "GUEST_PANICKED",
    "DEVICE_DELETED",
    "device",
    "cpu-1",
    "props",
    "type",
    "qom-path",
    "core-id",
    "fdset-id",
    "status",
    "statuses",
    "VIRTIO_CONFIG_S_DRIVER_OK",
    "timestamp",
    "seconds",
    "qemu64-x86_64-cpu",
    "driver",
    "vcpus-count",
];

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    json::mutate_lines(data, size, max_size, seed, WORDS)
});

fuzz_target!(|lines: &[u8]| memory::bounded(LIMIT, || {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build();
    runtime.expect("a runtime").block_on(talk(lines));
}));

async fn talk(lines: &[u8]) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let peer = tokio::spawn(answer(theirs, lines.to_vec()));
    let events = Arc::new(Mutex::new(0));
    let seen = events.clone();
    let connected = Qmp::connect(ours, move |event| {
        assert!(event.name.len() <= 1 << 20);
        *seen.lock().expect("a count") += 1;
    });
    if let Ok(qmp) = connected.await {
        let spec = spec();
        let deleted = qmp.expect(|event| event.name == "DEVICE_DELETED").await;
        let _ = qmp.execute("query-status", json!({})).await;
        let _ = add_cpus(&qmp, &spec, 3).await;
        let _ = add_cpus(&qmp, &spec, 1).await;
        let _ = resize_memory(&qmp, &spec, spec.max_memory).await;
        let refused = qmp.execute("device_del", json!({"id": "x"})).await;
        if let Err(error) = refused {
            assert!(error.to_string().len() <= 1 << 20);
        }
        if let Ok(deleted) = deleted {
            let _ = tokio::time::timeout(Duration::from_secs(1), deleted).await;
        }
    }
    peer.abort();
}

async fn answer(stream: UnixStream, lines: Vec<u8>) {
    let mut lines = lines.split_inclusive(|&byte| byte == b'\n');
    let mut stream = BufReader::new(stream);
    let Some(greeting) = lines.next() else {
        return;
    };
    if stream.write_all(greeting).await.is_err() {
        return;
    }
    let mut request = String::new();
    for _ in 0..MAX_ANSWERS {
        request.clear();
        if !matches!(stream.read_line(&mut request).await, Ok(1..)) {
            return;
        }
        loop {
            let Some(line) = lines.next() else {
                return;
            };
            if stream.write_all(line).await.is_err() {
                return;
            }
            if line.windows(4).any(|part| part == b"\"id\"") {
                break;
            }
        }
    }
}

fn spec() -> VmSpec {
    VmSpec {
        id: "fuzz".to_owned(),
        dir: PathBuf::new(),
        guest: Guest {
            kernel: PathBuf::new(),
            initramfs: PathBuf::new(),
            modules: None,
            log_level: log::LevelFilter::Info,
            sysctls: Default::default(),
        },
        cpus: 1,
        max_cpus: 4,
        memory: 512 << 20,
        max_memory: 1 << 30,
        accelerator: Accelerator::Tcg,
        credentials: Credentials { uid: 1, gid: 1 },
        placement: Placement::default(),
        template: None,
        secret: Secret::random().expect("randomness"),
    }
}
