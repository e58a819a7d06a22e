//! Extracts the uncompressed kernel from a bzImage. QEMU boots that ELF by its PVH note, so that
//! the guest need not unpack itself.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{bail, Context, Result};

// Documentation/x86/boot.rst, "The real-mode kernel header".
const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// Known compressions: the first bytes, and the command that unpacks its stdin.
const FORMATS: [(&[u8], &str); 4] = [
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x02\x21\x4c\x18", "lz4"),
];

/// Returns the ELF inside a bzImage.
pub fn extract(bzimage: &[u8]) -> Result<Vec<u8>> {
    let (tool, payload) = payload(bzimage)?;
    let elf = unpack(tool, payload)?;
    if !elf.starts_with(b"\x7fELF") {
        bail!("the kernel's payload is not an ELF");
    }
    Ok(elf)
}

/// Returns the compressed payload and the tool that unpacks it.
fn payload(image: &[u8]) -> Result<(&'static str, &[u8])> {
    if image.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
        bail!("not a bzImage: no HdrS");
    }
    // payload_offset exists since 2.08.
    let version = image.get(VERSION..VERSION + 2);
    if version.is_none_or(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]) < 0x208) {
        bail!("a boot protocol older than 2.08");
    }
    let setup_sectors = usize::from(image[SETUP_SECTS]);
    let start = (setup_sectors + 1) * 512 + word(image, PAYLOAD_OFFSET)?;
    let length = word(image, PAYLOAD_LENGTH)?;
    let payload = start
        .checked_add(length)
        .and_then(|end| image.get(start..end))
        .context("the payload ends behind the file's end")?;
    let Some((_, tool)) = FORMATS.iter().find(|(magic, _)| payload.starts_with(magic)) else {
        let head = &payload[..payload.len().min(6)];
        bail!("compressed in a way that is not known here: {head:02x?}");
    };
    // The kernel's build appends the unpacked size to all formats but gzip, which has it anyway
    // (scripts/Makefile.lib).
    let tail = if *tool == "gzip" { 0 } else { 4 };
    Ok((tool, &payload[..payload.len().saturating_sub(tail)]))
}

fn word(image: &[u8], at: usize) -> Result<usize> {
    let bytes = image.get(at..at + 4).context("the header is cut short")?;
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
}

fn unpack(tool: &str, payload: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(tool)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {tool}"))?;
    let mut stdin = child.stdin.take().context("its stdin")?;
    let output = std::thread::scope(|scope| {
        // A tool that stops reading early shows that by its exit code.
        scope.spawn(move || stdin.write_all(payload).ok());
        child.wait_with_output()
    })
    .with_context(|| format!("wait for {tool}"))?;
    if !output.status.success() {
        bail!("{tool} -dc: {}", output.status);
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage with nothing but the header fields and a payload.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * 512];
        image[SETUP_SECTS] = 1;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&512_u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4]
            .copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn pack(tool: &str, args: &[&str], elf: &[u8]) -> Vec<u8> {
        let mut child = Command::new(tool)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(elf).unwrap();
        child.wait_with_output().unwrap().stdout
    }

    #[test]
    fn extract_finds_the_elf_by_every_compression() {
        let elf = b"\x7fELF and so on";
        let packed = pack("gzip", &["-c"], elf);
        assert_eq!(extract(&image(&packed)).unwrap(), elf);
        for (tool, args) in [
            ("xz", &["--check=crc32", "-c"][..]),
            ("zstd", &["-c"]),
            ("lz4", &["-l", "-c"]),
        ] {
            let mut packed = pack(tool, args, elf);
            packed.extend_from_slice(&(elf.len() as u32).to_le_bytes());
            assert_eq!(extract(&image(&packed)).unwrap(), elf, "{tool}");
        }
    }

    #[test]
    fn extract_refuses_what_is_not_a_kernel() {
        assert!(extract(b"MZ").is_err());
        assert!(extract(&image(b"plain")).is_err());
        let not_elf = pack("gzip", &["-c"], b"text");
        assert!(extract(&image(&not_elf)).is_err());
        let mut cut = image(&pack("gzip", &["-c"], b"\x7fELF"));
        cut.pop();
        assert!(extract(&cut).is_err());
    }
}
