//! Fuzzes the unpacking of image layers: whatever they contain, nothing beside the root file system
//! may change. Needs root.
#![no_main]

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt,
    panic,
    path::Path,
    sync::{atomic::AtomicBool, Once},
    thread,
};

use arbitrary::Arbitrary;
use caisson_fuzz::{
    memory,
    run::{image::Image, layers},
};
use libfuzzer_sys::fuzz_target;
use nix::sys::resource::{setrlimit, Resource};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

const LIMIT: usize = 64 << 20;
/// The largest file that a layer can make.
const MAX_FILE: u64 = 1 << 20;

#[derive(Arbitrary, Debug)]
struct Layer<'a> {
    entries: Vec<Entry<'a>>,
}

#[derive(Arbitrary, Debug)]
struct Entry<'a> {
    path: Vec<Part<'a>>,
    what: What<'a>,
    mode: u16,
    owner: u8,
    mtime: u64,
    /// The size in the header. `None` is the content's.
    size: Option<u64>,
    /// A pax record before the entry.
    record: Option<(Record, &'a str)>,
}

/// A part of a path. There are few names, so that entries collide.
#[derive(Arbitrary, Debug)]
enum Part<'a> {
    A,
    B,
    Up,
    Here,
    Root,
    WhiteoutA,
    WhiteoutUp,
    Opaque,
    Beside,
    Other(&'a str),
}

#[derive(Arbitrary, Debug)]
enum What<'a> {
    File(&'a [u8]),
    Folder,
    Symlink(Vec<Part<'a>>),
    Hard(Vec<Part<'a>>),
    Device(bool, u32, u32),
    Fifo,
    Sparse(u64, &'a [u8]),
    Kind(u8, &'a [u8]),
}

#[derive(Arbitrary, Debug)]
enum Record {
    Path,
    LinkPath,
    Size,
    Uid,
    Attribute,
    Sparse,
    Any,
}

fn path(parts: &[Part]) -> String {
    let text = |part: &Part| match part {
        Part::A => "a".to_owned(),
        Part::B => "b".to_owned(),
        Part::Up => "..".to_owned(),
        Part::Here => ".".to_owned(),
        Part::Root => String::new(),
        Part::WhiteoutA => ".wh.a".to_owned(),
        Part::WhiteoutUp => ".wh...".to_owned(),
        Part::Opaque => ".wh..wh..opq".to_owned(),
        Part::Beside => "beside".to_owned(),
        Part::Other(text) => (*text).to_owned(),
    };
    let parts: Vec<_> = parts.iter().take(6).map(text).collect();
    parts.join("/")
}

impl Entry<'_> {
    fn write(&self, tar: &mut Vec<u8>) {
        if let Some((kind, value)) = &self.record {
            let key = match kind {
                Record::Path => "path",
                Record::LinkPath => "linkpath",
                Record::Size => "size",
                Record::Uid => "uid",
                Record::Attribute => "SCHILY.xattr.user.x",
                Record::Sparse => "GNU.sparse.major",
                Record::Any => value,
            };
            // The record's length counts its own digits, which are three for every short record.
            let rest = format!(" {key}={value}\n");
            let record = format!("{:03}{rest}", rest.len() + 3);
            let mut header = header("pax", EntryType::XHeader);
            append(tar, &mut header, record.as_bytes(), None);
        }
        let mut link = String::new();
        let (kind, content): (_, &[u8]) = match &self.what {
            What::File(bytes) => (EntryType::Regular, bytes),
            What::Folder => (EntryType::Directory, &[]),
            What::Symlink(target) => {
                link = path(target);
                (EntryType::Symlink, &[])
            }
            What::Hard(target) => {
                link = path(target);
                (EntryType::Link, &[])
            }
            What::Device(true, ..) => (EntryType::Char, &[]),
            What::Device(false, ..) => (EntryType::Block, &[]),
            What::Fifo => (EntryType::Fifo, &[]),
            What::Sparse(_, bytes) => (EntryType::GNUSparse, bytes),
            What::Kind(kind, bytes) => (EntryType::new(*kind), bytes),
        };
        let mut header = header(&path(&self.path), kind);
        put(&mut header.as_old_mut().linkname, link.as_bytes());
        header.set_mode(self.mode.into());
        header.set_uid(self.owner.into());
        header.set_gid(self.owner.into());
        header.set_mtime(self.mtime);
        if let What::Device(_, major, minor) = self.what {
            let _ = header
                .set_device_major(major)
                .and_then(|()| header.set_device_minor(minor));
        }
        if let (What::Sparse(size, _), Some(gnu)) = (&self.what, header.as_gnu_mut()) {
            gnu.set_real_size(*size);
            gnu.sparse[0].set_offset(0);
            gnu.sparse[0].set_length(content.len() as u64);
            gnu.sparse[1].set_offset(*size);
            gnu.sparse[1].set_length(0);
        }
        append(tar, &mut header, content, self.size);
    }
}

fn header(name: &str, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    put(&mut header.as_old_mut().name, name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header
}

fn put(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

fn append(tar: &mut Vec<u8>, header: &mut Header, content: &[u8], size: Option<u64>) {
    header.set_size(size.unwrap_or(content.len() as u64));
    header.set_cksum();
    tar.extend(header.as_bytes());
    tar.extend(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// Returns an archive in the format of `docker save`.
fn archive(layers: &[Layer]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder
            .append_data(&mut header, name, bytes)
            .expect("an entry");
    };
    let (mut names, mut diff_ids) = (Vec::new(), Vec::new());
    for (number, layer) in layers.iter().take(3).enumerate() {
        let mut tar = Vec::new();
        layer
            .entries
            .iter()
            .take(32)
            .for_each(|entry| entry.write(&mut tar));
        diff_ids.push(format!("sha256:{}", hex::encode(Sha256::digest(&tar))));
        names.push(format!("{number}.tar"));
        add(&names[number], &tar);
    }
    let config = serde_json::json!({"rootfs": {"diff_ids": diff_ids}});
    add("config.json", config.to_string().as_bytes());
    let manifest = serde_json::json!([{"Config": "config.json", "Layers": names}]);
    add("manifest.json", manifest.to_string().as_bytes());
    builder.into_inner().expect("the archive")
}

/// Prepares the process once. A file that is too large becomes an error in place of a signal. A
/// panic in the thread whose root is the image's becomes an error too, since libFuzzer would look
/// for its own files in that root.
fn prepare() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        let (main, abort) = (thread::current().id(), panic::take_hook());
        panic::set_hook(Box::new(move |info| match thread::current().id() == main {
            true => abort(info),
            false => eprintln!("{info}"),
        }));
        setrlimit(Resource::RLIMIT_FSIZE, MAX_FILE, MAX_FILE).expect("a limit");
        // SAFETY: a disposition that runs no code.
        unsafe {
            nix::sys::signal::signal(
                nix::sys::signal::Signal::SIGXFSZ,
                nix::sys::signal::SigHandler::SigIgn,
            )
        }
        .expect("ignored");
    });
}

fuzz_target!(|layers: Vec<Layer>| {
    prepare();
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let (file, root, beside) = (
        dir.path().join("image.tar"),
        dir.path().join("root"),
        dir.path().join("beside"),
    );
    if fs::write(&file, archive(&layers)).is_err() {
        return;
    }
    fs::create_dir(&root).expect("a folder");
    fs::create_dir(&beside).expect("a folder");
    fs::write(beside.join("a"), "of the host").expect("a file");
    let before = looked(&beside);
    memory::bounded(LIMIT, || {
        let image =
            Image::open(&file, &dir.path().join("plain")).expect("the archive that was just made");
        if let Err(error) = layers::unpack(&image, &root, &AtomicBool::new(false)) {
            assert!(!error.to_string().contains("panicked"), "{error:#}");
        }
    });
    assert_eq!(looked(&beside), before, "a file beside the root");
    assert!(fs::symlink_metadata(&root).expect("the root").is_dir());
    let mut names: Vec<_> = fs::read_dir(dir.path())
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["beside", "image.tar", "root"]);
});

/// Returns the visible state of a folder and its contents.
fn looked(folder: &Path) -> Vec<(OsString, u32, u32, u64, i64, Vec<u8>)> {
    let look = |path: &Path| {
        let metadata = fs::symlink_metadata(path).expect("metadata");
        let bytes = fs::read(path).unwrap_or_default();
        (
            path.as_os_str().to_owned(),
            metadata.mode(),
            metadata.uid(),
            metadata.nlink(),
            metadata.mtime(),
            bytes,
        )
    };
    let entries = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| look(&entry.expect("an entry").path()));
    let mut all: Vec<_> = entries.chain([look(folder)]).collect();
    all.sort();
    all
}
