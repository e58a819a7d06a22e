//! Writes a cpio archive in the kernel's "newc" format
//! (Documentation/driver-api/early-userspace/buffer-format.rst). The same entries give the same
//! bytes: no times, no owners, entries sorted by name.

use std::collections::BTreeMap;

/// What a name stands for.
enum Entry {
    Dir,
    File { mode: u32, content: Vec<u8> },
    Symlink { target: String },
    CharDevice { mode: u32, major: u32, minor: u32 },
}

const S_IFDIR: u32 = 0o040000;
const S_IFREG: u32 = 0o100000;
const S_IFLNK: u32 = 0o120000;
const S_IFCHR: u32 = 0o020000;

/// An archive that is being built. Names are relative, without a leading slash; the folders above a
/// name are added automatically.
#[derive(Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    pub fn dir(&mut self, name: &str) {
        self.add(name, Entry::Dir);
    }

    pub fn file(&mut self, name: &str, mode: u32, content: Vec<u8>) {
        self.add(name, Entry::File { mode, content });
    }

    pub fn symlink(&mut self, name: &str, target: &str) {
        let target = target.to_owned();
        self.add(name, Entry::Symlink { target });
    }

    pub fn char_device(&mut self, name: &str, mode: u32, (major, minor): (u32, u32)) {
        self.add(name, Entry::CharDevice { mode, major, minor });
    }

    fn add(&mut self, name: &str, entry: Entry) {
        for (slash, _) in name.match_indices('/') {
            let parent = name[..slash].to_owned();
            self.entries.entry(parent).or_insert(Entry::Dir);
        }
        self.entries.insert(name.to_owned(), entry);
    }

    /// Returns the finished archive.
    pub fn into_bytes(self) -> Vec<u8> {
        let mut out = Vec::new();
        // Sorted by name, so a folder always comes before what is in it.
        for (index, (name, entry)) in self.entries.iter().enumerate() {
            let (mode, device, content) = match entry {
                Entry::Dir => (S_IFDIR | 0o755, (0, 0), &[][..]),
                Entry::File { mode, content } => (S_IFREG | mode, (0, 0), &content[..]),
                Entry::Symlink { target } => (S_IFLNK | 0o777, (0, 0), target.as_bytes()),
                Entry::CharDevice { mode, major, minor } => {
                    (S_IFCHR | mode, (*major, *minor), &[][..])
                }
            };
            write_entry(&mut out, index as u32 + 1, name, mode, device, content);
        }
        write_entry(&mut out, 0, "TRAILER!!!", 0, (0, 0), &[]);
        pad(&mut out, 512);
        out
    }
}

fn write_entry(
    out: &mut Vec<u8>,
    inode: u32,
    name: &str,
    mode: u32,
    device: (u32, u32),
    content: &[u8],
) {
    let links = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
    let fields = [
        inode,
        mode,
        0, // uid
        0, // gid
        links,
        0, // mtime
        content.len() as u32,
        0, // device that holds the file
        0,
        device.0,
        device.1,
        name.len() as u32 + 1,
        0, // checksum, unused in this form
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out, 4);
    out.extend_from_slice(content);
    pad(out, 4);
}

fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.symlink("sbin/modprobe", "/init");
        archive.file("init", 0o755, b"#!odd".to_vec());
        archive.char_device("dev/console", 0o600, (5, 1));
        archive.dir("proc");
        archive.into_bytes()
    }

    #[test]
    fn archive_made_twice_is_the_same() {
        assert_eq!(sample(), sample());
        assert_eq!(sample().len() % 512, 0);
    }

    #[test]
    fn archive_is_listed_by_cpio() {
        let mut child = Command::new("cpio")
            .args(["-tvn", "--quiet"])
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let seen: Vec<(&str, &str)> = lines
            .iter()
            .map(|words| {
                let name = words.iter().skip_while(|word| **word != "1970").nth(1);
                (words[0], *name.unwrap())
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("drwxr-xr-x", "dev"),
                ("crw-------", "dev/console"),
                ("-rwxr-xr-x", "init"),
                ("drwxr-xr-x", "proc"),
                ("drwxr-xr-x", "sbin"),
                ("lrwxrwxrwx", "sbin/modprobe"),
            ]
        );
    }
}
