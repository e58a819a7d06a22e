//! Tests that a connection without the machine's secret is closed before anything that it sends is
//! read.

use std::time::Duration;

use caisson_protocol::{
    agent::PingRequest, agent_ttrpc::AgentClient, port, secret::LENGTH, stream,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use ttrpc::r#async::{transport::Socket, Client};

use crate::guest::*;

/// How long closing may take. A connection that sends nothing is closed after 10 s.
const CLOSED: Duration = Duration::from_secs(20);

#[tokio::test]
async fn call_without_the_secret_is_not_answered() {
    let guest = Guest::start().await;
    for said in [Vec::new(), vec![8; LENGTH]] {
        let mut stranger = guest.stranger(port::AGENT).await;
        stranger.write_all(&said).await.unwrap();
        let client = AgentClient::new(Client::new(Socket::new(stranger)));
        let request = PingRequest::new();
        let answer = timeout(CLOSED, client.ping(ctx(), &request)).await.unwrap();
        assert!(
            !matches!(answer, Ok(_) | Err(ttrpc::Error::RpcStatus(_))),
            "{answer:?}"
        );
    }
    guest.client.ping(ctx(), &PingRequest::new()).await.unwrap();
}

#[tokio::test]
async fn stream_of_a_process_is_not_given_to_who_does_not_know_the_secret() {
    let guest = Guest::start().await;
    let id = format!("c{}", number());
    let streams = outputs();
    let spec = spec(&["echo", "for the shim"]);
    guest.create(&id, &spec, &streams).await.unwrap();
    for said in [[].as_slice(), &[8; LENGTH]] {
        let mut stranger = guest.stranger(port::STREAMS).await;
        stranger.write_all(said).await.unwrap();
        let mut got = Vec::new();
        // The connection may be closed or reset before the token is sent.
        let _ = stream::write_token(&mut stranger, streams.stdout).await;
        let _ = timeout(CLOSED, stranger.read_to_end(&mut got))
            .await
            .unwrap();
        assert_eq!(got, b"");
    }
    assert_eq!(guest.started(&id, &streams).await.1, "for the shim\n");
    guest.delete(&id).await.unwrap();
}

#[tokio::test]
async fn secret_is_not_left_where_others_read_it() {
    let guest = Guest::start().await;
    if let Some(dir) = guest.dir() {
        assert!(!dir.join("secret").exists());
    }
    let (_, environment, _) = guest.run(&spec(&["env"])).await;
    assert!(!environment.contains("secret"), "{environment}");
}
