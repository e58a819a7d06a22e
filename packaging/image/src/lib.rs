//! Writes OCI images of one layer without Docker and without a network: an OCI image layout in a
//! tar file (image-spec, image-layout.md).
//!
//! [`ImageBuilder`] makes the layer out of files that are named one by one; [`write`] takes a
//! [`Layer`] that is there already. The same layer gives the same bytes. The build, the local
//! cluster and the tests' harness use this crate.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{json, Value};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Owner and permissions of an entry.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
}

/// Owned by root, with these permissions.
pub const fn root(mode: u32) -> Owner {
    Owner {
        mode,
        uid: 0,
        gid: 0,
    }
}

/// An image that is being made. The layer is written while its entries are added.
pub struct ImageBuilder {
    layer: tar::Builder<Hashing<BufWriter<File>>>,
    layer_path: PathBuf,
    config: Value,
}

impl ImageBuilder {
    /// Starts an empty image, whose layer is in `dir` until it is finished.
    pub fn new(dir: &Path) -> Result<Self> {
        let layer_path = dir.join("layer.tar");
        let file = File::create(&layer_path).with_context(|| layer_path.display().to_string())?;
        let config = json!({
            "Env": ["PATH=/bin:/usr/bin"],
            "Cmd": ["sh"],
        });
        let layer = tar::Builder::new(Hashing::new(BufWriter::new(file)));
        Ok(Self {
            layer,
            layer_path,
            config,
        })
    }

    /// Sets a key of the image's configuration, such as `User` or `Cmd`.
    pub fn config(&mut self, key: &str, value: Value) -> &mut Self {
        self.config[key] = value;
        self
    }

    pub fn dir(&mut self, path: &str, owner: Owner) -> Result<()> {
        self.entry(path, EntryType::Directory, owner, &[])
    }

    pub fn file(&mut self, path: &str, owner: Owner, bytes: &[u8]) -> Result<()> {
        self.entry(path, EntryType::Regular, owner, bytes)
    }

    /// Adds a copy of a file of the host.
    pub fn copy(&mut self, source: &Path, path: &str, owner: Owner) -> Result<()> {
        let bytes = std::fs::read(source).with_context(|| source.display().to_string())?;
        self.file(path, owner, &bytes)
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = header(EntryType::Symlink, root(0o777), 0);
        self.layer
            .append_link(&mut header, path, target)
            .with_context(|| path.to_owned())
    }

    /// Adds a further name of an earlier file. The owner has to be given again.
    pub fn hard_link(&mut self, path: &str, target: &str, owner: Owner) -> Result<()> {
        let mut header = header(EntryType::Link, owner, 0);
        self.layer
            .append_link(&mut header, path, target)
            .with_context(|| path.to_owned())
    }

    pub fn fifo(&mut self, path: &str, owner: Owner) -> Result<()> {
        self.entry(path, EntryType::Fifo, owner, &[])
    }

    pub fn char_device(&mut self, path: &str, owner: Owner, major: u32, minor: u32) -> Result<()> {
        self.device(path, EntryType::Char, owner, major, minor)
    }

    pub fn block_device(&mut self, path: &str, owner: Owner, major: u32, minor: u32) -> Result<()> {
        self.device(path, EntryType::Block, owner, major, minor)
    }

    /// Adds a file with an extended attribute.
    pub fn file_with_xattr(
        &mut self,
        path: &str,
        owner: Owner,
        name: &str,
        value: &[u8],
    ) -> Result<()> {
        let key = format!("SCHILY.xattr.{name}");
        self.layer.append_pax_extensions([(key.as_str(), value)])?;
        self.file(path, owner, b"with an attribute\n")
    }

    /// Writes the archive, as `docker save` and `skopeo` write it in OCI format.
    pub fn finish(mut self, name: &str, archive: &Path) -> Result<()> {
        self.layer.finish()?;
        let (digest, size) = self.layer.into_inner()?.finish()?;
        let layer = Layer {
            path: self.layer_path.clone(),
            media_type: LAYER,
            diff_id: digest.clone(),
            digest,
            size,
        };
        write(&layer, &self.config, name, archive)?;
        std::fs::remove_file(&self.layer_path)?;
        Ok(())
    }

    fn device(
        &mut self,
        path: &str,
        kind: EntryType,
        owner: Owner,
        major: u32,
        minor: u32,
    ) -> Result<()> {
        let mut header = header(kind, owner, 0);
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        self.layer
            .append_data(&mut header, path, io::empty())
            .with_context(|| path.to_owned())
    }

    fn entry(&mut self, path: &str, kind: EntryType, owner: Owner, bytes: &[u8]) -> Result<()> {
        let mut header = header(kind, owner, bytes.len() as u64);
        self.layer
            .append_data(&mut header, path, bytes)
            .with_context(|| path.to_owned())
    }
}

/// The one layer of an image: a tar file.
pub struct Layer {
    path: PathBuf,
    media_type: &'static str,
    /// The digest of the tar file as it is uncompressed.
    diff_id: String,
    digest: String,
    size: u64,
}

impl Layer {
    /// A layer that is not compressed.
    pub fn plain(tar: &Path) -> Result<Self> {
        let (digest, size) = hash(tar)?;
        Ok(Self {
            path: tar.to_owned(),
            media_type: LAYER,
            diff_id: digest.clone(),
            digest,
            size,
        })
    }

    /// A layer that gzip has compressed. `diff_id` is the `sha256:HEX` of what it compressed.
    pub fn gzip(tar_gz: &Path, diff_id: String) -> Result<Self> {
        let (digest, size) = hash(tar_gz)?;
        Ok(Self {
            path: tar_gz.to_owned(),
            media_type: LAYER_GZIP,
            diff_id,
            digest,
            size,
        })
    }
}

/// Writes the archive of the image `NAME:TAG` with this layer and this configuration (`config` of
/// the image specification).
pub fn write(layer: &Layer, config: &Value, name: &str, archive: &Path) -> Result<()> {
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [layer.diff_id] },
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [{
            "mediaType": layer.media_type,
            "digest": layer.digest,
            "size": layer.size,
        }],
    }))?;
    let index = serde_json::to_vec(&index(descriptor(MANIFEST, &manifest), name))?;

    let file = File::create(archive).with_context(|| format!("make {}", archive.display()))?;
    let mut tar = tar::Builder::new(BufWriter::new(file));
    append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut tar, "index.json", &index)?;
    append(&mut tar, &blob(&digest(&config)), &config)?;
    append(&mut tar, &blob(&digest(&manifest)), &manifest)?;
    let mut header = header(EntryType::Regular, root(0o644), layer.size);
    tar.append_data(&mut header, blob(&layer.digest), File::open(&layer.path)?)?;
    tar.into_inner()?.flush()?;
    Ok(())
}

fn index(mut manifest: Value, name: &str) -> Value {
    let tag = name.rsplit_once(':').map_or(name, |(_, tag)| tag);
    manifest["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    manifest["annotations"] = json!({
        // containerd takes the first as the image's name, other tools the second as its tag.
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": tag,
    });
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest] })
}

/// Returns the digest and the size of a file.
fn hash(path: &Path) -> Result<(String, u64)> {
    let mut hashing = Hashing::new(io::sink());
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    io::copy(&mut file, &mut hashing).with_context(|| format!("read {}", path.display()))?;
    hashing.finish()
}

/// Returns `sha256:` and the digest of these bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn header(kind: EntryType, owner: Owner, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(owner.mode);
    header.set_uid(owner.uid);
    header.set_gid(owner.gid);
    header.set_size(size);
    header.set_mtime(1_700_000_000);
    header
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, bytes: &[u8]) -> Result<()> {
    let mut header = header(EntryType::Regular, root(0o644), bytes.len() as u64);
    Ok(tar.append_data(&mut header, path, bytes)?)
}

fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}

/// A writer that counts and hashes what passes through it.
struct Hashing<W> {
    to: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    fn new(to: W) -> Self {
        Self {
            to,
            hash: Sha256::new(),
            size: 0,
        }
    }

    fn finish(mut self) -> Result<(String, u64)> {
        self.to.flush()?;
        let digest = hex::encode(self.hash.finalize());
        Ok((format!("sha256:{digest}"), self.size))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Returns the sha256 of what a reader gives, in hex.
pub fn sha256(mut from: impl Read) -> Result<String> {
    let mut hashing = Hashing::new(io::sink());
    io::copy(&mut from, &mut hashing)?;
    Ok(hashing.finish()?.0.replace("sha256:", ""))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn written(layer: &Layer, dir: &Path) -> Vec<u8> {
        let archive = dir.join("image.tar");
        write(layer, &json!({ "Cmd": ["sh"] }), "host/name:1", &archive).unwrap();
        std::fs::read(archive).unwrap()
    }

    #[test]
    fn archive_has_each_blob_under_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("layer.tar.gz");
        std::fs::write(&tar, "compressed").unwrap();
        let layer = Layer::gzip(&tar, digest(b"plain")).unwrap();
        let image = written(&layer, dir.path());
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(image.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(path, bytes);
        }
        let json = |path: &str| serde_json::from_slice::<Value>(&files[path]).unwrap();
        let there = |descriptor: &Value| {
            let path = blob(descriptor["digest"].as_str().unwrap());
            assert_eq!(digest(&files[&path]), descriptor["digest"]);
            assert_eq!(files[&path].len(), descriptor["size"]);
            path
        };
        let index = json("index.json");
        let named = &index["manifests"][0]["annotations"];
        assert_eq!(named["io.containerd.image.name"], "host/name:1");
        assert_eq!(named["org.opencontainers.image.ref.name"], "1");
        let manifest = json(&there(&index["manifests"][0]));
        assert_eq!(files[&there(&manifest["layers"][0])], b"compressed");
        let config = json(&there(&manifest["config"]));
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest(b"plain")]));
        assert_eq!(config["config"]["Cmd"], json!(["sh"]));
        assert_eq!(files.len(), 5);
    }

    #[test]
    fn archive_is_the_same_twice() {
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("layer.tar");
        std::fs::write(&tar, "a layer").unwrap();
        let layer = Layer::plain(&tar).unwrap();
        assert_eq!(written(&layer, dir.path()), written(&layer, dir.path()));
    }
}
