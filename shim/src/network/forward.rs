//! Port forwarding: connections to the loopback of the pod's namespace reach the guest's loopback.
//!
//! containerd makes such connections for `kubectl port-forward`. Nothing else runs in the
//! namespace, so every TCP connection on `lo` is meant for the pod:
//!
//! ```text
//! SYN ──lo, egress: redirect──▶ tun ──▶ the shim asks the agent, which connects in the guest
//!   refused or unreachable: SYN ──tun, ingress: redirect──▶ lo: no listener: the kernel refuses
//!   connected: the shim listens, then gives the SYN back in the same way: the kernel accepts,
//!              and both connections become one
//! ```
//!
//! So the first packet of each connection waits until the guest has answered, and the kernel's own
//! TCP does all the rest: a closed port is refused, and an open port is not accepted before there
//! is a server. This needs no rule set, no address translation and nothing in the guest.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, Weak},
    time::Duration,
};

use caisson_node::{
    host::chain::chain,
    traffic::{
        netlink::Netlink,
        tc::{self, Hook, Onward, Redirect},
    },
};
use caisson_protocol::{
    forward::{self, CONNECTED},
    port,
};
use netlink_packet_core::{DefaultNla, Emitable};
use netlink_packet_route::{
    link::{AfSpecInet, AfSpecUnspec, LinkAttribute, LinkMessage},
    RouteNetlinkMessage,
};
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use tokio::{
    io::{unix::AsyncFd, AsyncReadExt},
    net::{TcpListener, UnixStream},
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use super::{
    error::NetworkError,
    namespace::Namespace,
    tap::{self, Kind},
};
use crate::vm::VmHandle;

/// The time limit for the guest to say whether somebody listens.
const ASK: Duration = Duration::from_secs(10);
/// The time limit for the client's kernel to finish a connection once its first packet is given
/// back.
const ACCEPT: Duration = Duration::from_secs(5);
/// The maximum number of connections that wait for the guest. Further ones try again by themselves,
/// as TCP does.
const MAX_WAITING: usize = 512;
/// The buffer for a first packet. It has no data, except with TCP Fast Open, which then sends it
/// again without.
const PACKET: usize = 2048;
/// The MTU of the tun. The MTU of `lo` does not fit into the field.
const MTU: u32 = 65_535;
/// The index of `lo` in every namespace (net/core/dev.h, LOOPBACK_IFINDEX).
const LO: u32 = 1;

/// The IPv4 settings of an interface (linux/ip.h) that let a packet from 127.0.0.1 to 127.0.0.1
/// arrive a second time.
const LO_SETTINGS: [u16; 2] = [IPV4_DEVCONF_ACCEPT_LOCAL, IPV4_DEVCONF_ROUTE_LOCALNET];
const IPV4_DEVCONF_ACCEPT_LOCAL: u16 = 23;
const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;
/// From linux/if_link.h.
const IFLA_INET_CONF: u16 = 1;

/// The mask and value of TCP's flags for SYN without ACK, in the packet's 33rd byte (IPv4, without
/// options) or 53rd (IPv6).
const SYN: (u32, u32) = (0x0012_0000, 0x0002_0000);

/// The forwarding of a namespace's loopback to a guest's. Dropping it restores the loopback and
/// cuts the connections.
pub struct Forward {
    netlink: Netlink,
    task: JoinHandle<()>,
}

impl Forward {
    /// Starts forwarding. Connections that come before the guest is up wait for it, for a time.
    pub async fn start(namespace: &Namespace, vm: VmHandle) -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::Forward { source };
        let (netlink, tun) = namespace.run(move || make().map_err(failed)).await?;
        // From here on, dropping `started` undoes everything.
        let mut started = Self {
            netlink,
            task: tokio::spawn(async {}),
        };
        // SAFETY: the descriptor is open, and only dropping the value closes it.
        let tun = unsafe { AsyncFd::register(tun) };
        let tun = tun.map_err(|error| failed(error.into()))?;
        let server = Server {
            tun,
            namespace: namespace.clone(),
            vm,
            waiting: HashSet::new(),
            listeners: HashMap::new(),
            tasks: JoinSet::new(),
        };
        started.task = tokio::spawn(server.run());
        Ok(started)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
        let undone = tc::unhook(&mut self.netlink, LO, Hook::Egress);
        if let Err(error) = undone.and(set_lo(&mut self.netlink, false)) {
            log::warn!(error:%; "the pod's loopback stays redirected");
        }
    }
}

/// Makes the tun and the redirects. Runs in the namespace.
fn make() -> io::Result<(Netlink, File)> {
    let mut netlink = Netlink::open()?;
    let (queue, tun) = tap::create(Kind::Tun)?;
    nonblocking(&queue)?;
    tap::set_up(&mut netlink, tun, MTU)?;
    tc::hook(&mut netlink, tun, Hook::Ingress)?;
    let back = Redirect {
        from: tun,
        hook: Hook::Ingress,
        protocol: tc::ETH_P_ALL,
        matches: &[],
        to: Onward::In(LO),
    };
    tc::redirect(&mut netlink, &back)?;
    set_lo(&mut netlink, true)?;
    tc::hook(&mut netlink, LO, Hook::Egress)?;
    // The protocol's byte must be TCP.
    let (mask, value) = SYN;
    for (protocol, matches) in [
        (
            tc::ETH_P_IP,
            [(8, 0x00ff_0000, 0x0006_0000), (32, mask, value)],
        ),
        (
            tc::ETH_P_IPV6,
            [(4, 0x0000_ff00, 0x0000_0600), (52, mask, value)],
        ),
    ] {
        let out = Redirect {
            from: LO,
            hook: Hook::Egress,
            protocol,
            matches: &matches,
            to: Onward::Out(tun),
        };
        tc::redirect(&mut netlink, &out)?;
    }
    Ok((netlink, queue.into()))
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Sets [`LO_SETTINGS`] to on or off.
fn set_lo(netlink: &mut Netlink, on: bool) -> io::Result<()> {
    let value = u32::from(on).to_ne_bytes();
    let settings = LO_SETTINGS.map(|setting| DefaultNla::new(setting, value.to_vec()));
    let settings = settings.as_slice();
    let mut bytes = vec![0; settings.buffer_len()];
    settings.emit(&mut bytes);
    let family = AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF, bytes));
    let mut message = LinkMessage::default();
    message.header.index = LO;
    let family = AfSpecUnspec::Inet(vec![family]);
    message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![family])];
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

/// The first packet of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct First {
    from: SocketAddr,
    to: SocketAddr,
    packet: Vec<u8>,
}

impl First {
    /// Returns None for an incomplete packet.
    fn parse(packet: &[u8]) -> Option<Self> {
        let v4 = |at: usize| -> Option<IpAddr> {
            let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes).into())
        };
        let v6 = |at: usize| -> Option<IpAddr> {
            let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
            Some(Ipv6Addr::from(bytes).into())
        };
        let word = |at: usize| -> Option<usize> {
            Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?).into())
        };
        let first = packet.first()?;
        let (from, to, tcp, length) = match first >> 4 {
            4 => (v4(12)?, v4(16)?, usize::from(first & 0xf) * 4, word(2)?),
            6 => (v6(8)?, v6(24)?, 40, 40 + word(4)?),
            _ => return None,
        };
        let port = |at| word(at).map(|port| port as u16);
        (packet.len() == length).then_some(())?;
        Some(Self {
            from: SocketAddr::new(from, port(tcp)?),
            to: SocketAddr::new(to, port(tcp + 2)?),
            packet: packet.to_vec(),
        })
    }
}

/// The guest's answer to a first packet.
enum Answer {
    Connected(UnixStream),
    Refused,
    /// No answer in time.
    None,
}

enum Done {
    Asked(First, Answer),
    Carried,
}

/// The task behind [`Forward`].
struct Server {
    tun: AsyncFd<File>,
    namespace: Namespace,
    vm: VmHandle,
    /// The two ends of each waiting connection: a client that waits repeats its first packet.
    waiting: HashSet<(SocketAddr, SocketAddr)>,
    /// Each lives as long as a connection to it is being made.
    listeners: HashMap<SocketAddr, Weak<TcpListener>>,
    tasks: JoinSet<Done>,
}

impl Server {
    async fn run(mut self) {
        let mut buffer = vec![0; PACKET];
        loop {
            tokio::select! {
                read = read(&self.tun, &mut buffer) => match read {
                    Ok(length) => self.ask(&buffer[..length]),
                    Err(error) => {
                        log::warn!(error:%; "port-forwarding ends");
                        return;
                    }
                },
                Some(done) = self.tasks.join_next() => {
                    if let Ok(Done::Asked(first, answer)) = done {
                        self.waiting.remove(&(first.from, first.to));
                        self.answer(first, answer).await;
                    }
                }
            }
        }
    }

    fn ask(&mut self, packet: &[u8]) {
        let Some(first) = First::parse(packet) else {
            return;
        };
        if self.waiting.len() < MAX_WAITING && self.waiting.insert((first.from, first.to)) {
            let vm = self.vm.clone();
            self.tasks.spawn(async move {
                let asked = timeout(ASK, ask(&vm, first.to)).await;
                Done::Asked(first, asked.unwrap_or(Answer::None))
            });
        }
    }

    async fn answer(&mut self, first: First, answer: Answer) {
        match answer {
            Answer::None => return,
            Answer::Refused => {}
            Answer::Connected(connection) => match self.listener(first.to).await {
                Ok(listener) => {
                    self.tasks.spawn(async move {
                        carry(listener, connection).await;
                        Done::Carried
                    });
                }
                Err(error) => {
                    let error = chain(&error);
                    log::warn!("listen on {} of the pod: {error}", first.to);
                }
            },
        }
        // The kernel takes it from here. If the packet is lost, the client sends it again.
        if let Err(error) = self.tun.get_ref().write(&first.packet) {
            log::debug!(error:%; "give a packet back");
        }
    }

    async fn listener(&mut self, at: SocketAddr) -> Result<Arc<TcpListener>, NetworkError> {
        self.listeners
            .retain(|_, listener| listener.strong_count() > 0);
        if let Some(listener) = self.listeners.get(&at).and_then(Weak::upgrade) {
            return Ok(listener);
        }
        let failed = |source| NetworkError::Forward { source };
        let bind = move || {
            let listener = std::net::TcpListener::bind(at).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            Ok(listener)
        };
        let listener = self.namespace.run(bind).await?;
        let listener = Arc::new(TcpListener::from_std(listener).map_err(failed)?);
        self.listeners.insert(at, Arc::downgrade(&listener));
        Ok(listener)
    }
}

async fn read(tun: &AsyncFd<File>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = tun.readable().await?;
        if let Ok(read) = ready.try_io(|tun| tun.get_ref().read(buffer)) {
            return read;
        }
    }
}

/// Asks the guest for a connection.
async fn ask(vm: &VmHandle, to: SocketAddr) -> Answer {
    let mut connection = match vm.connect(port::FORWARD, ASK).await {
        Ok(connection) => connection,
        Err(error) => {
            log::debug!("forward to {to}: {}", chain(&error));
            return Answer::Refused;
        }
    };
    if forward::write_request(&mut connection, to).await.is_err() {
        return Answer::Refused;
    }
    match connection.read_u8().await {
        Ok(CONNECTED) => Answer::Connected(connection),
        _ => Answer::Refused,
    }
}

/// Joins a connection to the guest with one that the kernel accepts. It can be any connection,
/// since all that may come are to the same server.
async fn carry(listener: Arc<TcpListener>, mut connection: UnixStream) {
    let accepted = timeout(ACCEPT, listener.accept()).await;
    drop(listener);
    let mut client = match accepted {
        Ok(Ok((client, _))) => client,
        Ok(Err(error)) => {
            log::warn!(error:%; "accept a forwarded connection");
            return;
        }
        // The client has gone.
        Err(_) => return,
    };
    let _ = client.set_nodelay(true);
    if let Err(error) = forward::copy(&mut connection, &mut client).await {
        log::debug!("forwarded connection reset: {}", chain(&error));
        let _ = client.set_zero_linger();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_packet_has_its_two_ends() {
        let mut packet = vec![0; 40];
        packet[0] = 0x45;
        packet[3] = 40;
        packet[12..16].copy_from_slice(&[127, 0, 0, 1]);
        packet[16..20].copy_from_slice(&[127, 0, 0, 2]);
        packet[20..24].copy_from_slice(&[0x80, 0, 0, 80]);
        let first = First::parse(&packet).unwrap();
        assert_eq!(first.from, "127.0.0.1:32768".parse().unwrap());
        assert_eq!(first.to, "127.0.0.2:80".parse().unwrap());
        let mut packet = vec![0; 60];
        packet[0] = 0x60;
        packet[5] = 20;
        (packet[23], packet[39]) = (1, 1);
        packet[40..44].copy_from_slice(&[0x80, 0, 0, 80]);
        let first = First::parse(&packet).unwrap();
        assert_eq!(first.to, "[::1]:80".parse().unwrap());
    }

    #[test]
    fn packet_that_is_cut_or_of_another_kind_is_none() {
        assert_eq!(First::parse(&[]), None);
        assert_eq!(First::parse(&[0x45; 19]), None);
        assert_eq!(First::parse(&[0x60; 50]), None);
        assert_eq!(First::parse(&[0; 60]), None);
    }
}
