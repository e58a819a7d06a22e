//! Hears the guest's queries, by UDP and TCP.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::{answer::Answerer, upstream};

/// The most queries by UDP that wait for an answer. Further ones wait in the socket.
const MAX_QUERIES: usize = 128;
/// The most connections by TCP. Further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 32;
/// How long a connection may be idle (RFC 7766, 6.2.3, asks for seconds).
const IDLE: Duration = Duration::from_secs(10);
/// How long the next connection waits after one that failed.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest query by UDP that is read.
const MAX_QUERY: usize = 4096;

/// The sockets of one server that the guest asks.
pub struct Sockets {
    pub udp: Arc<UdpSocket>,
    pub tcp: TcpListener,
}

impl Sockets {
    /// Takes over sockets that do not block.
    pub fn new(udp: std::net::UdpSocket, tcp: std::net::TcpListener) -> io::Result<Self> {
        Ok(Self {
            udp: Arc::new(UdpSocket::from_std(udp)?),
            tcp: TcpListener::from_std(tcp)?,
        })
    }
}

/// Answers queries until a socket fails.
pub async fn serve(sockets: &[Sockets], answerer: &Arc<Answerer>) -> io::Result<()> {
    let queries = Arc::new(Semaphore::new(MAX_QUERIES));
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let each = sockets.iter().map(|sockets| async {
        tokio::try_join!(
            by_udp(&sockets.udp, answerer, &queries),
            by_tcp(&sockets.tcp, answerer, &connections),
        )
    });
    futures::future::try_join_all(each).await.map(drop)
}

async fn by_udp(
    socket: &Arc<UdpSocket>,
    answerer: &Arc<Answerer>,
    queries: &Arc<Semaphore>,
) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let permit = queries.clone().acquire_owned().await;
        let (length, from) = socket.recv_from(&mut buffer).await?;
        while tasks.try_join_next().is_some() {}
        let request = buffer[..length].to_vec();
        let (socket, answerer) = (socket.clone(), answerer.clone());
        tasks.spawn(async move {
            let _permit = permit;
            if let Some(answer) = answerer.answer(&request, true).await {
                // The guest asks again if it does not get it.
                let _ = socket.send_to(&answer, from).await;
            }
        });
    }
}

async fn by_tcp(
    listener: &TcpListener,
    answerer: &Arc<Answerer>,
    connections: &Arc<Semaphore>,
) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    loop {
        let permit = connections.clone().acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // One connection has failed, or the process has too many files open.
            Err(error) => {
                log::debug!("accept a query by TCP: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        let answerer = answerer.clone();
        tasks.spawn(async move {
            let _permit = permit;
            if let Err(error) = connection(stream, &answerer).await {
                log::debug!("a query by TCP: {error}");
            }
        });
    }
}

/// Answers the queries of a connection, one after the other.
async fn connection(mut stream: TcpStream, answerer: &Answerer) -> io::Result<()> {
    loop {
        let request = timeout(IDLE, upstream::read(&mut stream)).await??;
        let Some(answer) = answerer.answer(&request, false).await else {
            return Ok(());
        };
        timeout(IDLE, upstream::write(&mut stream, &answer)).await??;
    }
}
