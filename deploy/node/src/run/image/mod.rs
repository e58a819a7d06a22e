//! Reads image archives: what their configuration says and where in the file the layers lie. Both
//! common formats are supported: the OCI image layout (`index.json`) and Docker's
//! (`manifest.json`).

use std::{
    collections::HashMap,
    fs::File,
    io::{self, ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Component, Path, PathBuf},
};

use anyhow::{bail, ensure, Context, Result};
use serde::{de::DeserializeOwned, Deserialize};
use sha2::{Digest, Sha256};

/// The most that is read of one JSON document of an archive, in bytes.
const MAX_JSON: u64 = 8 << 20;
/// The maximum length of a chain of indexes or links.
const MAX_DEPTH: usize = 4;

/// An opened image archive.
pub struct Image {
    file: File,
    entries: HashMap<PathBuf, Place>,
    pub config: Config,
    layers: Vec<PathBuf>,
    /// The sha256 of each layer's plain tar, from the configuration.
    diff_ids: Vec<String>,
}

/// A layer: its (unpacked) tar, and the hash that this must have.
pub struct Layer {
    pub tar: Box<dyn Read + Send>,
    /// `sha256:HEX`
    pub diff_id: String,
}

/// The part of an image's configuration that says how to run it (OCI image spec, config.md).
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    pub user: String,
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub working_dir: String,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<Nullable>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// The fields that Docker writes as `null` where nothing is set.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Nullable {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: PathBuf,
    layers: Vec<PathBuf>,
}

impl Image {
    /// Reads the archive's tables. A packed archive is unpacked to `plain` first.
    pub fn open(path: &Path, plain: &Path) -> Result<Self> {
        let mut file = File::open(path)?;
        let packing = Packing::of(&mut file)?;
        if packing != Packing::None {
            let mut to = File::options()
                .create(true)
                .truncate(true)
                .read(true)
                .write(true)
                .open(plain)?;
            io::copy(&mut packing.unpack(file)?, &mut to).context("unpack the archive")?;
            file = to;
        }
        let mut image = Self {
            entries: table(&mut file).context("not a tar archive of an image")?,
            file,
            config: Config::default(),
            layers: Vec::new(),
            diff_ids: Vec::new(),
        };
        if image.has("index.json") {
            image.read_oci()?;
        } else if image.has("manifest.json") {
            image.read_docker()?;
        } else {
            bail!("not an image archive: it has neither index.json nor manifest.json");
        }
        ensure!(
            image.layers.len() == image.diff_ids.len(),
            "{} layers and {} diff_ids in its configuration",
            image.layers.len(),
            image.diff_ids.len()
        );
        Ok(image)
    }

    /// Returns the layers, the lowest first.
    pub fn layers(&self) -> impl Iterator<Item = Result<Layer>> + '_ {
        let named = self.layers.iter().zip(&self.diff_ids);
        named.map(|(name, diff_id)| {
            let mut bytes = self.bytes(name)?;
            let packing = Packing::of(&mut bytes)?;
            Ok(Layer {
                tar: packing.unpack(bytes)?,
                diff_id: diff_id.clone(),
            })
        })
    }

    fn read_oci(&mut self) -> Result<()> {
        let mut index: Index = self.json(Path::new("index.json"))?;
        // An index may point to another index that has one manifest for each platform.
        for _ in 0..MAX_DEPTH {
            let found = index.choose()?;
            if found.is_index() {
                index = self.blob(&found)?;
                continue;
            }
            let manifest: Manifest = self.blob(&found)?;
            self.configure(self.blob(&manifest.config)?)?;
            let layers = manifest.layers.iter().map(Descriptor::path);
            self.layers = layers.collect::<Result<_>>()?;
            return Ok(());
        }
        bail!("index.json: more than {MAX_DEPTH} indexes, each in the other")
    }

    fn read_docker(&mut self) -> Result<()> {
        let mut manifests: Vec<DockerManifest> = self.json(Path::new("manifest.json"))?;
        ensure!(
            manifests.len() == 1,
            "{} images in one archive; save one alone",
            manifests.len()
        );
        let manifest = manifests.remove(0);
        self.configure(self.json(&manifest.config)?)?;
        self.layers = manifest.layers;
        Ok(())
    }

    fn configure(&mut self, mut file: ConfigFile) -> Result<()> {
        ensure!(
            matches!(file.architecture.as_str(), "amd64" | ""),
            "the image is for {}, this node runs amd64",
            file.architecture
        );
        self.diff_ids = std::mem::take(&mut file.rootfs.diff_ids);
        self.config = file.into();
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.entries.contains_key(Path::new(name))
    }

    /// Returns a reader of one file of the archive. Each reader has a position of its own.
    fn bytes(&self, name: &Path) -> Result<Section> {
        let mut name = name.to_owned();
        for _ in 0..MAX_DEPTH {
            match self.entries.get(&name) {
                Some(Place::Bytes(start, length)) => {
                    return Ok(Section {
                        file: self.file.try_clone()?,
                        start: *start,
                        length: *length,
                        position: 0,
                    })
                }
                Some(Place::Link(target)) => name.clone_from(target),
                None => break,
            }
        }
        bail!("{} is not in the archive", name.display())
    }

    fn read(&self, name: &Path) -> Result<Vec<u8>> {
        let mut section = self.bytes(name)?;
        ensure!(
            section.length <= MAX_JSON,
            "{}: {} bytes are too many",
            name.display(),
            section.length
        );
        let mut bytes = Vec::new();
        section.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn json<T: DeserializeOwned>(&self, name: &Path) -> Result<T> {
        serde_json::from_slice(&self.read(name)?).with_context(|| name.display().to_string())
    }

    /// Reads a document that is named by its digest, and checks the digest.
    fn blob<T: DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T> {
        let path = descriptor.path()?;
        let bytes = self.read(&path)?;
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
        ensure!(
            digest == descriptor.digest,
            "{} has the digest {digest}: the archive is damaged",
            path.display()
        );
        serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
    }
}

/// Finds where the files of an archive lie. Docker's older archives use a symlink for a layer that
/// occurs twice.
fn table(file: &mut File) -> Result<HashMap<PathBuf, Place>> {
    let mut entries = HashMap::new();
    file.seek(SeekFrom::Start(0))?;
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let name = normal(&entry.path()?);
        let place = match entry.link_name()? {
            Some(target) if entry.header().entry_type().is_symlink() => {
                let folder = name.parent().unwrap_or(Path::new(""));
                Place::Link(normal(&folder.join(target)))
            }
            Some(target) => Place::Link(normal(&target)),
            None => Place::Bytes(entry.raw_file_position(), entry.size()),
        };
        entries.insert(name, place);
    }
    Ok(entries)
}

/// Returns a name without `.` and `..`. It is only ever looked up in the table.
fn normal(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            _ => {}
        }
    }
    plain
}

enum Place {
    /// Offset and length.
    Bytes(u64, u64),
    Link(PathBuf),
}

/// A part of a file, read by position, so that readers of one file do not disturb each other.
struct Section {
    file: File,
    start: u64,
    length: u64,
    position: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length - self.position;
        let length = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self
            .file
            .read_at(&mut buffer[..length], self.start + self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Section {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.position = position
            .filter(|p| *p <= self.length)
            .ok_or(ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// How a file is packed, detected from its first bytes: media types of images in the wild can't be
/// relied on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

impl Packing {
    fn of(file: &mut (impl Read + Seek)) -> Result<Self> {
        let mut magic = Vec::new();
        file.by_ref().take(4).read_to_end(&mut magic)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(match magic[..] {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Self::Zstd,
            _ => Self::None,
        })
    }

    fn unpack(self, from: impl Read + Send + 'static) -> Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::None => Box::new(from),
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(from)),
            Self::Zstd => Box::new(zstd::Decoder::new(from)?),
        })
    }
}

impl Index {
    /// Returns the only image for this platform. Attestations have the platform unknown/unknown.
    fn choose(&self) -> Result<Descriptor> {
        let for_us = |d: &&Descriptor| {
            let platform = d.platform.as_ref();
            platform.is_none_or(|p| p.os == "linux" && p.architecture == "amd64")
        };
        let found: Vec<_> = self.manifests.iter().filter(for_us).collect();
        match found[..] {
            [one] => Ok(one.clone()),
            [] => {
                let others = self.manifests.iter().filter_map(|d| d.platform.as_ref());
                let others: Vec<_> = others
                    .map(|p| format!("{}/{}", p.os, p.architecture))
                    .collect();
                bail!("no image for linux/amd64 in it, but {others:?}")
            }
            _ => bail!("{} images in one archive; save one alone", found.len()),
        }
    }
}

impl Descriptor {
    fn is_index(&self) -> bool {
        self.media_type.contains("image.index") || self.media_type.contains("manifest.list")
    }

    fn path(&self) -> Result<PathBuf> {
        let hex = self.digest.strip_prefix("sha256:");
        let hex = hex.filter(|hex| caisson_oci::annotations::is_sha256(hex));
        let hex = hex.with_context(|| format!("digest {:?} is not sha256:HEX", self.digest))?;
        Ok(Path::new("blobs/sha256").join(hex))
    }
}

impl From<ConfigFile> for Config {
    fn from(file: ConfigFile) -> Self {
        let config = file.config.unwrap_or_default();
        Self {
            user: config.user.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            working_dir: config.working_dir.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
