//! Where skills come from that the node does not have: directories, S3-compatible stores, OCI registries.

mod objects;
mod registry;

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use async_trait::async_trait;
use caisson_oci::{annotations::SkillRef, config::SkillSource};
use caisson_shim::skills::Skill;
use futures::stream::BoxStream;

/// How long a server has to take a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a server may send nothing.
const SILENCE: Duration = Duration::from_secs(20);

/// The bytes of a skill, as they come.
pub type Body = BoxStream<'static, Result<Vec<u8>>>;

/// Who has skills.
#[async_trait]
pub trait Source: Send + Sync {
    /// The manifest of a skill, `None` where there is no such skill.
    async fn find(&self, wanted: &SkillRef) -> Result<Option<Skill>>;

    /// The bytes of a skill from `offset` on.
    async fn read(&self, skill: &Skill, offset: u64) -> Result<Body>;

    /// Takes a skill, whose file is `file`. Also under its version, where it has one; that one's earlier digest is replaced.
    async fn put(&self, skill: &Skill, file: &Path) -> Result<()>;
}

/// A source of the configuration.
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
