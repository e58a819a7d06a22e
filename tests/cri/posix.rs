//! Tests whether the places that a pod writes to are POSIX file systems, with pjdfstest and fsx
//! from crates.io. A test that also fails in the same place with runc on the same machine fails
//! because of the host.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, time::Duration};

use anyhow::{Context, Result};
use caisson_tests::{
    cri::{ContainerBuilder, CriNode, Pod},
    paths, Runtime,
};
use rstest::rstest;

const HOME: &str = "/home/posix";
const LIMIT: Duration = Duration::from_secs(900);
/// The pods' uid, by which an emptyDir of theirs is known.
const UID: &str = "0f11e5-posix";
/// The name endings of tests that make device nodes. A guest can't make them on what it shares with
/// the host.
const OF_DEVICES: [&str; 2] = ["::block", "::char"];

/// The users are in Debian's /etc/passwd. Time stamps come from the host, whose clock ticks every 4
/// ms.
const SETTINGS: &str = r#"
[features]
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// A place that a pod writes to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Home,
    Root,
    EmptyDir,
    RootOnADisk,
    EmptyDirOnADisk,
}
use Place::*;

impl Place {
    /// Returns its folder in the container.
    fn folder(self) -> &'static str {
        match self {
            Home => HOME,
            Root | RootOnADisk => "/srv",
            EmptyDir | EmptyDirOnADisk => "/data",
        }
    }

    fn is_on_a_disk(self) -> bool {
        matches!(self, RootOnADisk | EmptyDirOnADisk)
    }
}

#[rstest]
fn place_passes_what_it_passes_with_runc_of_pjdfstest(
    #[values(Home, Root, EmptyDir, RootOnADisk, EmptyDirOnADisk)] place: Place,
) -> Result<()> {
    let [runc, caisson] = [Runtime::Runc, Runtime::Caisson].map(|runtime| failures(runtime, place));
    let (runc, caisson) = (runc?, caisson?);
    let excused =
        |name: &str| !place.is_on_a_disk() && OF_DEVICES.iter().any(|end| name.ends_with(end));
    let worse: Vec<_> = caisson
        .difference(&runc)
        .filter(|name| !excused(name))
        .collect();
    assert!(worse.is_empty(), "with Caisson only: {worse:?}");
    Ok(())
}

#[rstest]
fn file_is_what_fsx_wrote(
    #[values(Runtime::Runc, Runtime::Caisson)] runtime: Runtime,
    #[values(Home, Root, EmptyDir, RootOnADisk, EmptyDirOnADisk)] place: Place,
) -> Result<()> {
    let pod = pod(runtime, place)?;
    let folder = place.folder();
    let output = programs(&pod, place)?
        .sh(&format!(
            "cd {folder} && /programs/fsx -q -S 1 -N 3000 file"
        ))
        .run_within(LIMIT)?;
    output.ok()?;
    Ok(())
}

/// Returns the names of the pjdfstest tests that fail.
fn failures(runtime: Runtime, place: Place) -> Result<BTreeSet<String>> {
    let pod = pod(runtime, place)?;
    let settings = pod.folder("settings")?;
    fs::write(settings.join("pjdfstest.toml"), SETTINGS)?;
    let folder = place.folder();
    let output = programs(&pod, place)?
        .mount_read_only(&settings, "/settings")
        // Some of the tests run as other users, and a home is accessible only to its own user.
        .sh(&format!(
            "chmod 755 {folder} && /programs/pjdfstest -c /settings/pjdfstest.toml -p {folder}"
        ))
        .run_within(LIMIT)?;
    let text = output.text();
    let summary = text.lines().find(|line| line.starts_with("Summary: "));
    let summary = summary.with_context(|| format!("{text}{}", output.errors()))?;
    println!("{runtime:?}, {place:?}: {summary}");
    // A line is, for example, `chmod::eloop    FAILED`.
    let failed = text.lines().filter(|line| line.contains("FAILED"));
    let names = failed.map(|line| line.split_whitespace().next().map(str::to_owned));
    names
        .collect::<Option<_>>()
        .context("a line without a name")
}

fn pod(runtime: Runtime, place: Place) -> Result<Pod<'static>> {
    let pod = CriNode::shared()
        .pod()
        .runtime(runtime)
        .configure(|config| {
            config.metadata.get_or_insert_default().uid = UID.to_owned();
        });
    match (runtime, place) {
        (Runtime::Runc | Runtime::Gvisor, _) => pod.start(),
        (Runtime::Caisson, Home) => pod
            .annotation("caisson.dev/home", "ephemeral")
            .annotation("caisson.dev/home-path", HOME)
            .start(),
        (Runtime::Caisson, _) => {
            let scratch = if place.is_on_a_disk() {
                "disk"
            } else {
                "shared"
            };
            pod.annotation("caisson.dev/scratch", scratch).start()
        }
    }
}

fn programs<'p>(pod: &'p Pod<'p>, place: Place) -> Result<ContainerBuilder<'p>> {
    let container = pod
        .container("python")
        .mount_read_only(&paths::target().join("cache/tools/posix/bin"), "/programs");
    let is_home_of_the_node = pod.runtime() != Runtime::Caisson && place == Home;
    if !is_home_of_the_node && place.folder() != EmptyDir.folder() {
        return Ok(container);
    }
    let folder = pod.folder(&format!("pods/{UID}/volumes/kubernetes.io~empty-dir/data"))?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
    Ok(container.mount(&folder, place.folder()))
}
