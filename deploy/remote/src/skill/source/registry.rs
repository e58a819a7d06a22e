//! Reads and writes skills in one repository of an OCI registry, where each skill is an artifact.
//!
//! ```text
//! tags         sha256-<digest>, and <name>-<version> where it has a version
//! config       the skill's manifest
//! one layer    the file, so that its digest is the skill's
//! ```

use std::{collections::HashMap, path::Path};

use anyhow::{ensure, Context, Result};
use async_trait::async_trait;
use base64::Engine as _;
use caisson_node::skills::Skill;
use caisson_oci::annotations::SkillRef;
use futures::{StreamExt, TryStreamExt};
use oci_client::{
    client::{BlobResponse, ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    manifest::{OciDescriptor, OciImageManifest, OciManifest, OCI_IMAGE_MEDIA_TYPE},
    secrets::RegistryAuth,
    Client, Reference, RegistryOperation,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::contract::{Body, Source, CONNECT, SILENCE};

const ARTIFACT_TYPE: &str = "application/vnd.caisson.skill.v1";
const CONFIG_TYPE: &str = "application/vnd.caisson.skill.manifest.v1+json";
const FILE_TYPE: &str = "application/vnd.caisson.skill.file.v1";
/// The largest manifest of a skill that is read, in bytes.
const MAX_CONFIG: i64 = 64 << 10;

/// Opens a repository, `HOST[:PORT]/PATH`. Nothing is asked of it yet.
pub fn open(
    repository: &str,
    plain_http: bool,
    credentials: Option<&Path>,
) -> Result<Box<dyn Source>> {
    let (host, path) = repository.split_once('/').with_context(|| {
        format!("repository {repository:?} is not of the form HOST[:PORT]/PATH")
    })?;
    let client = Client::new(ClientConfig {
        protocol: if plain_http {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        },
        connect_timeout: Some(CONNECT),
        read_timeout: Some(SILENCE),
        user_agent: concat!("caisson/", env!("CARGO_PKG_VERSION")),
        ..Default::default()
    });
    Ok(Box::new(Repository {
        client,
        auth: credentials.map_or(Ok(RegistryAuth::Anonymous), |file| auth(file, host))?,
        host: host.to_owned(),
        path: path.to_owned(),
    }))
}

struct Repository {
    client: Client,
    auth: RegistryAuth,
    host: String,
    path: String,
}

impl Repository {
    fn tag(&self, wanted: &SkillRef) -> Reference {
        let tag = match wanted {
            SkillRef::Digest(digest) => format!("sha256-{digest}"),
            SkillRef::Version { name, version } => format!("{name}-{version}"),
        };
        Reference::with_tag(self.host.clone(), self.path.clone(), tag)
    }

    async fn sign_in(&self, image: &Reference, operation: RegistryOperation) -> Result<()> {
        let signed_in = self.client.auth(image, &self.auth, operation).await;
        signed_in
            .map(drop)
            .with_context(|| format!("sign in to {}", self.host))
    }
}

#[async_trait]
impl Source for Repository {
    async fn find(&self, wanted: &SkillRef) -> Result<Option<Skill>> {
        let image = self.tag(wanted);
        let asked = || format!("ask for {image}");
        let manifest = match self.client.pull_image_manifest(&image, &self.auth).await {
            Ok((manifest, _)) => manifest,
            Err(error) if is_unknown(&error) => return Ok(None),
            Err(error) => return Err(error).with_context(asked),
        };
        let file = manifest
            .layers
            .first()
            .with_context(|| format!("{image} has no layer"))?;
        ensure!(
            manifest.config.media_type == CONFIG_TYPE && manifest.config.size <= MAX_CONFIG,
            "{image} is not a skill but {}",
            manifest.config.media_type
        );
        let mut text = Vec::new();
        let pulled = self.client.pull_blob(&image, &manifest.config, &mut text);
        pulled.await.with_context(asked)?;
        let skill = Skill::parse(&text).with_context(|| format!("manifest of {image}"))?;
        ensure!(
            file.digest == format!("sha256:{}", skill.digest),
            "{image} has the file {} and the manifest of sha256:{}",
            file.digest,
            skill.digest
        );
        if let SkillRef::Version { name, version } = wanted {
            ensure!(
                skill.name == *name && skill.version.as_ref() == Some(version),
                "{image} is {}@{}",
                skill.name,
                skill.version.unwrap_or_default()
            );
        }
        Ok(Some(skill))
    }

    async fn read(&self, skill: &Skill, offset: u64) -> Result<Body> {
        let image = self.tag(&SkillRef::Digest(skill.digest.clone()));
        self.sign_in(&image, RegistryOperation::Pull).await?;
        let digest = format!("sha256:{}", skill.digest);
        let response = self
            .client
            .pull_blob_stream_partial(&image, digest.as_str(), offset, None)
            .await
            .with_context(|| format!("get {digest} of {}/{}", self.host, self.path))?;
        let (stream, skip) = match response {
            BlobResponse::Partial(stream) => (stream.stream, 0),
            BlobResponse::Full(stream) => (stream.stream, offset),
        };
        let mut skip = usize::try_from(skip)?;
        let bytes = stream.map_err(anyhow::Error::from);
        Ok(bytes
            .map_ok(move |bytes| {
                let start = skip.min(bytes.len());
                skip -= start;
                bytes[start..].to_vec()
            })
            .boxed())
    }

    async fn put(&self, skill: &Skill, file: &Path) -> Result<()> {
        let by_digest = SkillRef::Digest(skill.digest.clone());
        let image = self.tag(&by_digest);
        self.sign_in(&image, RegistryOperation::Push).await?;
        let digest = format!("sha256:{}", skill.digest);
        let from = tokio::fs::File::open(file).await?;
        let pieces = futures::stream::try_unfold(from, |mut from| async move {
            use tokio::io::AsyncReadExt;
            let mut piece = vec![0; 1 << 20];
            let length = from.read(&mut piece).await?;
            piece.truncate(length);
            Ok((length > 0).then_some((piece.into(), from)))
        });
        self.client
            .push_blob_stream(&image, pieces, &digest, Some(skill.size))
            .await?;
        let config = serde_json::to_vec(skill)?;
        let config_digest = format!("sha256:{}", hex::encode(Sha256::digest(&config)));
        self.client
            .push_blob(&image, config.clone(), &config_digest)
            .await?;
        let descriptor = |media_type: &str, digest: String, size: i64| OciDescriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            ..Default::default()
        };
        let manifest = OciManifest::Image(OciImageManifest {
            media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
            artifact_type: Some(ARTIFACT_TYPE.to_owned()),
            config: descriptor(CONFIG_TYPE, config_digest, config.len() as i64),
            layers: vec![descriptor(FILE_TYPE, digest, i64::try_from(skill.size)?)],
            ..Default::default()
        });
        self.client.push_manifest(&image, &manifest).await?;
        if let Some(version) = &skill.version {
            let by_version = self.tag(&SkillRef::Version {
                name: skill.name.clone(),
                version: version.clone(),
            });
            self.client.push_manifest(&by_version, &manifest).await?;
        }
        Ok(())
    }
}

/// Returns whether the registry says that it has no such artifact, or no such repository yet.
fn is_unknown(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code == 404,
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.iter().any(|error| {
                matches!(
                    error.code,
                    OciErrorCode::ManifestUnknown
                        | OciErrorCode::NameUnknown
                        | OciErrorCode::NotFound
                )
            })
        }
        _ => false,
    }
}

/// Returns the credentials for a registry from a file in the form of Docker's `config.json`.
fn auth(file: &Path, host: &str) -> Result<RegistryAuth> {
    #[derive(Deserialize)]
    struct Config {
        auths: HashMap<String, Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        auth: String,
    }
    let read = || format!("read credentials from {}", file.display());
    let text = std::fs::read(file).with_context(read)?;
    let config: Config = serde_json::from_slice(&text).with_context(read)?;
    let entry = config.auths.get(host);
    let entry = entry.with_context(|| format!("no {host} in {}", file.display()))?;
    let pair = base64::engine::general_purpose::STANDARD.decode(&entry.auth);
    let pair = String::from_utf8(pair.with_context(read)?).with_context(read)?;
    let (user, password) = pair.split_once(':').with_context(read)?;
    Ok(RegistryAuth::Basic(user.to_owned(), password.to_owned()))
}
