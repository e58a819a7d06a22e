//! Sends forged frames on the wire and listens for frames.

use std::{
    ffi::CString,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
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
        let mut buffer = [0_u8; 2048];
        let length = next(&socket, &mut buffer)?;
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

/// Returns what the machine's secret contributes to the first sequence numbers of four TCP
/// connections on loopback, a byte of each. What is taken off is the clock's part (RFC 6528, 3;
/// `seq_scale` in the kernel's net/core/secure_seq.c).
pub fn sequence_secrets() -> io::Result<String> {
    let socket = open("lo")?;
    let bytes = (1..=4).map(|number| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let clock = now.map_err(io::Error::other)?.as_nanos() >> 6;
        let (from, to) = (40_000 + number, 50_000 + number);
        connect(from, to)?;
        let secret = sequence(&socket, from, to)?.wrapping_sub(clock as u32);
        Ok(format!("{:02x}", secret >> 24))
    });
    bytes.collect()
}

/// Sends the first segment of a TCP connection to a port at which nobody listens.
fn connect(from: u16, to: u16) -> io::Result<()> {
    let address = |port: u16| libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be(),
        },
        sin_zero: [0; 8],
    };
    let (from, to) = (address(from), address(to));
    let size = size_of_val(&to) as u32;
    // SAFETY: numbers, and two addresses of the given size.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        if libc::bind(socket.as_raw_fd(), (&raw const from).cast(), size) < 0 {
            return Err(io::Error::last_os_error());
        }
        // It is refused.
        libc::connect(socket.as_raw_fd(), (&raw const to).cast(), size);
    }
    Ok(())
}

/// Returns the sequence number of the next TCP segment between two ports by IPv4 (RFC 9293, 3.1).
fn sequence(socket: &OwnedFd, from: u16, to: u16) -> io::Result<u32> {
    const TCP: usize = 14 + 20;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        let mut buffer = [0; 2048];
        let length = next(socket, &mut buffer)?;
        let Some(segment) = buffer[..length].get(TCP..TCP + 8) else {
            continue;
        };
        if segment[..4] == [from.to_be_bytes(), to.to_be_bytes()].concat() {
            let number = segment[4..].try_into().map_err(io::Error::other)?;
            return Ok(u32::from_be_bytes(number));
        }
    }
    Err(io::Error::other("no segment"))
}

/// Receives a frame and returns its length, or 0 if none comes soon.
fn next(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    let fd = socket.as_raw_fd();
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure, an open socket and a buffer of that length.
    let length = unsafe {
        match libc::poll(&mut poll, 1, 200) {
            1 => libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0),
            _ => 0,
        }
    };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
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
