//! Boots the same kernel in a bare QEMU on the same machine, up to the first line of an init that
//! does nothing else.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use caisson_tests::{paths, Node};

const FIRST_LINE: &str = "the first line of init";

/// A boot that can be repeated.
pub struct Boot {
    qemu: PathBuf,
    arguments: Vec<String>,
}

impl Boot {
    /// Takes machine, CPU, memory and kernel command line from the QEMU of a Caisson container.
    pub fn like_ours(node: &Node) -> Result<Self> {
        let container = node.container("busybox").args(["sleep", "1000"]).start()?;
        let line = fs::read(format!("/proc/{}/cmdline", container.vmm()?))?;
        drop(container);
        let line: Vec<_> = line
            .split(|&byte| byte == 0)
            .map(String::from_utf8_lossy)
            .collect();
        let mut arguments = Vec::new();
        for pair in line.windows(2) {
            if [
                "-machine", "-accel", "-cpu", "-smp", "-m", "-object", "-append",
            ]
            .contains(&pair[0].as_ref())
            {
                // A descriptor that the container's QEMU was given is another file here.
                let own = pair[1].split(',').filter(|option| !option.contains("-fd="));
                arguments.extend([pair[0].to_string(), own.collect::<Vec<_>>().join(",")]);
            }
        }
        let initramfs = node.dir().join("bare.cpio");
        fs::write(&initramfs, archive()?)?;
        let kernel = paths::dist().join("guest/vmlinux");
        arguments.extend(["-kernel".into(), kernel.display().to_string()]);
        arguments.extend(["-initrd".into(), initramfs.display().to_string()]);
        let rest = [
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            "stdio",
        ];
        arguments.extend(rest.map(String::from));
        let firmware = paths::qemu().with_file_name("roms");
        if firmware.exists() {
            arguments.extend(["-L".into(), firmware.display().to_string()]);
        }
        Ok(Self {
            qemu: paths::qemu(),
            arguments,
        })
    }

    /// Measures the time from the start of QEMU to the line.
    pub fn time(&self) -> Result<Duration> {
        let start = Instant::now();
        let child = Command::new(&self.qemu)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("start QEMU")?;
        let mut qemu = Killed(child);
        let console = qemu.0.stdout.take().context("console")?;
        for line in BufReader::new(console).split(b'\n') {
            if String::from_utf8_lossy(&line?).contains(FIRST_LINE) {
                return Ok(start.elapsed());
            }
        }
        anyhow::bail!("QEMU ended before init wrote its line")
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns an initramfs of busybox and a script (kernel,
/// Documentation/driver-api/early-userspace/buffer-format.rst).
fn archive() -> Result<Vec<u8>> {
    let busybox = fs::read(Path::new("/bin/busybox")).context("apt-get install busybox-static")?;
    let script = format!("#!/bin/busybox sh\necho {FIRST_LINE}\nexec /bin/busybox sleep 1000\n");
    let mut archive = Vec::new();
    entry(&mut archive, "bin", 0o040_755, &[])?;
    entry(&mut archive, "bin/busybox", 0o100_755, &busybox)?;
    entry(&mut archive, "init", 0o100_755, script.as_bytes())?;
    entry(&mut archive, "TRAILER!!!", 0, &[])?;
    Ok(archive)
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let inode = archive.len();
    let (length, name_length) = (bytes.len(), name.len() + 1);
    // The fields are magic, inode, mode, uid, gid, links, time, size, four device numbers, length
    // of the name, checksum.
    write!(
        archive,
        "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{length:08x}",
        0, 1
    )?;
    write!(
        archive,
        "{0:08x}{0:08x}{0:08x}{0:08x}{name_length:08x}{0:08x}{name}\0",
        0
    )?;
    pad(archive);
    archive.extend_from_slice(bytes);
    pad(archive);
    Ok(())
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}
