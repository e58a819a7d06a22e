//! The guest's address (its CID, vsock(7)), by which no two machines are alike.

use std::{
    fs::File,
    io::{self, Read},
};

/// Draws an address. 0 to 2 are taken (vsock(7)), and the upper half is not used.
pub(super) fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok((u32::from_ne_bytes(bytes) >> 1).max(3))
}
