//! `caisson skill fetch`: copies a skill from a source into the node's store.
//!
//! The shim calls it for a pod whose skill the node does not have. It writes the skill's digest to
//! standard output, and the progress and finally any error to standard error.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use anyhow::{bail, ensure, Context, Result};
use caisson_node::skills::{Part, Skill, SkillStore};
use caisson_oci::{annotations::SkillRef, config::Skills};
use futures::StreamExt;

use super::source::{self, Source};

/// How many times in all a download that breaks off is tried.
const TRIES: u32 = 5;
/// The pause before the second try; it doubles each time.
const PAUSE: Duration = Duration::from_millis(500);

/// Gets a skill, which may be in the store already, from one of the sources `only`. If `only` is
/// empty, the operator asks: any source will do, and the skill is for every namespace. The same
/// skill is downloaded only once at a time; the other calls wait for the end of that download.
pub async fn fetch(
    store: &SkillStore,
    config: &Skills,
    wanted: &SkillRef,
    only: &[String],
) -> Result<Skill> {
    if let Ok(skill) = store.get(wanted) {
        return match only.is_empty() && skill.fetched_from.is_some() {
            true => Ok(store.set_source(skill, None)?),
            false => Ok(skill),
        };
    }
    if config.sources.is_empty() {
        bail!("skill {wanted} is not in the store, and no source is configured (skills.sources)");
    }
    let mut answers = Vec::new();
    for name in only {
        ensure!(
            config.sources.contains_key(name),
            "no source {name:?} in [skills.sources]"
        );
    }
    let chosen = |name: &String| only.is_empty() || only.contains(name);
    for (name, source) in config.sources.iter().filter(|(name, _)| chosen(name)) {
        let fetched = async {
            let source = source::open(name, source)?;
            match source.find(wanted).await? {
                Some(skill) => {
                    let skill = Skill {
                        fetched_from: (!only.is_empty()).then(|| name.clone()),
                        ..skill
                    };
                    download(store, source.as_ref(), skill).await.map(Some)
                }
                None => Ok(None),
            }
        };
        match fetched.await {
            Ok(Some(skill)) => return Ok(skill),
            Ok(None) => answers.push(format!("{name}: has no such skill")),
            Err(error) => answers.push(format!("{name}: {error:#}")),
        }
    }
    bail!(
        "skill {wanted} could not be fetched from {}",
        answers.join("; ")
    );
}

/// Downloads what a source has found, and continues where an earlier download was cut off.
async fn download(store: &SkillStore, source: &dyn Source, skill: Skill) -> Result<Skill> {
    let waiting = store.clone();
    let name = skill.digest.clone();
    // This waits for a lock.
    let part = tokio::task::spawn_blocking(move || waiting.part(&name));
    let mut part = part.await.context("wait for another download")??;
    let by_digest = SkillRef::Digest(skill.digest.clone());
    if let Ok(skill) = store.get(&by_digest) {
        part.discard()?;
        return Ok(skill);
    }
    if part.size() > skill.size {
        part.restart()?;
    }
    let mut pause = PAUSE;
    for left in (0..TRIES).rev() {
        let Err(error) = go_on(&mut part, source, &skill).await else {
            break;
        };
        if left == 0 {
            return Err(error);
        }
        eprintln!("{}: {error:#}; again", skill.name);
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    let digest = part.digest();
    if digest != skill.digest {
        part.discard()?;
        bail!(
            "what came has the digest sha256:{digest} instead of sha256:{}",
            skill.digest
        );
    }
    Ok(store.keep(part, skill)?)
}

/// Reads to the end, from where the part ends.
async fn go_on(part: &mut Part, source: &dyn Source, skill: &Skill) -> Result<()> {
    let mut progress = Progress::new(skill);
    if part.size() == skill.size {
        return Ok(());
    }
    let mut body = source.read(skill, part.size()).await?;
    while let Some(bytes) = body.next().await {
        let bytes = bytes?;
        if part.size() + bytes.len() as u64 > skill.size {
            part.restart()?;
            bail!("more than the {} bytes of its manifest came", skill.size);
        }
        part.write(&bytes)?;
        progress.show(part.size());
    }
    if part.size() < skill.size {
        bail!("ended after {} of {} bytes", part.size(), skill.size);
    }
    Ok(())
}

/// The progress on standard error: on a terminal a line that changes, elsewhere a line now and
/// then.
struct Progress<'s> {
    skill: &'s Skill,
    shown: Instant,
    every: Duration,
}

impl<'s> Progress<'s> {
    fn new(skill: &'s Skill) -> Self {
        let every = match std::io::stderr().is_terminal() {
            true => Duration::from_millis(100),
            false => Duration::from_secs(5),
        };
        Self {
            skill,
            shown: Instant::now(),
            every,
        }
    }

    fn show(&mut self, bytes: u64) {
        let at_end = bytes == self.skill.size && self.every < Duration::from_secs(1);
        if self.shown.elapsed() < self.every && !at_end {
            return;
        }
        self.shown = Instant::now();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (name, done, all) = (&self.skill.name, mib(bytes), mib(self.skill.size));
        let mut stderr = std::io::stderr();
        // If nothing reads standard error, nothing misses the progress.
        let _ = match (stderr.is_terminal(), at_end) {
            (true, false) => write!(stderr, "\r{name}: {done:.1} of {all:.1} MiB"),
            (true, true) => writeln!(stderr, "\r{name}: {done:.1} of {all:.1} MiB"),
            (false, _) => writeln!(stderr, "{name}: {done:.1} of {all:.1} MiB"),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        fs,
        path::{Path, PathBuf},
        sync::Mutex,
    };

    use async_trait::async_trait;
    use caisson_oci::config::SkillSource;
    use futures::stream;

    use super::{source::contract::Body, *};

    const CONTENT: &[u8] = b"hsqs and a hundred more bytes";

    /// A node's store, and another node's in a folder beside it.
    struct Nodes {
        dir: tempfile::TempDir,
        store: SkillStore,
        skill: Skill,
        config: Skills,
    }

    fn nodes() -> Nodes {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, CONTENT).unwrap();
        let skill = Skill {
            version: Some("1.4".to_owned()),
            ..Skill::named("docx")
        };
        let other = SkillStore::new(&dir.path().join("other"));
        let skill = other.add(&file, skill).unwrap();
        let path = dir.path().join("other/skills");
        let source = SkillSource::Directory { path };
        Nodes {
            store: SkillStore::new(&dir.path().join("node")),
            skill,
            config: Skills {
                sources: BTreeMap::from([("other".to_owned(), source)]),
                ..Default::default()
            },
            dir,
        }
    }

    impl Nodes {
        async fn fetch(&self, wanted: &str) -> Result<Skill> {
            let wanted = SkillRef::parse(wanted).unwrap();
            fetch(&self.store, &self.config, &wanted, &[]).await
        }

        fn source_file(&self, name: &str) -> PathBuf {
            self.dir.path().join("other/skills").join(name)
        }

        fn parts(&self) -> usize {
            let names = fs::read_dir(self.dir.path().join("node/skills")).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.starts_with(".part-")).count()
        }
    }

    #[tokio::test]
    async fn skill_comes_from_a_directory_by_its_digest() {
        let nodes = nodes();
        let wanted = format!("sha256:{}", nodes.skill.digest);
        assert_eq!(nodes.fetch(&wanted).await.unwrap(), nodes.skill);
        assert_eq!(fs::read(nodes.store.path(&nodes.skill)).unwrap(), CONTENT);
        assert_eq!(nodes.parts(), 0);
    }

    #[tokio::test]
    async fn skill_that_was_pushed_comes_by_its_version() {
        let nodes = nodes();
        let source = source::open("other", &nodes.config.sources["other"]).unwrap();
        let file = nodes.source_file(&nodes.skill.digest);
        let copy = nodes.dir.path().join("copy");
        fs::copy(file, &copy).unwrap();
        source.put(&nodes.skill, &copy).await.unwrap();
        assert_eq!(nodes.fetch("docx@1.4").await.unwrap(), nodes.skill);
    }

    #[tokio::test]
    async fn skill_in_the_store_needs_no_source() {
        let mut nodes = nodes();
        nodes
            .fetch(&format!("sha256:{}", nodes.skill.digest))
            .await
            .unwrap();
        fs::remove_dir_all(nodes.dir.path().join("other")).unwrap();
        nodes.fetch("docx@1.4").await.unwrap();
        nodes.config.sources.clear();
        nodes.fetch("docx@1.4").await.unwrap();
    }

    #[tokio::test]
    async fn skill_of_a_chosen_source_says_where_it_is_from_until_the_operator_fetches_it() {
        let nodes = nodes();
        let wanted = SkillRef::Digest(nodes.skill.digest.clone());
        let from = |only: &[&str]| {
            let only: Vec<_> = only.iter().map(|name| (*name).to_owned()).collect();
            let (store, config, wanted) = (&nodes.store, &nodes.config, &wanted);
            async move { fetch(store, config, wanted, &only).await }
        };
        let error = from(&["nosuch"]).await.unwrap_err().to_string();
        assert!(error.contains("nosuch"), "{error}");
        let fetched_from = |skill: Skill| skill.fetched_from;
        assert_eq!(
            fetched_from(from(&["other"]).await.unwrap()).as_deref(),
            Some("other")
        );
        let stored = nodes.store.get(&wanted).unwrap();
        assert_eq!(stored.fetched_from.as_deref(), Some("other"));
        from(&[]).await.unwrap();
        assert_eq!(nodes.store.get(&wanted).unwrap(), nodes.skill);
    }

    #[tokio::test]
    async fn skill_that_no_source_has_is_an_error_that_names_them() {
        let nodes = nodes();
        let error = nodes.fetch("docx@2").await.unwrap_err().to_string();
        assert!(
            error.contains("docx@2") && error.contains("other: has no such skill"),
            "{error}"
        );
        fs::remove_dir_all(nodes.dir.path().join("other")).unwrap();
        let error = nodes.fetch("docx@2").await.unwrap_err().to_string();
        assert!(error.contains("other/skills"), "{error}");
    }

    #[tokio::test]
    async fn skill_with_other_bytes_is_refused_and_not_kept() {
        let nodes = nodes();
        let file = nodes.source_file(&nodes.skill.digest);
        fs::remove_file(&file).unwrap();
        fs::write(&file, [b'x'; CONTENT.len()]).unwrap();
        let wanted = format!("sha256:{}", nodes.skill.digest);
        let error = nodes.fetch(&wanted).await.unwrap_err().to_string();
        assert!(error.contains("has the digest sha256:"), "{error}");
        assert!(nodes.store.list().unwrap().is_empty());
        assert_eq!(nodes.parts(), 0);
    }

    /// A source that gives the bytes in pieces of ten, breaks off after each, and notes the offset
    /// of each request.
    struct Breaking {
        content: &'static [u8],
        asked: Mutex<Vec<u64>>,
    }

    #[async_trait]
    impl Source for Breaking {
        async fn find(&self, _: &SkillRef) -> Result<Option<Skill>> {
            Ok(None)
        }

        async fn read(&self, _: &Skill, offset: u64) -> Result<Body> {
            self.asked.lock().unwrap().push(offset);
            let rest = &self.content[offset as usize..];
            let piece = rest[..rest.len().min(10)].to_vec();
            let cut = anyhow::anyhow!("connection reset");
            Ok(stream::iter([Ok(piece), Err(cut)]).boxed())
        }

        async fn put(&self, _: &Skill, _: &Path) -> Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn download_that_breaks_off_goes_on_where_it_was() {
        let nodes = nodes();
        let source = Breaking {
            content: CONTENT,
            asked: Mutex::default(),
        };
        let skill = nodes.skill.clone();
        download(&nodes.store, &source, skill).await.unwrap();
        assert_eq!(*source.asked.lock().unwrap(), [0, 10, 20]);
        assert_eq!(fs::read(nodes.store.path(&nodes.skill)).unwrap(), CONTENT);
    }

    #[tokio::test(start_paused = true)]
    async fn source_with_too_many_bytes_does_not_fill_the_disk() {
        let nodes = nodes();
        let source = Breaking {
            content: CONTENT,
            asked: Mutex::default(),
        };
        let skill = Skill {
            size: 5,
            ..nodes.skill.clone()
        };
        let error = download(&nodes.store, &source, skill).await.unwrap_err();
        assert!(
            error.to_string().contains("more than the 5 bytes"),
            "{error}"
        );
    }
}
