//! Tells lies in the streams of processes.

use caisson_protocol::stream::{self, MAX_FRAME, TAKEN};
use tokio::io::{copy_bidirectional, split, AsyncWriteExt, DuplexStream};
use ttrpc::r#async::transport::Socket;

use super::pod::{pod, Lie};

/// Stands between a connection of the host and the honest streams until either ends.
pub async fn between(mut host: Socket, mut honest: DuplexStream) {
    let (lie, silent) = pod(|pod| (pod.lie_about("streams"), pod.silent));
    let frame = match lie {
        _ if silent => {
            std::future::pending::<()>().await;
            return;
        }
        Some(Lie::Streams) => {
            let mut frame = vec![b'x'; 4 + MAX_FRAME];
            frame[..4].copy_from_slice(&(MAX_FRAME as u32).to_le_bytes());
            frame
        }
        Some(Lie::Frames) => u32::MAX.to_le_bytes().to_vec(),
        Some(Lie::Taken) => TAKEN.to_le_bytes().to_vec(),
        _ => {
            // If either side cuts the connection, it is cut.
            let _ = copy_bidirectional(&mut host, &mut honest).await;
            return;
        }
    };
    if stream::read_token(&mut host).await.is_err() {
        return;
    }
    let (mut from_host, mut to_host) = split(host);
    let mut ignored = tokio::io::sink();
    tokio::select! {
        _ = tokio::io::copy(&mut from_host, &mut ignored) => {}
        () = async { while to_host.write_all(&frame).await.is_ok() {} } => {}
    }
}
