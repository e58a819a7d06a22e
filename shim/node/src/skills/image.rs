//! Recognises the file system in a skill's file.

use std::{fs::File, io, os::unix::fs::FileExt};

/// The first bytes of a squashfs (kernel, fs/squashfs/squashfs_fs.h).
const SQUASHFS_MAGIC: [u8; 4] = *b"hsqs";
/// The magic number of an EROFS at [`EROFS_OFFSET`] (kernel, fs/erofs/erofs_fs.h,
/// `EROFS_SUPER_MAGIC_V1`, little endian).
pub(super) const EROFS_MAGIC: [u8; 4] = 0xe0f5_e1e2_u32.to_le_bytes();
const EROFS_OFFSET: u64 = 1024;

/// The type under which the kernel would mount the file, if a skill can have that type.
pub(super) fn fs_type(file: &File) -> io::Result<Option<&'static str>> {
    let has = |magic: [u8; 4], offset| {
        let mut found = [0; 4];
        match file.read_exact_at(&mut found, offset) {
            Ok(()) => Ok(found == magic),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    };
    Ok(if has(SQUASHFS_MAGIC, 0)? {
        Some("squashfs")
    } else if has(EROFS_MAGIC, EROFS_OFFSET)? {
        Some("erofs")
    } else {
        None
    })
}
