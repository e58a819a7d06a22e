//! Reads and writes skills in directories and S3-compatible stores, as the same objects in both.
//!
//! ```text
//! <sha256>                the file
//! <sha256>.json           its manifest
//! <name>/<version>        the digest of that version, `sha256:HEX`
//! ```
//!
//! The first two are as in a node's store, so another node's store can be a source.

use std::{path::Path, sync::Arc};

use anyhow::{anyhow, ensure, Context, Result};
use async_trait::async_trait;
use caisson_node::skills::Skill;
use caisson_oci::annotations::SkillRef;
use configparser::ini::Ini;
use futures::{StreamExt, TryStreamExt};
use object_store::{
    aws::AmazonS3Builder, local::LocalFileSystem, path::Path as Key, prefix::PrefixStore,
    BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, RetryConfig,
};

use super::contract::{Body, Source, CONNECT, SILENCE};

/// The largest manifest or version that is read, in bytes.
const MAX_SMALL: u64 = 64 << 10;
/// How many bytes are written at once, when a skill is stored.
const PART: usize = 8 << 20;

/// How a bucket is reached.
pub struct S3<'c> {
    pub bucket: &'c str,
    pub prefix: &'c str,
    pub endpoint: Option<&'c str>,
    pub region: Option<&'c str>,
    pub path_style: bool,
    pub credentials_file: Option<&'c Path>,
    pub profile: &'c str,
}

/// Opens a directory of the node, which has to exist.
pub fn directory(path: &Path) -> Result<Box<dyn Source>> {
    let store = LocalFileSystem::new_with_prefix(path)
        .with_context(|| format!("open {}", path.display()))?;
    Ok(Box::new(Objects(Arc::new(store))))
}

/// Opens a bucket. Nothing is asked of it yet.
pub fn s3(s3: &S3<'_>) -> Result<Box<dyn Source>> {
    let client = ClientOptions::new()
        .with_allow_http(true)
        .with_connect_timeout(CONNECT)
        .with_read_timeout(SILENCE)
        .with_timeout_disabled();
    // Downloads continue by themselves where they were cut off; this is for their start.
    let retry = RetryConfig {
        max_retries: 2,
        retry_timeout: SILENCE,
        backoff: BackoffConfig::default(),
    };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(s3.bucket)
        .with_virtual_hosted_style_request(!s3.path_style)
        .with_client_options(client)
        .with_retry(retry);
    if let Some(endpoint) = s3.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = s3.region {
        builder = builder.with_region(region);
    }
    if let Some(file) = s3.credentials_file {
        let mut credentials = Ini::new_cs();
        credentials
            .load(file)
            .map_err(|error| anyhow!("read credentials from {}: {error}", file.display()))?;
        let value = |key: &str| credentials.get(s3.profile, key);
        let required = |key: &str| {
            value(key)
                .with_context(|| format!("no {key} in [{}] of {}", s3.profile, file.display()))
        };
        builder = builder
            .with_access_key_id(required("aws_access_key_id")?)
            .with_secret_access_key(required("aws_secret_access_key")?);
        if let Some(token) = value("aws_session_token") {
            builder = builder.with_token(token);
        }
    }
    let store = PrefixStore::new(builder.build()?, s3.prefix);
    Ok(Box::new(Objects(Arc::new(store))))
}

struct Objects(Arc<dyn ObjectStore>);

impl Objects {
    /// Returns a small object, or `None` where there is none.
    async fn small(&self, key: &Key) -> Result<Option<Vec<u8>>> {
        let found = match self.0.get(key).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            found => found.with_context(|| format!("get {key}"))?,
        };
        let size = found.meta.size;
        ensure!(size <= MAX_SMALL, "{key} has {size} bytes");
        let bytes = found.bytes().await;
        Ok(Some(bytes.with_context(|| format!("get {key}"))?.to_vec()))
    }

    async fn by_digest(&self, digest: &str) -> Result<Option<Skill>> {
        let key = manifest(digest);
        let Some(text) = self.small(&key).await? else {
            return Ok(None);
        };
        let skill = Skill::parse(&text).with_context(|| key.to_string())?;
        ensure!(
            skill.digest == digest,
            "{key} is of sha256:{}",
            skill.digest
        );
        Ok(Some(skill))
    }
}

#[async_trait]
impl Source for Objects {
    async fn find(&self, wanted: &SkillRef) -> Result<Option<Skill>> {
        let (name, version) = match wanted {
            SkillRef::Digest(digest) => return self.by_digest(digest).await,
            SkillRef::Version { name, version } => (name, version),
        };
        let key = Key::from_iter([name.as_str(), version.as_str()]);
        let Some(text) = self.small(&key).await? else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&text);
        let Some(SkillRef::Digest(digest)) = SkillRef::parse(text.trim()) else {
            anyhow::bail!("{key} is not of the form sha256:HEX");
        };
        let skill = self.by_digest(&digest).await?;
        Ok(Some(skill.with_context(|| {
            format!("{key} is sha256:{digest}, which is not there")
        })?))
    }

    async fn read(&self, skill: &Skill, offset: u64) -> Result<Body> {
        let key = Key::from(skill.digest.as_str());
        let options = GetOptions {
            range: (offset > 0).then_some(GetRange::Offset(offset)),
            ..Default::default()
        };
        let found = self.0.get_opts(&key, options).await;
        let found = found.with_context(|| format!("get {key}"))?;
        ensure!(
            found.range.start == offset,
            "{key} comes from byte {} on instead of {offset}",
            found.range.start
        );
        let bytes = found.into_stream().map_err(anyhow::Error::from);
        Ok(bytes.map_ok(|bytes| bytes.to_vec()).boxed())
    }

    async fn put(&self, skill: &Skill, file: &Path) -> Result<()> {
        use tokio::io::AsyncReadExt;
        let mut from = tokio::fs::File::open(file).await?;
        let key = Key::from(skill.digest.as_str());
        let mut to = object_store::buffered::BufWriter::with_capacity(self.0.clone(), key, PART);
        let mut buffer = vec![0; 1 << 20];
        loop {
            match from.read(&mut buffer).await? {
                0 => break,
                length => to.put(buffer[..length].to_vec().into()).await?,
            }
        }
        tokio::io::AsyncWriteExt::shutdown(&mut to).await?;
        let text = serde_json::to_vec_pretty(skill)?;
        self.0.put(&manifest(&skill.digest), text.into()).await?;
        if let Some(version) = &skill.version {
            let key = Key::from_iter([skill.name.as_str(), version.as_str()]);
            let text = format!("sha256:{}\n", skill.digest);
            self.0.put(&key, text.into()).await?;
        }
        Ok(())
    }
}

fn manifest(digest: &str) -> Key {
    Key::from(format!("{digest}.json"))
}
