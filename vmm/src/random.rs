//! Random numbers of the host's kernel.

use std::{
    fs::File,
    io::{self, Read},
};

/// Returns as many random bytes as the caller's array has (random(4)).
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
