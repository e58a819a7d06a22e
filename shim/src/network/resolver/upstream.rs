//! Asks the pod's servers of DNS, from the node's network namespace.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use caisson_oci::egress::DNS_PORT;
use hickory_proto::op::{Edns, Message, MessageType, Query};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// How long one server has for an answer. A guest's own resolver asks again after 5 s
/// (resolv.conf(5)).
const ANSWER: Duration = Duration::from_secs(2);
/// The size of UDP messages that every network carries (DNS flag day 2020).
pub const UDP_SIZE: u16 = 1232;

/// The servers, in the order in which they are asked.
pub struct Upstream(pub Vec<SocketAddr>);

impl Upstream {
    /// Makes the upstream of the servers in a resolv.conf(5).
    pub fn of(servers: &[IpAddr]) -> Self {
        let servers = servers.iter().map(|ip| SocketAddr::new(*ip, DNS_PORT));
        Self(servers.collect())
    }

    /// Returns the first answer of a server. What the guest has written goes no further than the
    /// question: the message is a new one.
    pub async fn ask(&self, query: &Query) -> io::Result<Message> {
        let mut last = io::Error::other("the pod has no server");
        for server in &self.0 {
            let mut message = Message::query();
            message.metadata.recursion_desired = true;
            message.add_query(query.clone());
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_SIZE).set_version(0);
            message.set_edns(edns);
            match timeout(ANSWER, one(*server, &message)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }
}

/// Asks one server by UDP, and by TCP if the answer is too long for that.
async fn one(server: SocketAddr, message: &Message) -> io::Result<Message> {
    let request = message.to_vec().map_err(io::Error::other)?;
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&request).await?;
    let mut buffer = vec![0; UDP_SIZE.into()];
    let answer = loop {
        let length = socket.recv(&mut buffer).await?;
        // Somebody may guess at answers: another one than to this question does not count.
        match Message::from_vec(&buffer[..length]) {
            Ok(answer) if answers(&answer, message) => break answer,
            _ => {}
        }
    };
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    let mut stream = TcpStream::connect(server).await?;
    write(&mut stream, &request).await?;
    let answer = read(&mut stream).await?;
    let answer = Message::from_vec(&answer).map_err(io::Error::other)?;
    match answers(&answer, message) {
        true => Ok(answer),
        false => Err(io::Error::other("the server answers something else")),
    }
}

fn answers(answer: &Message, request: &Message) -> bool {
    answer.metadata.id == request.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == request.queries
}

/// Reads a message from a connection (RFC 1035, 4.2.2).
pub async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message to a connection.
pub async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(message);
    stream.write_all(&bytes).await
}
