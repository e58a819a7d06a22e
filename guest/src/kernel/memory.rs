//! The guest's memory.

use std::num::NonZeroUsize;

use nix::sys::{
    mman::{mmap_anonymous, munmap, MapFlags, ProtFlags},
    sysinfo::sysinfo,
};

use crate::{Error, Result};

/// How much of the free memory is left alone, in bytes, for whatever else needs some meanwhile.
const LEFT: u64 = 8 << 20;

/// Fills the memory that is free with zeros.
///
/// Much of it still holds what the kernel needed while it booted. In a template, a page of zeros
/// takes no room, and a machine that starts from the template need not read it.
pub fn clear_what_is_free() -> Result<()> {
    let failed = || Error::system::<nix::Error>("clear the free memory");
    let free = sysinfo().map_err(failed())?.ram_unused();
    let length = usize::try_from(free.saturating_sub(LEFT)).unwrap_or_default();
    let Some(length) = NonZeroUsize::new(length) else {
        return Ok(());
    };
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
    // SAFETY: nothing refers to the mapping, which is at an address of the kernel's choice.
    unsafe {
        let cleared = mmap_anonymous(None, length, access, flags).map_err(failed())?;
        munmap(cleared, length.get()).map_err(failed())
    }
}
