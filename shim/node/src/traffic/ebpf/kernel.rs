//! Has the kernel make maps and load programs: bpf(2).
//!
//! A map lives as long as a descriptor or a loaded program has it, a program as long as it is
//! attached somewhere or a descriptor has it. So both go with what they are made for.

use std::{
    ffi::c_void,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use super::Insn;

/// Commands (linux/bpf.h, `enum bpf_cmd`).
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const MAP_DELETE: libc::c_long = 3;
const PROG_LOAD: libc::c_long = 5;
/// The type of programs for traffic control (linux/bpf.h, `enum bpf_prog_type`).
const SCHED_CLS: u32 = 3;
/// A map that takes memory for what is in it only, which a trie must be (linux/bpf.h).
const NO_PREALLOC: u32 = 1;
/// The longest explanation of the verifier that an error shows, in bytes.
const MAX_EXPLANATION: usize = 64 << 10;

/// The kinds of maps (linux/bpf.h, `enum bpf_map_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind {
    Hash = 1,
    Array = 2,
    /// Forgets what was not used for the longest time when it is full.
    LruHash = 9,
    /// Finds the longest prefix. A key begins with the number of its bits that count.
    Trie = 11,
}

/// A map.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    key: usize,
    value: usize,
}

/// The arguments of the commands for maps' contents (linux/bpf.h, `union bpf_attr`).
#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[repr(C)]
struct ProgLoad {
    kind: u32,
    count: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

impl Map {
    /// Makes a map for keys and values of so many bytes.
    pub fn new(kind: MapKind, key: usize, value: usize, most: u32) -> io::Result<Self> {
        let fd = bpf(
            MAP_CREATE,
            &MapCreate {
                kind: kind as u32,
                key_size: key as u32,
                value_size: value as u32,
                max_entries: most,
                flags: if kind == MapKind::Trie {
                    NO_PREALLOC
                } else {
                    0
                },
            },
        )?;
        // SAFETY: the command has returned a new descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, key, value })
    }

    /// Sets the value of a key.
    ///
    /// # Panics
    /// The key or the value has another length than the map's.
    pub fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!(value.len(), self.value);
        let value = value.as_ptr().cast_mut().cast();
        self.element(MAP_UPDATE, key, value).map(drop)
    }

    /// Removes a key. Succeeds if it is not there.
    pub fn remove(&self, key: &[u8]) -> io::Result<()> {
        match self.element(MAP_DELETE, key, std::ptr::null_mut()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Returns the value of a key, if there is one.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value];
        match self.element(MAP_LOOKUP, key, value.as_mut_ptr().cast()) {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn element(&self, command: libc::c_long, key: &[u8], value: *mut c_void) -> io::Result<i32> {
        assert_eq!(key.len(), self.key);
        bpf(
            command,
            &Element {
                map: self.fd.as_raw_fd() as u32,
                padding: 0,
                key: key.as_ptr() as u64,
                value: value as u64,
                flags: 0,
            },
        )
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Loads a program for traffic control.
///
/// # Errors
/// What the kernel says, with the last line of its verifier if that refuses the program.
pub fn load(program: &[Insn]) -> io::Result<OwnedFd> {
    let attempt = |explanation: &mut [u8]| {
        let logs = !explanation.is_empty();
        bpf(
            PROG_LOAD,
            &ProgLoad {
                kind: SCHED_CLS,
                count: program.len() as u32,
                insns: program.as_ptr() as u64,
                license: c"Apache-2.0".as_ptr() as u64,
                log_level: u32::from(logs),
                log_size: explanation.len() as u32,
                log: match logs {
                    true => explanation.as_mut_ptr() as u64,
                    false => 0,
                },
                kernel_version: 0,
                flags: 0,
            },
        )
    };
    let loaded = attempt(&mut []).map_err(|error| {
        let mut explanation = vec![0; MAX_EXPLANATION];
        let _ = attempt(&mut explanation);
        let end = explanation.iter().position(|byte| *byte == 0);
        explanation.truncate(end.unwrap_or(MAX_EXPLANATION));
        let text = String::from_utf8_lossy(&explanation);
        // Behind the reason, the verifier says how much it has looked at.
        let reason = text
            .lines()
            .rev()
            .find(|line| !line.starts_with("processed "));
        match reason {
            Some(reason) => io::Error::new(error.kind(), format!("{error}: {reason}")),
            None => error,
        }
    })?;
    // SAFETY: the command has returned a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(loaded) })
}

/// Calls bpf(2).
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: the arguments of the command, whose pointers are to memory that lives through the
    // call and has the lengths that the map was made with, or those beside the pointers.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    match done {
        0.. => Ok(done as i32),
        _ => Err(io::Error::last_os_error()),
    }
}
