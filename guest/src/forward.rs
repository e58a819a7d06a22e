//! Forwards connections of the host to servers in the pod, which may listen on the guest's
//! loopback.

use std::time::Duration;

use caisson_protocol::forward::{self, CONNECTED, REFUSED};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::error::chain;

/// How long a connection may take to say where it is to go.
const HELLO: Duration = Duration::from_secs(10);
/// How long connecting to a server with a full queue may take. The host has stopped waiting by
/// then.
const CONNECT: Duration = Duration::from_secs(10);

/// Serves one connection of the host until it ends.
pub async fn serve<C: AsyncRead + AsyncWrite + Unpin>(mut connection: C) {
    let to = match timeout(HELLO, forward::read_request(&mut connection)).await {
        Ok(Ok(to)) => to,
        Ok(Err(error)) => {
            log::warn!(error = chain(&error); "forward connection refused");
            return;
        }
        Err(_) => {
            log::warn!("forward connection that said nothing closed");
            return;
        }
    };
    let mut server = match timeout(CONNECT, TcpStream::connect(to)).await {
        Ok(Ok(server)) => server,
        Ok(Err(error)) => {
            log::debug!(to:%, error:%; "nobody to forward to");
            let _ = connection.write_all(&[REFUSED]).await;
            return;
        }
        Err(_) => return,
    };
    // The host's side sends data as soon as it has it, and so does this side.
    let _ = server.set_nodelay(true);
    let carried = async {
        connection.write_all(&[CONNECTED]).await?;
        forward::copy(&mut connection, &mut server).await
    };
    if let Err(error) = carried.await {
        log::debug!(to:%, error = chain(&error); "forwarded connection reset");
        let _ = server.set_zero_linger();
    }
}
