//! Accesses the sources of skills that the node does not have: directories, S3-compatible stores,
//! OCI registries.

mod objects;
mod registry;

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use async_trait::async_trait;
use caisson_node::skills::Skill;
use caisson_oci::{annotations::SkillRef, config::SkillSource};
use futures::stream::BoxStream;

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a server may send nothing.
const SILENCE: Duration = Duration::from_secs(20);

/// The bytes of a skill, as they arrive.
pub type Body = BoxStream<'static, Result<Vec<u8>>>;

/// A source of skills.
#[async_trait]
pub trait Source: Send + Sync {
    /// Returns the manifest of a skill, or `None` where there is no such skill.
    async fn find(&self, wanted: &SkillRef) -> Result<Option<Skill>>;

    /// Returns the bytes of a skill from `offset` on.
    async fn read(&self, skill: &Skill, offset: u64) -> Result<Body>;

    /// Stores a skill, whose file is `file`, also under its version where it has one. An earlier
    /// digest of that version is replaced.
    async fn put(&self, skill: &Skill, file: &Path) -> Result<()>;
}

/// Opens a source of the configuration.
pub fn open(name: &str, source: &SkillSource) -> Result<Box<dyn Source>> {
    let opened: Result<Box<dyn Source>> = match source {
        SkillSource::Directory { path } => objects::directory(path),
        SkillSource::S3 {
            bucket,
            prefix,
            endpoint,
            region,
            path_style,
            credentials_file,
            profile,
        } => objects::s3(&objects::S3 {
            bucket,
            prefix,
            endpoint: endpoint.as_deref(),
            region: region.as_deref(),
            path_style: *path_style,
            credentials_file: credentials_file.as_deref(),
            profile: profile.as_deref().unwrap_or("default"),
        }),
        SkillSource::Registry {
            repository,
            plain_http,
            credentials_file,
        } => registry::open(repository, *plain_http, credentials_file.as_deref()),
    };
    opened.with_context(|| format!("skills.sources.{name}"))
}
