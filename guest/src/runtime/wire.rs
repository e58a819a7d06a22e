//! Sends and receives one message with descriptors over a socket that keeps messages apart.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    cmsg_space,
    sys::socket::{
        recvmsg, sendmsg, socketpair, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags,
        SockFlag, SockType, UnixAddr,
    },
};

/// The largest message, in bytes.
const MAX: usize = 64 * 1024;

/// Returns a connected pair of sockets.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

/// Sends a message. The end of a message that is too long is cut off.
pub fn send<'a>(
    socket: BorrowedFd<'_>,
    text: &[u8],
    fds: impl Iterator<Item = BorrowedFd<'a>>,
) -> io::Result<()> {
    let fds: Vec<RawFd> = fds.map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    let text = [IoSlice::new(&text[..text.len().min(MAX)])];
    sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &text,
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives a message. Fails with `UnexpectedEof` if the other side is gone.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut text = vec![0; MAX];
    let mut space = cmsg_space!([RawFd; 3]);
    let mut parts = [IoSliceMut::new(&mut text)];
    let message = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = part {
            // SAFETY: recvmsg(2) just returned these descriptors, and nothing else owns them.
            fds.extend(
                received
                    .iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }),
            );
        }
    }
    let length = message.bytes;
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    text.truncate(length);
    Ok((text, fds))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn message_arrives_with_its_descriptors() {
        let (near, far) = pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(near.as_fd(), b"hello", [file.as_fd()].into_iter()).unwrap();
        let (text, fds) = receive(far.as_fd()).unwrap();
        assert_eq!((text.as_slice(), fds.len()), (&b"hello"[..], 1));
    }

    #[test]
    fn message_from_nobody_is_an_error() {
        let (near, far) = pair().unwrap();
        drop(near);
        let error = receive(far.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
