//! Does what busybox has no applet for, in the images of the tests: `probe WHAT ARGS…`.
//!
//! Prints what it found on one line. A failed system call is printed as `error: NAME OF THE ERRNO`,
//! with exit code 1.

mod bombs;
mod dns;
mod frames;
mod posix;
mod small_files;

use std::{
    ffi::CString,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::FileExt, net::UnixListener, net::UnixStream},
    },
    process::ExitCode,
    time::Instant,
};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> io::Result<String> {
    match args {
        ["getxattr", path, name] => getxattr(path, name),
        ["setxattr", path, name, value] => setxattr(path, name, value),
        ["segments", path] => segments(path),
        ["write-at", path, offset, text] => write_at(path, number(offset)?, text),
        ["socket", path] => socket(path),
        ["open-by-handle", path] => open_by_handle(path),
        ["pause"] => pause(),
        ["posix", folder] => posix::posix(folder),
        ["lock", path] => posix::hold_lock(path),
        ["try-lock", path] => posix::try_lock(path),
        ["flock", path] => posix::hold_flock(path),
        ["try-flock", path] => posix::try_flock(path),
        ["watch", path] => watch(path),
        ["echo", address] => echo(TcpListener::bind(address)?.incoming()),
        ["echo-unix", path] => echo(UnixListener::bind(path)?.incoming()),
        ["ask", address, text] => ask(TcpStream::connect(address)?, text),
        ["ask-unix", path, text] => ask(UnixStream::connect(path)?, text),
        ["ask-vsock", cid, port, hex] => ask_vsock(number(cid)?, number(port)?, hex),
        ["query", server, name, kind] => dns::query(server, name, kind, false),
        ["query-tcp", server, name, kind] => dns::query(server, name, kind, true),
        ["swallow", address] => swallow(&TcpListener::bind(address)?),
        ["send", address, mib] => send(TcpStream::connect(address)?, number(mib)?),
        ["round-trips", address, count] => {
            round_trips(TcpStream::connect(address)?, number(count)?)
        }
        ["flood", address, seconds] => bombs::connect(address, number(seconds)?),
        ["files", folder, most, seconds] => bombs::files(folder, number(most)?, number(seconds)?),
        ["small-files", folder, count] => small_files::small_files(folder, number(count)?),
        ["send-frames", interface, frames @ ..] => frames::send(interface, frames),
        ["receive-frames", interface, seconds] => frames::receive(interface, number(seconds)?),
        ["sequence-secrets"] => frames::sequence_secrets(),
        ["vsock-address", device] => vsock_address(device),
        ["log", count] => log(number(count)?),
        ["hold", mib] => hold(number(mib)? as usize),
        ["allocate", mib] => allocate(number(mib)? as usize),
        ["reserve", mib] => reserve(number(mib)? as usize),
        _ => Err(io::Error::other(format!("unknown arguments {args:?}"))),
    }
}

/// Returns the machine's address in vsock, which the device `/dev/vsock` tells (vsock(7)).
fn vsock_address(device: &str) -> io::Result<String> {
    /// `_IO(7, 0xb9)` of linux/vm_sockets.h.
    const GET_LOCAL_CID: libc::c_ulong = 0x7b9;
    let device = File::open(device)?;
    let mut cid = 0_u32;
    // SAFETY: the request writes a u32.
    check(unsafe { libc::ioctl(device.as_raw_fd(), GET_LOCAL_CID, &raw mut cid) })?;
    Ok(cid.to_string())
}

/// Runs as the sandbox's own process: reaps processes that nothing else reaps, until it is told to
/// end.
fn pause() -> io::Result<String> {
    // SAFETY: a signal set on the stack, which the calls fill, read and forget; waitpid gets no
    // pointer.
    unsafe {
        let mut signals = std::mem::zeroed();
        libc::sigemptyset(&mut signals);
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT] {
            libc::sigaddset(&mut signals, signal);
        }
        check(libc::sigprocmask(
            libc::SIG_BLOCK,
            &signals,
            std::ptr::null_mut(),
        ))?;
        // Being stopped and continued interrupts the wait.
        while [libc::SIGCHLD, -1].contains(&libc::sigwaitinfo(&signals, std::ptr::null_mut())) {
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
        }
    }
    Ok("ended".into())
}

/// Connects by vsock, sends bytes and reports how many come back until the connection is closed.
fn ask_vsock(cid: u64, port: u64, hex: &str) -> io::Result<String> {
    use std::os::fd::FromRawFd;
    // SAFETY: socket with numbers only; the result is checked.
    let socket = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0) };
    check(socket)?;
    // SAFETY: the descriptor that we just got. The stream is used only in ways that hold for every
    // stream socket.
    let mut stream = unsafe { UnixStream::from_raw_fd(socket) };
    // SAFETY: sockaddr_vm is plain data.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid as u32;
    address.svm_port = port as u32;
    let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: an address of the given length.
    check(unsafe { libc::connect(socket, (&raw const address).cast(), length) })?;
    let bytes = (0..hex.len() / 2).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16));
    let bytes = bytes.collect::<Result<Vec<_>, _>>();
    stream.write_all(&bytes.map_err(io::Error::other)?)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    match answer.len() {
        0 => Ok("closed".into()),
        length => Ok(format!("answered by {length} bytes")),
    }
}

fn getxattr(path: &str, name: &str) -> io::Result<String> {
    let (path, name) = (c_string(path)?, c_string(name)?);
    let mut value = [0_u8; 256];
    // SAFETY: both strings end with NUL, and the buffer has the given length.
    let length = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    Ok(String::from_utf8_lossy(&value[..length]).into_owned())
}

fn setxattr(path: &str, name: &str, value: &str) -> io::Result<String> {
    let (path, name) = (c_string(path)?, c_string(name)?);
    // SAFETY: both strings end with NUL, and the value has the given length.
    let done = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    check(done)?;
    Ok("set".into())
}

/// Reports where the data of a file lies, by SEEK_DATA and SEEK_HOLE, and how much of it is
/// allocated.
fn segments(path: &str) -> io::Result<String> {
    use std::os::{fd::AsRawFd, unix::fs::MetadataExt};
    let file = std::fs::File::open(path)?;
    let metadata = file.metadata()?;
    let end = metadata.len() as i64;
    let mut found = Vec::new();
    let mut at = 0;
    while at < end {
        // SAFETY: lseek on an open descriptor touches no memory.
        let data = unsafe { libc::lseek(file.as_raw_fd(), at, libc::SEEK_DATA) };
        if data < 0 {
            break;
        }
        // SAFETY: as above.
        let hole = unsafe { libc::lseek(file.as_raw_fd(), data, libc::SEEK_HOLE) };
        if hole < 0 {
            return Err(io::Error::last_os_error());
        }
        found.push(format!("{data}-{hole}"));
        at = hole;
    }
    Ok(format!(
        "size {end} allocated {} data {}",
        metadata.blocks() * 512,
        found.join(",")
    ))
}

fn write_at(path: &str, offset: u64, text: &str) -> io::Result<String> {
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    file.write_all_at(text.as_bytes(), offset)?;
    Ok("written".into())
}

/// Binds a socket at the path, connects to it and sends a word through it.
fn socket(path: &str) -> io::Result<String> {
    let listener = UnixListener::bind(path)?;
    let mut near = UnixStream::connect(path)?;
    let (mut far, _) = listener.accept()?;
    near.write_all(b"through the socket")?;
    drop(near);
    io::read_to_string(&mut far)
}

/// Prints each rename in a folder, from what to what, until the process is killed.
fn watch(path: &str) -> io::Result<String> {
    let path = c_string(path)?;
    // SAFETY: the path ends with NUL; both calls touch no other memory.
    let fd = unsafe {
        let fd = libc::inotify_init1(libc::IN_CLOEXEC);
        check(fd)?;
        check(libc::inotify_add_watch(
            fd,
            path.as_ptr(),
            libc::IN_MOVED_TO,
        ))?;
        fd
    };
    println!("watching");
    let mut events = [0_u8; 4096];
    loop {
        // SAFETY: the buffer has the given length.
        let length = unsafe { libc::read(fd, events.as_mut_ptr().cast(), events.len()) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        let mut rest = &events[..length];
        // inotify(7): four words, the last of which is the length of the name that follows.
        while let Some((head, tail)) = rest.split_first_chunk::<16>() {
            let size = u32::from_ne_bytes([head[12], head[13], head[14], head[15]]) as usize;
            let (name, next) = tail.split_at(size.min(tail.len()));
            let name = String::from_utf8_lossy(name);
            println!("moved {}", name.trim_end_matches('\0'));
            rest = next;
        }
    }
}

/// Sends back what each connection sends, until the process is killed.
fn echo<S>(connections: impl Iterator<Item = io::Result<S>>) -> io::Result<String>
where
    S: Read + Write + Send + 'static,
{
    println!("listening");
    for connection in connections {
        let mut connection = connection?;
        std::thread::spawn(move || {
            let mut buffer = [0; 64 * 1024];
            while let Ok(length @ 1..) = connection.read(&mut buffer) {
                if connection.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
        });
    }
    Ok("no more connections".into())
}

/// Sends a line and receives one.
fn ask(mut connection: impl Read + Write, text: &str) -> io::Result<String> {
    writeln!(connection, "{text}")?;
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// Receives what each connection sends and prints the number of bytes.
fn swallow(listener: &TcpListener) -> io::Result<String> {
    println!("listening");
    loop {
        let (mut connection, _) = listener.accept()?;
        let bytes = io::copy(&mut connection, &mut io::sink())?;
        writeln!(connection, "{bytes}")?;
    }
}

/// Sends `mib` MiB. Returns the time until the other side had all of them.
fn send(mut connection: TcpStream, mib: u64) -> io::Result<String> {
    let block = vec![1_u8; 256 * 1024];
    let start = Instant::now();
    for _ in 0..mib * 4 {
        connection.write_all(&block)?;
    }
    connection.shutdown(Shutdown::Write)?;
    let answer = io::read_to_string(&mut connection)?;
    let time = start.elapsed();
    if answer.trim() != (mib << 20).to_string() {
        return Err(io::Error::other(format!("{answer:?} bytes arrived")));
    }
    Ok(format!("{} microseconds", time.as_micros()))
}

/// Sends a byte and waits for it, `count` times. Returns the median time.
fn round_trips(mut connection: TcpStream, count: u64) -> io::Result<String> {
    connection.set_nodelay(true)?;
    let mut times = Vec::new();
    for _ in 0..count.max(1) {
        let start = Instant::now();
        connection.write_all(b"x")?;
        connection.read_exact(&mut [0])?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(format!(
        "{} microseconds",
        times[times.len() / 2].as_micros()
    ))
}

/// Opens the root of a file system by a made-up handle, as an escape from a shared directory would.
fn open_by_handle(path: &str) -> io::Result<String> {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        data: [u8; 8],
    }
    let mount = std::fs::File::open(path)?;
    // Inode 2 is the root of ext4; generation 0 (FILEID_INO32_GEN).
    let handle = Handle {
        bytes: 8,
        kind: 1,
        data: [2, 0, 0, 0, 0, 0, 0, 0],
    };
    use std::os::fd::AsRawFd;
    // SAFETY: the handle says its own length and lives through the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &handle,
            libc::O_RDONLY,
        )
    };
    check(fd as i32)?;
    let opened = std::fs::read_link(format!("/proc/self/fd/{fd}"))?;
    Ok(String::from_utf8_lossy(opened.as_os_str().as_bytes()).into_owned())
}

/// Takes and touches memory, MiB by MiB, then reports it.
fn allocate(mib: usize) -> io::Result<String> {
    let mut taken = Vec::new();
    for _ in 0..mib {
        let mut piece = vec![0_u8; 1 << 20];
        piece.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        taken.push(piece);
    }
    let touched = taken.iter().flat_map(|piece| piece.iter().step_by(4096));
    Ok(format!(
        "allocated {} pages",
        touched.map(|&byte| usize::from(byte)).sum::<usize>()
    ))
}

/// Prints numbered lines of 100 bytes as a program logs them, each with its own write.
fn log(count: u64) -> io::Result<String> {
    let mut stdout = io::stdout().lock();
    for number in 0..count {
        writeln!(stdout, "{number:099}")?;
    }
    Ok("all".into())
}

/// Takes and touches memory and keeps it for half a minute.
fn hold(mib: usize) -> io::Result<String> {
    let held = vec![1_u8; mib << 20];
    std::thread::sleep(std::time::Duration::from_secs(30));
    Ok(format!("held {} bytes", held.len()))
}

/// Takes memory at once and touches one page of it.
fn reserve(mib: usize) -> io::Result<String> {
    // SAFETY: a new mapping of which the first byte is written, and which nothing else refers to.
    let byte = unsafe {
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        let memory = libc::mmap(std::ptr::null_mut(), mib << 20, access, kind, -1, 0);
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        memory.cast::<u8>().write(1);
        memory.cast::<u8>().read()
    };
    Ok(format!("reserved {byte}"))
}

fn number(text: &str) -> io::Result<u64> {
    text.parse()
        .map_err(|_| io::Error::other(format!("{text} is no number")))
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(io::Error::other)
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
