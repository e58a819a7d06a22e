//! The guest's address (its CID, vsock(7)), by which no two machines are alike.

use std::io;

use crate::random;

/// Draws an address. 0 to 2 are taken (vsock(7)), and the upper half is not used.
pub(super) fn draw() -> io::Result<u32> {
    Ok((u32::from_ne_bytes(random::bytes()?) >> 1).max(3))
}
