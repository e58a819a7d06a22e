//! Takes as much of a resource as there is.

use std::{
    fs::File,
    io,
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

/// The maximum number of connections that are open at a time.
const CONNECTIONS: usize = 500;

/// Keeps connecting for this number of seconds, and holds many connections open.
pub fn connect(address: &str, seconds: u64) -> io::Result<String> {
    let start = Instant::now();
    let (mut made, mut refused) = (0, 0);
    let mut held = Vec::new();
    while start.elapsed() < Duration::from_secs(seconds) {
        match TcpStream::connect(address) {
            Ok(connection) => {
                made += 1;
                held.push(connection);
            }
            Err(_) => refused += 1,
        }
        if held.len() == CONNECTIONS {
            held.clear();
        }
    }
    Ok(format!("{made} connections, {refused} refused"))
}

/// Makes empty files until there are `most`, the time is over or no more can be made.
pub fn files(folder: &str, most: u64, seconds: u64) -> io::Result<String> {
    let start = Instant::now();
    for number in 0..most {
        if start.elapsed() > Duration::from_secs(seconds) {
            return Ok(format!("{number} files in {seconds} s"));
        }
        if let Err(error) = File::create(Path::new(folder).join(number.to_string())) {
            return Ok(format!("{number} files, then: {error}"));
        }
    }
    Ok(format!("{most} files"))
}
