//! Accesses the sources of skills that the node does not have: directories, S3-compatible stores,
//! OCI registries.

pub mod contract;
mod objects;
mod registry;

use anyhow::{Context, Result};
use caisson_oci::config::SkillSource;

pub use contract::Source;

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
