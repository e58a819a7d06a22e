//! The host kernel's vsock, `/dev/vhost-vsock`.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

/// `_IOW(VHOST_VIRTIO, 0x60, __u64)`, linux/vhost.h.
const VHOST_VSOCK_SET_GUEST_CID: libc::c_ulong = 0x4008_af60;
/// How many random addresses are tried.
const TRIES: u32 = 16;

/// Opens the device and takes an address for a guest that no other on this host has. It is free again when the last
/// copy of the descriptor closes.
pub(super) fn reserve() -> io::Result<(OwnedFd, u32)> {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/vhost-vsock")?;
    let mut random = File::open("/dev/urandom")?;
    for _ in 0..TRIES {
        let mut bytes = [0; 4];
        random.read_exact(&mut bytes)?;
        // 0 to 2 are taken (vsock(7)); the upper half is left alone.
        let cid = (u32::from_ne_bytes(bytes) >> 1).max(3);
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

/// Connects through the kernel, which gives up after two seconds by itself.
pub(super) fn connect(cid: u32, port: u32) -> io::Result<UnixStream> {
    // SAFETY: socket with numbers only.
    let socket = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor that we just got. All that is done with the stream is the same for every stream socket.
    let stream = unsafe { UnixStream::from_raw_fd(socket) };
    // SAFETY: sockaddr_vm is plain data.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: an address of the given length.
    let connected = unsafe { libc::connect(socket, (&raw const address).cast(), length) };
    if connected != 0 {
        return Err(io::Error::last_os_error());
    }
    stream.set_nonblocking(true)?;
    Ok(stream)
}
