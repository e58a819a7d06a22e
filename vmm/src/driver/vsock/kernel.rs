//! Connects through the host kernel's vsock, `/dev/vhost-vsock`.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use super::{
    address,
    ports::{READY_PORT, SERVICE_PORT},
};
use crate::random;

/// `_IOW(VHOST_VIRTIO, 0x60, __u64)` of linux/vhost.h.
const VHOST_VSOCK_SET_GUEST_CID: libc::c_ulong = 0x4008_af60;
/// The number of random addresses that are tried.
const TRIES: u32 = 16;
/// The source ports of connections to the service: reserved ports, as rresvport(3) takes them,
/// without the one on which a host may listen.
const RESERVED: std::ops::Range<u32> = 512..READY_PORT;

/// Opens the device and takes an address for a guest that no other guest on this host has. The
/// address is free again when the last copy of the descriptor closes.
pub(super) fn reserve() -> io::Result<(OwnedFd, u32)> {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/vhost-vsock")?;
    for _ in 0..TRIES {
        let cid = address::draw()?;
        let argument = u64::from(cid);
        // SAFETY: the request reads a u64.
        let set = unsafe {
            libc::ioctl(
                device.as_raw_fd(),
                VHOST_VSOCK_SET_GUEST_CID,
                &raw const argument,
            )
        };
        match io::Error::last_os_error() {
            _ if set == 0 => return Ok((device.into(), cid)),
            error if error.kind() == io::ErrorKind::AddrInUse => continue,
            error => return Err(error),
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// Connects through the kernel, which gives up after two seconds by itself. Connections to the
/// service come from a reserved port.
pub(super) fn connect(cid: u32, port: u32) -> io::Result<UnixStream> {
    // SAFETY: socket with numbers only.
    let socket = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor that we just got. Everything done with the stream works the same for
    // every stream socket.
    let stream = unsafe { UnixStream::from_raw_fd(socket) };
    if port == SERVICE_PORT {
        bind_reserved(|source| at(socket, libc::bind, libc::VMADDR_CID_ANY, source))?;
    }
    at(socket, libc::connect, cid, port)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Calls `bind` with one reserved port after the other until one is free, starting from a random
/// one.
fn bind_reserved(bind: impl Fn(u32) -> io::Result<()>) -> io::Result<()> {
    let count = RESERVED.end - RESERVED.start;
    let first = u32::from(u16::from_ne_bytes(random::bytes()?));
    for n in 0..count {
        match bind(RESERVED.start + (first + n) % count) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

type Call =
    unsafe extern "C" fn(libc::c_int, *const libc::sockaddr, libc::socklen_t) -> libc::c_int;

/// Binds or connects a socket to an address.
fn at(socket: libc::c_int, call: Call, cid: u32, port: u32) -> io::Result<()> {
    // SAFETY: sockaddr_vm is plain data.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: bind(2) or connect(2) with an address of the given length.
    match unsafe { call(socket, (&raw const address).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn reserved_port_that_is_taken_is_passed_over() {
        let tried = RefCell::new(Vec::new());
        bind_reserved(|port| {
            tried.borrow_mut().push(port);
            match tried.borrow().len() {
                3 => Ok(()),
                _ => Err(io::ErrorKind::AddrInUse.into()),
            }
        })
        .unwrap();
        let tried = tried.into_inner();
        assert_eq!(tried.len(), 3);
        assert!(tried.iter().all(|port| RESERVED.contains(port)));
    }

    #[test]
    fn process_that_may_not_have_a_reserved_port_is_told_so_at_once() {
        let tries = RefCell::new(0);
        let bound = bind_reserved(|_| {
            *tries.borrow_mut() += 1;
            Err(io::ErrorKind::PermissionDenied.into())
        });
        assert_eq!(bound.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(tries.into_inner(), 1);
    }

    #[test]
    fn every_reserved_port_is_tried_before_there_is_none() {
        let tried = RefCell::new(std::collections::HashSet::new());
        let bound = bind_reserved(|port| {
            tried.borrow_mut().insert(port);
            Err(io::ErrorKind::AddrInUse.into())
        });
        assert_eq!(bound.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(tried.into_inner().len(), RESERVED.len());
    }
}
