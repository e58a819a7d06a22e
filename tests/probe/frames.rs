//! Sends forged frames on the wire and listens for frames.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

/// The mark that our frames contain somewhere. A word follows it.
const MARK: &[u8] = b"mark:";

/// Sends frames, each given as hexadecimal digits.
pub fn send(interface: &str, frames: &[&str]) -> io::Result<String> {
    let socket = open(interface)?;
    for frame in frames {
        let bytes = (0..frame.len() / 2).map(|n| u8::from_str_radix(&frame[2 * n..2 * n + 2], 16));
        let bytes: Vec<u8> = bytes.collect::<Result<_, _>>().map_err(io::Error::other)?;
        // SAFETY: an open socket and a buffer of that length.
        let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok("sent".into())
}

/// Returns the words of the frames that arrive, in order, until one with the word `end` does.
pub fn receive(interface: &str, seconds: u64) -> io::Result<String> {
    let socket = open(interface)?;
    let limit = Duration::from_secs(seconds);
    let start = Instant::now();
    println!("listening");
    let mut words = Vec::new();
    while start.elapsed() < limit {
        let mut poll = libc::pollfd {
            fd: socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut buffer = [0_u8; 2048];
        // SAFETY: one structure, an open socket and a buffer of that length.
        let length = unsafe {
            match libc::poll(&mut poll, 1, 200) {
                1 => libc::recv(
                    socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                ),
                _ => continue,
            }
        };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        let Some(word) = word(&buffer[..length]) else {
            continue;
        };
        if word == "end" {
            return Ok(words.join(" "));
        }
        words.push(word);
    }
    Err(io::Error::other(format!(
        "no end after {}",
        words.join(" ")
    )))
}

fn word(frame: &[u8]) -> Option<String> {
    let at = frame.windows(MARK.len()).position(|part| part == MARK)?;
    let rest = frame[at + MARK.len()..].iter();
    let letters = rest.take_while(|byte| byte.is_ascii_alphanumeric());
    Some(letters.map(|byte| *byte as char).collect())
}

fn open(interface: &str) -> io::Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let name = CString::new(interface).map_err(io::Error::other)?;
    // SAFETY: numbers, a NUL-terminated name, and an address of the given size.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, protocol.into());
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        let size = size_of_val(&address) as u32;
        if libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }
}
