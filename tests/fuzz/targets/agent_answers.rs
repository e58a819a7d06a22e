//! Fuzzes the answers of a guest's agent to the shim, from the frames of ttrpc up to what the shim
//! makes of the messages.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use caisson_fuzz::{memory, told};
use caisson_oci::{config::Vm, exec::Grants};
use caisson_protocol::agent::{
    Event, IoStat, ListProcessesResponse, ProcessResponse, StatsResponse, WaitResponse,
};
use caisson_shim::{
    agent::{Agent, ProcessId},
    limits::Patience,
    stats,
};
use caisson_vmm::Accelerator;
use libfuzzer_sys::fuzz_target;
use protobuf::{Message, UnknownValue};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// The memory that answers may take, plus 40 MB that protobuf reserves for a list that claims to be
/// long, and never touches.
const LIMIT: usize = (24 << 20) + 40_000_000;
/// The maximum length in bytes of a guest's text that a user is shown.
const MAX_TOLD: usize = 4096;

#[derive(Arbitrary, Debug)]
struct Talk<'a> {
    call: Call,
    frames: Vec<Frame<'a>>,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Call {
    Configure,
    Pids,
    Stats,
    Wait,
    Event,
    Exec,
    Kill,
}

#[derive(Arbitrary, Debug)]
struct Frame<'a> {
    /// The call's id. `None` is the right one.
    stream: Option<u32>,
    /// The type. `None` is a response's.
    kind: Option<u8>,
    flags: u8,
    /// The length. `None` is the body's.
    length: Option<u32>,
    body: Body<'a>,
}

#[derive(Arbitrary, Debug)]
enum Body<'a> {
    Raw(&'a [u8]),
    /// A response with this message.
    Message(&'a [u8]),
    /// A response whose message is the same bytes, repeated.
    Repeated(u32, &'a [u8]),
    Status(i32, &'a str, u16),
    Stats(Vec<(&'a str, u64)>, [u64; 6], u32),
    Pids(u32, u32),
    Exit(u32),
    Pid(u32),
    Oom(&'a str, u16),
}

impl Body<'_> {
    fn bytes(&self) -> Vec<u8> {
        let message = match self {
            Self::Raw(bytes) => return bytes.to_vec(),
            Self::Status(code, text, times) => {
                return response(
                    status(*code, text.repeat(1 + usize::from(*times % 300))),
                    None,
                )
            }
            Self::Message(bytes) => bytes.to_vec(),
            Self::Repeated(times, bytes) => {
                let times = *times as usize % (1 + (4 << 20) / bytes.len().max(1));
                bytes.repeat(times)
            }
            Self::Stats(counters, numbers, devices) => stats_response(counters, *numbers, *devices),
            Self::Pids(first, count) => written(&ListProcessesResponse {
                pids: (0..*count % 1_000_000)
                    .map(|n| first.wrapping_add(n))
                    .collect(),
                ..Default::default()
            }),
            Self::Exit(exit_status) => written(&WaitResponse {
                exit_status: *exit_status,
                ..Default::default()
            }),
            Self::Pid(pid) => written(&ProcessResponse {
                pid: *pid,
                ..Default::default()
            }),
            Self::Oom(container, times) => {
                let mut event = Event::new();
                event.mut_oom().container_id = container.repeat(usize::from(*times));
                written(&event)
            }
        };
        response(None, Some(message))
    }
}

fn written(message: &impl Message) -> Vec<u8> {
    message.write_to_bytes().expect("a message in bytes")
}

fn status(code: i32, text: String) -> Option<Vec<u8>> {
    // ttrpc's Status, encoded by its field numbers, since this crate does not have ttrpc's
    // messages.
    let mut status = caisson_protocol::agent::Empty::new();
    let fields = status.special_fields.mut_unknown_fields();
    fields.add_varint(1, code as u64);
    fields.add_length_delimited(2, text.into_bytes());
    Some(written(&status))
}

/// Encodes ttrpc's Response.
fn response(status: Option<Vec<u8>>, payload: Option<Vec<u8>>) -> Vec<u8> {
    let mut response = caisson_protocol::agent::Empty::new();
    let fields = response.special_fields.mut_unknown_fields();
    for (number, bytes) in [(1, status), (2, payload)] {
        if let Some(bytes) = bytes {
            fields.add_value(number, UnknownValue::LengthDelimited(bytes));
        }
    }
    written(&response)
}

fn stats_response(counters: &[(&str, u64)], numbers: [u64; 6], devices: u32) -> Vec<u8> {
    let map: std::collections::HashMap<_, _> = counters
        .iter()
        .map(|(key, value)| ((*key).to_owned(), *value))
        .collect();
    let device = |minor: u32| IoStat {
        minor: minor.into(),
        counters: map.clone(),
        ..Default::default()
    };
    let [memory_current, memory_max, swap_current, swap_max, pids_current, pids_max] = numbers;
    written(&StatsResponse {
        cpu_stat: map.clone(),
        memory_stat: map.clone(),
        memory_current,
        memory_max,
        swap_current,
        swap_max,
        pids_current,
        pids_max,
        io_stat: (0..devices % 2000).map(device).collect(),
        ..Default::default()
    })
}

impl Frame<'_> {
    fn bytes(&self) -> Vec<u8> {
        let body = self.body.bytes();
        let mut frame = Vec::with_capacity(10 + body.len());
        frame.extend(self.length.unwrap_or(body.len() as u32).to_be_bytes());
        frame.extend(self.stream.unwrap_or(1).to_be_bytes());
        frame.extend([self.kind.unwrap_or(2), self.flags]);
        frame.extend(body);
        frame
    }
}

fuzz_target!(|talk: Talk| {
    let mut theirs: Vec<u8> = talk.frames.iter().take(32).flat_map(Frame::bytes).collect();
    theirs.truncate(16 << 20);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    memory::bounded(LIMIT, || runtime.block_on(check(talk.call, &theirs)));
});

async fn check(call: Call, theirs: &[u8]) {
    let (ours, far) = UnixStream::pair().expect("a pair of sockets");
    let patience = Patience::new(&Vm::default(), Accelerator::Tcg);
    let agent = Agent::new(ours, patience);
    let (mut from_us, mut to_us) = far.into_split();
    let peer = async {
        // The request has to come first, since an answer before it would belong to no request.
        let _ = from_us.read(&mut [0; 4096]).await;
        let _ = to_us.write_all(theirs).await;
        let _ = to_us.shutdown().await;
        drop((from_us, to_us));
        std::future::pending::<()>().await
    };
    let asked = tokio::time::timeout(Duration::from_secs(20), ask(&agent, call));
    tokio::select! {
        asked = asked => assert!(asked.is_ok(), "no end"),
        () = peer => {}
    }
}

async fn ask(agent: &Agent, call: Call) {
    let init = ProcessId {
        container: "c1".to_owned(),
        exec: String::new(),
    };
    let asked = match call {
        Call::Configure => agent
            .configure("web-0", None)
            .await
            .map(|kernel| assert!(kernel.len() <= 131 && !kernel.contains(char::is_control))),
        Call::Pids => agent
            .pids("c1")
            .await
            .map(|pids| assert!(pids.len() <= 65_536)),
        Call::Stats => agent.stats("c1").await.map(|answer| {
            let packed = stats::pack(&answer).expect("metrics");
            assert!(
                packed.value.len() <= 64 << 10,
                "{} bytes of metrics",
                packed.value.len()
            );
            let mut sum = answer.clone();
            stats::add(&mut sum, &answer);
        }),
        Call::Wait => agent.wait(&init).await.map(|status| assert!(status <= 255)),
        Call::Event => agent.next_event().await.map(drop),
        Call::Exec => {
            let process = br#"{"cwd":"/","args":["true"],"user":{"uid":0,"gid":0}}"#;
            let exec = Grants::default().plan(process).expect("a process");
            agent.exec(&init, &exec, Default::default()).await
        }
        Call::Kill => agent.kill(&init, 9, true).await,
    };
    if let Err(error) = asked {
        let told = told(&error);
        assert!(told.len() <= MAX_TOLD, "{} bytes of an error", told.len());
        assert!(!told.contains(char::is_control), "{told:?}");
    }
}
