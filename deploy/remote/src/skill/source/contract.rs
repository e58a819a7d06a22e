//! What every source of skills does, and how long its server may take.

use std::{path::Path, time::Duration};

use anyhow::Result;
use async_trait::async_trait;
use caisson_node::skills::Skill;
use caisson_oci::annotations::SkillRef;
use futures::stream::BoxStream;

/// How long a server may take to accept a connection.
pub const CONNECT: Duration = Duration::from_secs(10);
/// How long a server may send nothing.
pub const SILENCE: Duration = Duration::from_secs(20);

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
