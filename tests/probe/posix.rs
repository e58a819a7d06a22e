//! Tries in a folder what POSIX requires of a file system. Each part ends with its name, or fails
//! with what does not hold.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
};

/// A block size that O_DIRECT accepts everywhere.
const BLOCK: usize = 4096;

/// Tries all parts. Returns their names.
pub fn posix(folder: &str) -> io::Result<String> {
    let folder = Path::new(folder);
    type Part = (&'static str, fn(&Path) -> io::Result<()>);
    let parts: [Part; 9] = [
        ("lock", lock),
        ("flock", flock),
        ("rename", rename),
        ("mmap", mmap),
        ("direct", direct),
        ("xattr", xattr),
        ("fsync", fsync),
        ("unlinked", unlinked),
        ("append", append),
    ];
    let mut names = Vec::new();
    for (name, part) in parts {
        let path = folder.join(name);
        part(&path).map_err(|error| io::Error::other(format!("{name}: {error}")))?;
        names.push(name);
    }
    Ok(names.join(" "))
}

fn expect(is_so: bool, what: &str) -> io::Result<()> {
    match is_so {
        true => Ok(()),
        false => Err(io::Error::other(format!("not so: {what}"))),
    }
}

fn both(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// Tries a record lock without waiting.
fn try_record_lock(file: &File) -> bool {
    // SAFETY: plain integers; all zero is the whole file from its beginning.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    // SAFETY: a structure that lives through the call.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &lock) == 0 }
}

/// Takes a record lock and keeps it until the process is killed.
pub fn hold_lock(path: &str) -> io::Result<String> {
    let file = both(Path::new(path))?;
    expect(try_record_lock(&file), "the lock is free")?;
    println!("locked");
    loop {
        std::thread::park();
    }
}

/// Reports whether a record lock could be taken.
pub fn try_lock(path: &str) -> io::Result<String> {
    let free = try_record_lock(&both(Path::new(path))?);
    Ok(if free { "free" } else { "taken" }.to_owned())
}

/// Takes the lock of flock(2) and keeps it until the process is killed.
pub fn hold_flock(path: &str) -> io::Result<String> {
    let file = both(Path::new(path))?;
    file.lock()?;
    println!("locked");
    loop {
        std::thread::park();
    }
}

/// Reports whether the lock of flock(2) could be taken, which needs no right to write.
pub fn try_flock(path: &str) -> io::Result<String> {
    match File::open(path)?.try_lock() {
        Ok(()) => Ok("free".to_owned()),
        Err(TryLockError::WouldBlock) => Ok("taken".to_owned()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// A record lock of one process can't be taken by another until the first has ended.
fn lock(path: &Path) -> io::Result<()> {
    let file = both(path)?;
    expect(try_record_lock(&file), "the first has the lock")?;
    // SAFETY: the child makes system calls only, then exits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let had = try_record_lock(&file);
        // SAFETY: ends this process.
        unsafe { libc::_exit(i32::from(had)) };
    }
    let mut status = 0;
    // SAFETY: our child, and an integer to write to.
    unsafe { libc::waitpid(child, &mut status, 0) };
    expect(status == 0, "the second does not have the lock")
}

fn flock(path: &Path) -> io::Result<()> {
    let (one, two) = (both(path)?, both(path)?);
    one.lock()?;
    expect(two.try_lock().is_err(), "the second does not have the lock")?;
    one.unlock()?;
    two.try_lock().map_err(io::Error::from)
}

/// When a file takes another's name, a process that has the old file open keeps it.
fn rename(path: &Path) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(path, "old")?;
    let mut old = File::open(path)?;
    fs::write(&new, "new")?;
    fs::rename(&new, path)?;
    expect(
        fs::read_to_string(path)? == "new",
        "the name is the new file's",
    )?;
    expect(
        io::read_to_string(&mut old)? == "old",
        "the old file is still read",
    )?;
    expect(!new.exists(), "the first name is gone")
}

/// What is written through a shared mapping is read from the file, and vice versa.
fn mmap(path: &Path) -> io::Result<()> {
    let file = both(path)?;
    file.set_len(BLOCK as u64)?;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of one page of an open file.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            BLOCK,
            access,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping has this length, and nothing else refers to it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(page.cast::<u8>(), BLOCK) };
    bytes[..4].copy_from_slice(b"page");
    // SAFETY: the mapping and its length.
    unsafe { libc::msync(page, BLOCK, libc::MS_SYNC) };
    let mut read = [0; 4];
    file.read_exact_at(&mut read, 0)?;
    expect(&read == b"page", "the file has what the mapping was given")?;
    file.write_all_at(b"file", 0)?;
    let seen = bytes[..4] == *b"file";
    // SAFETY: the mapping and its length; `bytes` is not used any more.
    unsafe { libc::munmap(page, BLOCK) };
    expect(seen, "the mapping has what the file was given")
}

fn direct(path: &Path) -> io::Result<()> {
    #[repr(align(4096))]
    struct Aligned([u8; BLOCK]);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    file.write_all_at(&Aligned([7; BLOCK]).0, BLOCK as u64)?;
    let mut back = Aligned([0; BLOCK]);
    file.read_exact_at(&mut back.0, BLOCK as u64)?;
    expect(back.0 == [7; BLOCK], "what was written is read")?;
    expect(
        fs::read(path)?[BLOCK..] == [7; BLOCK],
        "also without O_DIRECT",
    )
}

fn xattr(path: &Path) -> io::Result<()> {
    fs::write(path, "")?;
    let path = path.to_string_lossy();
    crate::setxattr(&path, "user.colour", "blue")?;
    crate::setxattr(&path, "user.colour", "red")?;
    expect(
        crate::getxattr(&path, "user.colour")? == "red",
        "the last value is read",
    )?;
    expect(
        crate::getxattr(&path, "user.other").is_err(),
        "no other is there",
    )
}

fn fsync(path: &Path) -> io::Result<()> {
    let mut file = both(path)?;
    file.write_all(b"durable")?;
    file.sync_all()?;
    file.sync_data()?;
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

fn unlinked(path: &Path) -> io::Result<()> {
    let mut file = both(path)?;
    fs::remove_file(path)?;
    file.write_all(b"still here")?;
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    expect(
        text == "still here",
        "an open file without a name is a file",
    )
}

fn append(path: &Path) -> io::Result<()> {
    let open = || File::options().append(true).create(true).open(path);
    let (mut one, mut two) = (open()?, open()?);
    for _ in 0..100 {
        one.write_all(b"1")?;
        two.write_all(b"2")?;
    }
    expect(
        fs::read_to_string(path)? == "12".repeat(100),
        "nothing is overwritten",
    )
}
