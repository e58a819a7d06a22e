//! Tells lies in the answers of the service, frame by frame.

use std::{
    collections::HashMap,
    io::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use caisson_protocol::{agent, port};
use futures_util::StreamExt;
use protobuf::Message;
use tokio::{
    io::{split, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    sync::Mutex as AsyncMutex,
};
use tokio_vsock::{VsockAddr, VsockStream, VMADDR_CID_HOST};
use ttrpc::{
    proto::{Codec, GenMessage, MESSAGE_TYPE_RESPONSE},
    r#async::transport::Socket,
    Code, MessageHeader, Request, Response, Status,
};

use super::pod::{pod, Lie};

/// How long a late answer is held back: longer than any limit that the shim has for a quick answer.
const LATE: Duration = Duration::from_secs(20);
/// How often a guest connects to the host.
const RECONNECTS: usize = 10_000;
/// How many of these connections are made at once.
const AT_ONCE: usize = 512;
/// How many bytes of a 4 MiB frame the statistics take.
const STATS: usize = 4_000_000;
/// How many frames that nobody asked for come before each answer.
const UNASKED: u32 = 1000;
/// Escape sequences, a line of a log, and characters that end a string.
pub const POISON: &str =
    "\x1b]0;owned\x07\x1b[2J\x1b[31m\r\nlevel=error msg=\"forged\"\0\x08\x7f\u{9b}31m";

type ToHost = Arc<AsyncMutex<WriteHalf<Socket>>>;

/// Stands between a connection of the host and the service until either ends.
pub async fn between(host: Socket, honest: DuplexStream) {
    let (from_host, to_host) = split(host);
    let (from_agent, to_agent) = split(honest);
    let liar = Liar {
        to_host: Arc::new(AsyncMutex::new(to_host)),
        asked: Mutex::default(),
    };
    tokio::select! {
        () = liar.requests(from_host, to_agent) => {}
        () = liar.answers(from_agent) => {}
    }
}

struct Liar {
    to_host: ToHost,
    /// The methods that are not answered yet, in lower case, by stream.
    asked: Mutex<HashMap<u32, String>>,
}

impl Liar {
    /// Passes requests on, except those that only get a lie as their answer.
    async fn requests(&self, mut host: ReadHalf<Socket>, mut agent: WriteHalf<DuplexStream>) {
        while let Ok(message) = GenMessage::read_from(&mut host).await {
            let stream = message.header.stream_id;
            let Ok(request) = <Request as Codec>::decode(&message.payload) else {
                return;
            };
            let method = request.method.to_lowercase();
            learn(&method, &request.payload);
            let lie = pod(|pod| pod.lie_about(&method));
            let answer = match (lie, method.as_str()) {
                (Some(Lie::Kill), "kill" | "shutdown") => Some(Vec::new()),
                (Some(Lie::Exits), "wait") => Some(exit()),
                (Some(Lie::Stats), "stats") => Some(stats()),
                (Some(Lie::Events), "nextevent") => Some(event(stream)),
                _ => None,
            };
            let passed = match answer {
                Some(payload) => self.send(&answer_of(stream, payload)).await,
                None => {
                    self.asked().insert(stream, method);
                    message.write_to(&mut agent).await.is_ok()
                }
            };
            if !passed {
                return;
            }
        }
    }

    async fn answers(&self, mut agent: ReadHalf<DuplexStream>) {
        while let Ok(message) = GenMessage::read_from(&mut agent).await {
            let method = self.asked().remove(&message.header.stream_id);
            let method = method.unwrap_or_default();
            if pod(|pod| pod.silent) {
                continue;
            }
            let lie = pod(|pod| pod.lie_about(&method));
            if !self.tell(lie, &method, message).await {
                return;
            }
            if method == "startcontainer" {
                started(lie);
            }
        }
    }

    /// Sends an answer, or what is sent in its place. Returns false to end the connection.
    async fn tell(&self, lie: Option<Lie>, method: &str, mut message: GenMessage) -> bool {
        let stream = message.header.stream_id;
        match lie {
            Some(Lie::Huge) => return self.endless(message.header).await,
            Some(Lie::Long) => message.header.length += 4096,
            Some(Lie::Short) => message.header.length /= 2,
            Some(Lie::Garbage) => message.payload.fill(0xff),
            Some(Lie::Swap) => message.header.stream_id = stream.wrapping_add(2),
            Some(Lie::Never) => return true,
            Some(Lie::Hangup) => return false,
            Some(Lie::Late) => {
                let host = self.to_host.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(LATE).await;
                    let _ = send(&host, &message).await;
                });
                return true;
            }
            Some(Lie::Unasked) => {
                let payload = vec![0; 4096];
                for other in 0..UNASKED {
                    let other = stream.wrapping_add(2 * other + 1);
                    if !self.send(&answer_of(other, payload.clone())).await {
                        return false;
                    }
                }
            }
            Some(Lie::Text) => message = poisoned(method, stream),
            _ => {}
        }
        self.send(&message).await
    }

    async fn endless(&self, mut header: MessageHeader) -> bool {
        header.length = u32::MAX;
        let mut host = self.to_host.lock().await;
        if header.write_to(&mut *host).await.is_err() {
            return false;
        }
        let zeros = vec![0; 64 << 10];
        while host.write_all(&zeros).await.is_ok() {}
        false
    }

    async fn send(&self, message: &GenMessage) -> bool {
        send(&self.to_host, message).await
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<u32, String>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send(host: &ToHost, message: &GenMessage) -> bool {
    message.write_to(&mut *host.lock().await).await.is_ok()
}

/// Keeps the parts of a request that the lies need.
fn learn(method: &str, payload: &[u8]) {
    match method {
        "configure" => {
            if let Ok(request) = agent::ConfigureRequest::parse_from_bytes(payload) {
                pod(|pod| pod.named(&request.hostname));
            }
        }
        "createcontainer" => {
            if let Ok(request) = agent::CreateContainerRequest::parse_from_bytes(payload) {
                let spec = String::from_utf8_lossy(&request.spec_json);
                let victim = spec.split("CAISSON_VICTIM=").nth(1);
                let victim = victim.and_then(|rest| rest.split('"').next());
                pod(|pod| {
                    pod.containers.push(request.container_id);
                    pod.victim = victim.unwrap_or_default().to_owned();
                });
            }
        }
        _ => {}
    }
}

/// Starts the lies that begin with the first process of the pod.
fn started(lie: Option<Lie>) {
    match lie {
        Some(Lie::Silent) => pod(|pod| pod.silent = true),
        Some(Lie::Reconnect) => drop(tokio::spawn(reconnect())),
        Some(Lie::Console) => drop(std::thread::spawn(|| {
            let lines = [POISON, "\n"].concat().repeat(64);
            if let Ok(mut console) = std::fs::File::create("/dev/console") {
                while console.write_all(lines.as_bytes()).is_ok() {}
            }
        })),
        _ => {}
    }
}

async fn reconnect() {
    let connect = |_| async {
        // Whether the connection is refused is up to the host.
        let _ = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port::READY)).await;
    };
    let all = futures_util::stream::iter(0..RECONNECTS);
    all.for_each_concurrent(AT_ONCE, connect).await;
    log::info!("connected to the host {RECONNECTS} times");
}

fn answer_of(stream_id: u32, payload: Vec<u8>) -> GenMessage {
    let response = Response {
        status: Some(Status::default()).into(),
        payload,
        ..Default::default()
    };
    frame(stream_id, &response)
}

fn frame(stream_id: u32, response: &Response) -> GenMessage {
    let payload = Codec::encode(response).unwrap_or_default();
    GenMessage {
        header: MessageHeader {
            length: payload.len() as u32,
            stream_id,
            type_: MESSAGE_TYPE_RESPONSE,
            flags: 0,
        },
        payload,
    }
}

fn encoded(message: &impl Message) -> Vec<u8> {
    message.write_to_bytes().unwrap_or_default()
}

/// Returns an answer with names, or an error, that no log or terminal should get unchanged.
fn poisoned(method: &str, stream_id: u32) -> GenMessage {
    let text = POISON.repeat(4096);
    if method == "configure" {
        let names = agent::ConfigureResponse {
            agent_version: text.clone(),
            kernel_release: text,
            ..Default::default()
        };
        return answer_of(stream_id, encoded(&names));
    }
    let mut status = Status::new();
    status.set_code(Code::INTERNAL);
    status.set_message(text);
    let response = Response {
        status: Some(status).into(),
        ..Default::default()
    };
    frame(stream_id, &response)
}

fn exit() -> Vec<u8> {
    encoded(&agent::WaitResponse {
        exit_status: u32::MAX,
        ..Default::default()
    })
}

/// Returns as many counters as fit into a frame. Where it is stored, each counter takes several
/// times the space that it has in the frame.
fn stats() -> Vec<u8> {
    let mut entries = Vec::with_capacity(STATS);
    for number in 0u32.. {
        let key = format!("{number:x}");
        let length = key.len() as u8;
        // An entry of `cpu_stat`, which is the first field: the key is its field 1, the number its
        // field 2.
        entries.extend([0x0a, length + 4, 0x0a, length]);
        entries.extend(key.as_bytes());
        entries.extend([0x10, number as u8 & 0x7f]);
        if entries.len() > STATS {
            break;
        }
    }
    entries
}

/// Returns an answer to `NextEvent`. By turns, this is an event of a container of this pod, an
/// event of one of another pod, an event with a name that no log should get, or no event at all.
fn event(turn: u32) -> Vec<u8> {
    let container_id = pod(|pod| match turn / 2 % 4 {
        0 => pod.containers.last().cloned().unwrap_or_default(),
        1 => pod.victim.clone(),
        2 => POISON.repeat(1024),
        _ => String::new(),
    });
    let event = (turn / 2 % 4 < 3).then(|| {
        agent::event::Event::Oom(agent::Oom {
            container_id,
            ..Default::default()
        })
    });
    encoded(&agent::Event {
        event,
        ..Default::default()
    })
}
