//! An agent that lies, for the tests under `tests/hostile`: it stands between the host and the
//! honest service and changes what the guest says. Built with the feature `hostile`, never shipped.
//!
//! The pod's hostname, which comes with `Configure`, selects the lie. `hostile-LIE` applies to
//! every answer, `hostile-LIE-METHOD` (in lower case) to the answers of one method. In a pod with
//! any other name the agent is honest.
//!
//! ```text
//!   host <--> lies <--pipe--> service
//! ```

mod lies;
mod pod;
mod streams;

use std::io;

use futures_util::StreamExt;
use tokio::io::DuplexStream;
use ttrpc::r#async::transport::{Listener, Socket};

/// How many bytes a pipe to the honest service holds.
const PIPE: usize = 64 << 10;

/// Puts the lies in front of the service, and returns the service's listener.
pub fn service(host: Listener) -> Listener {
    between(host, |host, honest| {
        tokio::spawn(lies::between(host, honest));
    })
}

/// Puts the lies in front of the streams, and returns their listener.
pub fn processes(host: Listener) -> Listener {
    between(host, |host, honest| {
        tokio::spawn(streams::between(host, honest));
    })
}

fn between(host: Listener, lie: impl Fn(Socket, DuplexStream) + Send + 'static) -> Listener {
    Listener::new(host.map(move |connection: io::Result<Socket>| {
        let (ours, services) = tokio::io::duplex(PIPE);
        lie(connection?, ours);
        Ok(services)
    }))
}
