//! Fuzzes the frames of streams and of forwarded connections that come from the other side.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use caisson_fuzz::memory;
use caisson_protocol::{
    forward,
    stream::{self, MAX_FRAME, WINDOW},
};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The buffers of both directions, the frames that may be under way, and as much again for copies.
const LIMIT: usize = 4 << 20;

#[derive(Arbitrary, Debug)]
struct Talk<'a> {
    side: Side,
    /// How many bytes the connection carries at once.
    buffer: u16,
    frames: Vec<Frame<'a>>,
    /// The bytes to be sent to the other side.
    ours: &'a [u8],
}

#[derive(Arbitrary, Debug)]
enum Side {
    Receive,
    Send,
    Forward,
    Token,
    Request,
}

#[derive(Arbitrary, Debug)]
enum Frame<'a> {
    Whole(&'a [u8]),
    /// A frame of this length.
    Large(u32),
    /// A length, possibly followed by something else.
    Length(u32, &'a [u8]),
    Taken,
    End,
    Bytes(&'a [u8]),
    Hello(u64),
}

impl Frame<'_> {
    fn bytes(&self) -> Vec<u8> {
        let frame = |length: u32, bytes: &[u8]| [&length.to_le_bytes()[..], bytes].concat();
        match self {
            Self::Whole(bytes) => frame(bytes.len() as u32, bytes),
            Self::Large(length) => {
                let length = *length as usize % (2 * MAX_FRAME);
                frame(length as u32, &vec![7; length])
            }
            Self::Length(length, bytes) => frame(*length, bytes),
            Self::Taken => frame(stream::TAKEN, &[]),
            Self::End => frame(0, &[]),
            Self::Bytes(bytes) => bytes.to_vec(),
            Self::Hello(token) => [&stream::MAGIC[..], &token.to_le_bytes()].concat(),
        }
    }
}

fuzz_target!(|talk: Talk| {
    let theirs: Vec<u8> = talk
        .frames
        .iter()
        .take(64)
        .flat_map(Frame::bytes)
        .take(256 << 10)
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build();
    let runtime = runtime.expect("a runtime");
    memory::bounded(LIMIT + theirs.len(), || {
        runtime.block_on(check(&talk, &theirs))
    });
});

async fn check(talk: &Talk<'_>, theirs: &[u8]) {
    let (mut near, far) = tokio::io::duplex(usize::from(talk.buffer).max(64));
    let (mut from_us, mut to_us) = tokio::io::split(far);
    let peer = async {
        let _ = to_us.write_all(theirs).await;
        let _ = to_us.shutdown().await;
        std::future::pending::<()>().await
    };
    let mut heard = Vec::new();
    let hear = async {
        let _ = from_us.read_to_end(&mut heard).await;
        std::future::pending::<()>().await
    };
    let ours = &mut &*talk.ours;
    let work = async {
        match talk.side {
            Side::Receive => {
                let mut sink = Vec::new();
                let received = stream::receive(&mut near, &mut sink).await;
                assert!(sink.len() <= theirs.len());
                assert!(
                    received.is_err() || received.is_ok_and(|length| length == sink.len() as u64)
                );
            }
            Side::Send => {
                let sent = stream::send(ours, &mut near).await;
                assert!(sent.is_err() || sent.is_ok_and(|length| length == talk.ours.len() as u64));
            }
            Side::Forward => {
                let (mut tcp, server) = tokio::io::duplex(usize::from(talk.buffer).max(64));
                let (mut from_near, mut to_near) = tokio::io::split(server);
                let copied = forward::copy(&mut near, &mut tcp);
                let serve = async {
                    let _ = to_near.write_all(talk.ours).await;
                    let _ = to_near.shutdown().await;
                    let mut arrived = Vec::new();
                    let _ = from_near.read_to_end(&mut arrived).await;
                    assert!(arrived.len() <= theirs.len());
                    std::future::pending::<()>().await
                };
                tokio::select! {
                    _ = copied => {}
                    () = serve => {}
                }
            }
            Side::Token => drop(stream::read_token(&mut near).await),
            Side::Request => drop(forward::read_request(&mut near).await),
        }
    };
    // The other side has sent everything and ended, so there is nothing left to wait for. (The time
    // is tokio's, which stands still.)
    let ended = async { tokio::time::timeout(Duration::from_secs(3600), work).await };
    tokio::select! {
        ended = ended => assert!(ended.is_ok(), "still waiting"),
        () = peer => {}
        () = hear => {}
    }
    drop(near);
    if matches!(talk.side, Side::Send) {
        let most = (WINDOW + theirs.len() / 4) * (4 + MAX_FRAME);
        assert!(
            heard.len() <= most,
            "{} bytes without an answer",
            heard.len()
        );
    }
}
