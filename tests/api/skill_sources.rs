//! Tests skills that come from elsewhere: `caisson skill` with a real S3 server and a real registry
//! that are slow, cut connections, refuse requests or are down.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{ensure, Context, Result};
use caisson_tests::{
    command,
    faults::{Fault, Relay},
    image, paths, proc,
    registry::Registry,
    s3::S3,
    Output,
};
use rstest::rstest;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);
/// The size of the skill's file, which is more than any buffer on the way holds.
const SIZE: usize = 4 << 20;

/// The kind of server that has the skill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    S3,
    Registry,
}

/// A node's configuration and store, and a source behind a relay. The source has one skill, which
/// the node lacks.
struct Bench {
    dir: tempfile::TempDir,
    relay: Relay,
    digest: String,
    s3: Option<S3>,
    _registry: Option<Registry>,
}

impl Bench {
    fn new(kind: Kind) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (mut s3, mut registry) = (None, None);
        let server = match kind {
            Kind::S3 => s3
                .insert(S3::start(
                    dir.path(),
                    &[("node", "skills/"), ("other", "other/")],
                )?)
                .address(),
            Kind::Registry => registry
                .insert(Registry::start(dir.path())?)
                .address()
                .to_owned(),
        };
        let relay = Relay::start(&server)?;
        let source = match &s3 {
            Some(s3) => json!({
                "type": "s3",
                "bucket": S3::BUCKET,
                "prefix": "skills",
                "endpoint": format!("http://{}", relay.address()),
                "region": "us-east-1",
                "path_style": true,
                "credentials_file": s3.credentials("node", dir.path())?,
            }),
            None => json!({
                "type": "registry",
                "repository": format!("{}/company/skills", relay.address()),
                "plain_http": true,
            }),
        };
        let config = json!({
            "store_dir": dir.path().join("store"),
            "skills": { "sources": { "company": source } },
        });
        fs::write(dir.path().join("config.toml"), toml::to_string(&config)?)?;
        let mut bench = Self {
            dir,
            relay,
            digest: String::new(),
            s3,
            _registry: registry,
        };
        let file = bench.dir.path().join("docx.squashfs");
        let noise = (0..SIZE as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8);
        fs::write(
            &file,
            b"hsqs".iter().copied().chain(noise).collect::<Vec<_>>(),
        )?;
        let file = file.display().to_string();
        let added = bench.skill(&["add", "--version", "1.4", &file])?.ok()?;
        bench.digest = added.line();
        bench.skill(&["push", "docx@1.4", "company"])?.ok()?;
        bench.skill(&["remove", "docx@1.4"])?.ok()?;
        Ok(bench)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut caisson = Command::new(paths::dist().join("bin/caisson"));
        caisson
            .env("CAISSON_CONFIG", self.dir.path().join("config.toml"))
            .arg("skill")
            .args(args);
        caisson
    }

    fn skill(&self, args: &[&str]) -> Result<Output> {
        command::run(&mut self.command(args), None, LIMIT)
    }

    fn fetch(&self) -> Result<Output> {
        self.skill(&["fetch", "docx@1.4"])
    }

    /// Returns the error of a fetch that has to fail.
    fn refused(&self) -> Result<String> {
        let output = self.fetch()?;
        ensure!(output.code != 0, "the skill was fetched");
        Ok(output.errors())
    }

    /// Returns whether the skill in the store has its digest. Fails if the store lacks the skill.
    fn stored(&self) -> Result<bool> {
        let path = self.store().join(self.digest.trim_start_matches("sha256:"));
        let file = fs::File::open(path).context("the skill is not in the store")?;
        Ok(format!("sha256:{}", image::sha256(file)?) == self.digest)
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store/skills")
    }

    /// Returns how many bytes an unfinished download has so far.
    fn part(&self) -> u64 {
        let part = format!(".part-{}", self.digest.trim_start_matches("sha256:"));
        fs::metadata(self.store().join(part)).map_or(0, |metadata| metadata.len())
    }
}

#[rstest]
#[case::s3(Kind::S3)]
#[case::registry(Kind::Registry)]
fn skill_that_was_pushed_is_fetched(#[case] kind: Kind) -> Result<()> {
    let bench = Bench::new(kind)?;
    assert_eq!(bench.fetch()?.ok()?.line(), bench.digest);
    assert!(bench.stored()?);
    bench.skill(&["remove", "docx@1.4"])?.ok()?;
    bench.skill(&["fetch", &bench.digest])?.ok()?;
    assert!(bench.stored()?);
    Ok(())
}

#[rstest]
#[case::s3(Kind::S3)]
#[case::registry(Kind::Registry)]
fn skill_of_another_version_is_not_there(#[case] kind: Kind) -> Result<()> {
    let bench = Bench::new(kind)?;
    let output = bench.skill(&["fetch", "docx@2"])?;
    assert!(
        output.errors().contains("company: has no such skill"),
        "{}",
        output.errors()
    );
    Ok(())
}

#[rstest]
#[case::s3(Kind::S3)]
#[case::registry(Kind::Registry)]
fn connection_that_is_cut_is_gone_on_with(#[case] kind: Kind) -> Result<()> {
    let bench = Bench::new(kind)?;
    bench.relay.set(Fault::Cut(1 << 20));
    bench.fetch()?.ok()?;
    assert!(bench.stored()?);
    assert!(bench.relay.asked("range: bytes=") >= 3, "it began anew");
    Ok(())
}

#[rstest]
#[case::s3(Kind::S3)]
#[case::registry(Kind::Registry)]
fn answer_that_is_always_cut_short_is_an_error(#[case] kind: Kind) -> Result<()> {
    let bench = Bench::new(kind)?;
    bench.relay.set(Fault::Cut(100));
    let error = bench.refused()?;
    assert!(
        error.contains("docx@1.4") && error.contains("company"),
        "{error}"
    );
    Ok(())
}

#[rstest]
#[case::s3(Kind::S3)]
#[case::registry(Kind::Registry)]
fn source_that_is_down_is_named_in_time(#[case] kind: Kind) -> Result<()> {
    let bench = Bench::new(kind)?;
    bench.relay.set(Fault::Down);
    let error = bench.refused()?;
    assert!(
        error.contains("company:") && error.contains("docx@1.4"),
        "{error}"
    );
    Ok(())
}

#[rstest]
#[case::s3(Kind::S3)]
#[case::registry(Kind::Registry)]
fn skill_in_the_store_needs_no_source(#[case] kind: Kind) -> Result<()> {
    let bench = Bench::new(kind)?;
    bench.fetch()?.ok()?;
    bench.relay.set(Fault::Down);
    let connections = bench.relay.connections();
    assert_eq!(bench.fetch()?.ok()?.line(), bench.digest);
    assert_eq!(bench.relay.connections(), connections);
    Ok(())
}

#[rstest]
#[case::s3(Kind::S3)]
#[case::registry(Kind::Registry)]
fn download_that_was_killed_is_gone_on_with(#[case] kind: Kind) -> Result<()> {
    let bench = Bench::new(kind)?;
    bench.relay.set(Fault::Slow(64 << 10));
    let mut killed = bench
        .command(&["fetch", "docx@1.4"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    command::poll("half a megabyte", LIMIT, || {
        (bench.part() > 1 << 19).then_some(())
    })?;
    proc::kill(killed.id(), 9);
    killed.wait()?;
    let came = bench.part();
    bench.relay.set(Fault::None);
    bench.fetch()?.ok()?;
    assert!(bench.stored()?);
    assert_eq!(bench.relay.asked(&format!("range: bytes={came}-")), 1);
    Ok(())
}

#[test]
fn pods_that_wait_for_the_same_skill_share_one_download() -> Result<()> {
    let bench = Bench::new(Kind::S3)?;
    bench.relay.set(Fault::Slow(256 << 10));
    let file = format!(
        "GET /{}/skills/{} ",
        S3::BUCKET,
        bench.digest.trim_start_matches("sha256:")
    );
    let before = bench.relay.asked(&file);
    thread::scope(|scope| {
        let fetches: Vec<_> = (0..5)
            .map(|_| scope.spawn(|| bench.fetch()?.ok()))
            .collect();
        for fetch in fetches {
            fetch.join().map_err(|_| anyhow::anyhow!("fetch"))??;
        }
        anyhow::Ok(())
    })?;
    assert_eq!(bench.relay.asked(&file) - before, 1);
    Ok(())
}

#[test]
fn object_with_other_bytes_is_refused_and_not_kept() -> Result<()> {
    let bench = Bench::new(Kind::S3)?;
    let other = bench.dir.path().join("other.squashfs");
    fs::write(&other, [b"hsqs".as_slice(), &vec![7; SIZE]].concat())?;
    let s3 = bench.s3.as_ref().context("no S3 server")?;
    let name = bench.digest.trim_start_matches("sha256:");
    s3.put("node", &format!("skills/{name}"), &other)?;
    let error = bench.refused()?;
    assert!(
        error.contains("has the digest sha256:") && error.contains(&bench.digest),
        "{error}"
    );
    assert_eq!(bench.part(), 0);
    assert!(bench.stored().is_err());
    Ok(())
}

#[test]
fn credentials_of_another_prefix_are_refused_as_such() -> Result<()> {
    let bench = Bench::new(Kind::S3)?;
    let s3 = bench.s3.as_ref().context("no S3 server")?;
    let others = s3.credentials("other", bench.dir.path())?;
    fs::copy(others, bench.dir.path().join("node.credentials"))?;
    let started = Instant::now();
    let error = bench.refused()?;
    assert!(
        error.contains("403") || error.contains("Access Denied"),
        "{error}"
    );
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "it was tried again and again"
    );
    Ok(())
}
