//! Tests stdin, stdout, stderr and terminals.

use std::time::Duration;

use caisson_protocol::{
    agent::{ResizePtyRequest, Streams},
    stream,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::guest::*;

#[tokio::test]
async fn bytes_through_cat_come_back_unchanged() {
    let guest = Guest::start().await;
    let id = format!("c{}", number());
    let streams = Streams {
        stdin: number(),
        ..outputs()
    };
    guest.create(&id, &spec(&["cat"]), &streams).await.unwrap();
    guest.start_container(&id).await.unwrap();
    let length = if guest.is_fake() { 64 << 20 } else { 8 << 20 };
    let data: Vec<u8> = (0..length as u32)
        .map(|n| (n.wrapping_mul(2654435761) >> 24) as u8)
        .collect();
    let mut stdin = guest.stream(streams.stdin).await;
    let sending = async {
        stream::send(&mut data.as_slice(), &mut stdin)
            .await
            .unwrap()
    };
    let (sent, received, status) =
        tokio::join!(sending, guest.read_all(streams.stdout), guest.wait(&id, ""));
    assert_eq!(sent, data.len() as u64);
    assert!(
        received == data,
        "{} of {} bytes",
        received.len(),
        data.len()
    );
    assert_eq!(status.unwrap(), 0);
    guest.delete(&id).await.unwrap();
}

#[tokio::test]
async fn output_of_a_process_that_has_ended_still_arrives() {
    let guest = Guest::start().await;
    let id = format!("c{}", number());
    let streams = outputs();
    guest
        .create(&id, &spec(&["echo", "late"]), &streams)
        .await
        .unwrap();
    guest.start_container(&id).await.unwrap();
    guest.wait(&id, "").await.unwrap();
    guest.delete(&id).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(guest.read_all(streams.stdout).await, b"late\n");
}

#[tokio::test]
async fn process_whose_output_nobody_reads_waits() {
    let guest = Guest::start().await;
    let id = format!("c{}", number());
    let streams = outputs();
    let script = "dd if=/dev/zero bs=1024 count=10240 2>/dev/null; echo done >&2";
    guest
        .create(&id, &spec(&sh(script)), &streams)
        .await
        .unwrap();
    guest.start_container(&id).await.unwrap();
    let waited = timeout(Duration::from_secs(1), guest.wait(&id, "")).await;
    assert!(waited.is_err(), "it can't have written 10 MiB");
    assert_eq!(guest.read_all(streams.stdout).await.len(), 10 << 20);
    assert_eq!(guest.read_all(streams.stderr).await, b"done\n");
    assert_eq!(guest.wait(&id, "").await.unwrap(), 0);
    guest.delete(&id).await.unwrap();
}

#[tokio::test]
async fn stdin_that_is_not_asked_for_is_empty() {
    let guest = Guest::start().await;
    let (status, stdout, _) = guest.run(&spec(&sh("cat; echo end"))).await;
    assert_eq!((status, stdout.as_str()), (0, "end\n"));
}

#[tokio::test]
async fn user_can_open_its_standard_output_again() {
    let guest = Guest::start().await;
    let mut spec = spec(&sh("echo again >/dev/stdout"));
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let (status, stdout, stderr) = guest.run(&spec).await;
    assert_eq!((status, stdout.as_str()), (0, "again\n"), "{stderr}");
}

#[tokio::test]
async fn terminal_of_a_container_has_size_and_echo() {
    let guest = Guest::start().await;
    let id = format!("c{}", number());
    let mut spec = spec(&sh(
        "tty; stty size; read line; stty size; test -c /dev/console && echo got $line; exit 3",
    ));
    spec["process"]["terminal"] = json!(true);
    spec["process"]["consoleSize"] = json!({"height": 24, "width": 80});
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let streams = Streams {
        stdin: number(),
        stdout: number(),
        terminal: true,
        ..Default::default()
    };
    guest.create(&id, &spec, &streams).await.unwrap();
    guest.start_container(&id).await.unwrap();
    talk_to_terminal(&guest, &id, "", &streams, "/dev/pts/0\r\n24 80\r\n").await;
    guest.delete(&id).await.unwrap();
}

#[tokio::test]
async fn terminal_of_an_exec_has_size_and_echo() {
    let guest = Guest::start().await;
    let id = guest.idle(&spec(&["sleep", "100"])).await;
    let mut process = process(&sh(
        "test -w $(tty) && echo mine; stty size; read line; stty size; echo got $line; exit 3",
    ));
    process["terminal"] = json!(true);
    process["user"] = json!({"uid": 1000, "gid": 1000});
    process["consoleSize"] = json!({"height": 24, "width": 80});
    let streams = Streams {
        stdin: number(),
        stdout: number(),
        terminal: true,
        ..Default::default()
    };
    guest.exec(&id, "e", &process, &streams).await.unwrap();
    talk_to_terminal(&guest, &id, "e", &streams, "mine\r\n24 80\r\n").await;
    guest.kill(&id, "", libc::SIGKILL).await.unwrap();
    guest.wait(&id, "").await.unwrap();
    guest.delete(&id).await.unwrap();
}

async fn talk_to_terminal(guest: &Guest, id: &str, exec: &str, streams: &Streams, greeting: &str) {
    let mut output = guest.stream(streams.stdout).await;
    let mut text = String::new();
    let read = async {
        while !text.contains("24 80\r\n") {
            let length = output.read_u32_le().await.unwrap();
            let mut frame = vec![0; length as usize];
            output.read_exact(&mut frame).await.unwrap();
            output.write_u32_le(stream::TAKEN).await.unwrap();
            text.push_str(std::str::from_utf8(&frame).unwrap());
        }
    };
    timeout(LONG, read).await.unwrap();
    assert_eq!(text, greeting);
    let request = ResizePtyRequest {
        container_id: id.to_string(),
        exec_id: exec.to_string(),
        width: 100,
        height: 40,
        ..Default::default()
    };
    guest.client.resize_pty(ctx(), &request).await.unwrap();
    let mut stdin = guest.stream(streams.stdin).await;
    // The end of the stream is no longer taken if the process has read its line and ended by then.
    let _ = stream::send(&mut &b"hello\n"[..], &mut stdin).await;
    let mut rest = Vec::new();
    timeout(LONG, stream::receive(&mut output, &mut rest))
        .await
        .unwrap()
        .unwrap();
    let rest = String::from_utf8(rest).unwrap();
    assert_eq!(rest, "hello\r\n40 100\r\ngot hello\r\n");
    assert_eq!(guest.wait(id, exec).await.unwrap(), 3);
}
