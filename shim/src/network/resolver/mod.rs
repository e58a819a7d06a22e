//! The pod's resolver of names: it answers the guest's queries in the place of the pod's servers of
//! DNS, and only for names that the pod's egress has. The addresses that it answers are open before
//! the guest hears of them.
//!
//! The guest sends its queries to its servers, as ever. The filter at the tap leads them here
//! (`link.rs`), whatever the guest does. `serve.rs` hears them, `answer.rs` decides, `upstream.rs`
//! asks the pod's servers from the node's network namespace, and `pins.rs` opens the addresses.

mod answer;
mod link;
mod pins;
mod serve;
mod upstream;

use std::{net::IpAddr, sync::Arc, time::Duration};

use caisson_node::traffic::egress::Filter;
use caisson_oci::Egress;
use tokio::task::{JoinHandle, JoinSet};

pub use link::Link;

use self::{
    answer::Answerer,
    pins::Pins,
    serve::{serve, Sockets},
    upstream::Upstream,
};
use super::error::NetworkError;

/// How long a resolver that has ended stays away.
const AGAIN: Duration = Duration::from_secs(1);

/// A resolver that runs. Dropping it ends it; names that are open stay so for their time.
pub struct Resolver {
    /// Keeps the way to it.
    _link: Link,
    task: JoinHandle<()>,
}

impl Resolver {
    /// Starts to answer what comes by a link.
    pub async fn start(
        mut link: Link,
        egress: Egress,
        filter: Arc<Filter>,
    ) -> Result<Self, NetworkError> {
        let listening = link.listen().await?;
        let sockets = listening.into_iter();
        let sockets = sockets.map(|(udp, tcp)| Sockets::new(udp, tcp));
        let sockets = sockets.collect::<Result<Vec<_>, _>>();
        let sockets = sockets.map_err(|source| NetworkError::Resolver { source })?;
        let answerer = Arc::new(Answerer {
            egress,
            upstream: Upstream::of(link.servers()),
            pins: Pins::new(filter),
        });
        let sockets = Arc::new(sockets);
        let work = move || {
            let (sockets, answerer) = (sockets.clone(), answerer.clone());
            async move { serve(&sockets, &answerer).await }
        };
        Ok(Self {
            _link: link,
            task: tokio::spawn(keep_up(work)),
        })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Does work that should not end, and does it again if it does. Nobody is answered in between.
async fn keep_up<W>(work: impl Fn() -> W)
where
    W: std::future::Future<Output = std::io::Result<()>> + Send + 'static,
{
    loop {
        // It ends with this task.
        let mut task = JoinSet::new();
        task.spawn(work());
        let why = match task.join_next().await {
            Some(Ok(Err(error))) => error.to_string(),
            Some(Err(error)) => error.to_string(),
            _ => "it has ended".to_owned(),
        };
        log::warn!("the pod's resolver of names starts again: {why}");
        tokio::time::sleep(AGAIN).await;
    }
}

/// The most servers that a resolver asks (resolv.conf(5), MAXNS).
const MAX_SERVERS: usize = 3;

/// Returns the servers in a resolv.conf(5) that can be reached from outside of the pod. An address
/// with a scope can't.
pub fn servers(resolv_conf: &str) -> Vec<IpAddr> {
    let lines = resolv_conf.lines().map(str::split_whitespace);
    let addresses = lines.filter_map(|mut words| match (words.next(), words.next()) {
        (Some("nameserver"), Some(address)) => address.parse::<IpAddr>().ok(),
        _ => None,
    });
    let mut servers = Vec::new();
    for address in addresses.take(MAX_SERVERS) {
        if !address.is_loopback() && !address.is_unspecified() && !servers.contains(&address) {
            servers.push(address);
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::*;

    #[test]
    fn servers_are_those_that_the_guest_asks_over_the_network() {
        let text = "# nameserver 10.0.0.1\nsearch a.example\nnameserver 10.96.0.10\n\
                    nameserver fd00::a\nnameserver 127.0.0.53\nnameserver 10.0.0.4\n";
        let expected = ["10.96.0.10", "fd00::a"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(servers(text), expected);
        assert!(servers("nameserver fe80::1%eth0\nnameserver\n").is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_fails_or_panics_is_done_again() {
        static TIMES: AtomicU32 = AtomicU32::new(0);
        let work = || async {
            match TIMES.fetch_add(1, Ordering::Relaxed) {
                0 => Err(io::Error::other("it failed")),
                1 => panic!("it panicked"),
                _ => std::future::pending().await,
            }
        };
        let _ = tokio::time::timeout(AGAIN * 10, keep_up(work)).await;
        assert_eq!(TIMES.load(Ordering::Relaxed), 3);
    }
}
