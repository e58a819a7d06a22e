//! Tests whether a home is a POSIX file system, with pjdfstest and fsx from crates.io. A test that
//! also fails on a bind mount with runc on the same machine fails because of the host.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context, Result};
use caisson_tests::{
    cri::{ContainerBuilder, CriNode, Pod},
    paths, Runtime,
};
use rstest::rstest;

const HOME: &str = "/home/posix";
const LIMIT: Duration = Duration::from_secs(900);
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

#[test]
fn home_passes_what_a_bind_mount_with_runc_passes_of_pjdfstest() -> Result<()> {
    let [runc, caisson] = [Runtime::Runc, Runtime::Caisson].map(failures);
    let (runc, caisson) = (runc?, caisson?);
    let worse: Vec<_> = caisson
        .difference(&runc)
        .filter(|name| !OF_DEVICES.iter().any(|end| name.ends_with(end)))
        .collect();
    assert!(worse.is_empty(), "with Caisson only: {worse:?}");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn file_in_a_home_is_what_fsx_wrote(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let output = programs(&pod)?
        .sh(&format!("cd {HOME} && /programs/fsx -q -S 1 -N 3000 file"))
        .run_within(LIMIT)?;
    output.ok()?;
    Ok(())
}

/// Returns the names of the pjdfstest tests that fail.
fn failures(runtime: Runtime) -> Result<BTreeSet<String>> {
    let pod = pod(runtime)?;
    let settings = pod.folder("settings")?;
    fs::write(settings.join("pjdfstest.toml"), SETTINGS)?;
    let output = programs(&pod)?
        .mount_read_only(&settings, "/settings")
        // Some of the tests run as other users, and a home is accessible only to its own user.
        .sh(&format!(
            "chmod 755 {HOME} && /programs/pjdfstest -c /settings/pjdfstest.toml -p {HOME}"
        ))
        .run_within(LIMIT)?;
    let text = output.text();
    let summary = text.lines().find(|line| line.starts_with("Summary: "));
    let summary = summary.with_context(|| format!("{text}{}", output.errors()))?;
    println!("{runtime:?}: {summary}");
    // A line is, for example, `chmod::eloop    FAILED`.
    let failed = text.lines().filter(|line| line.contains("FAILED"));
    let names = failed.map(|line| line.split_whitespace().next().map(str::to_owned));
    names
        .collect::<Option<_>>()
        .context("a line without a name")
}

fn pod(runtime: Runtime) -> Result<Pod<'static>> {
    let pod = CriNode::shared().pod().runtime(runtime);
    match runtime {
        Runtime::Runc | Runtime::Gvisor => pod.start(),
        Runtime::Caisson => pod
            .annotation("caisson.dev/home", "ephemeral")
            .annotation("caisson.dev/home-path", HOME)
            .start(),
    }
}

fn programs<'p>(pod: &'p Pod<'p>) -> Result<ContainerBuilder<'p>> {
    let container = pod
        .container("python")
        .mount_read_only(&paths::target().join("cache/tools/posix/bin"), "/programs");
    Ok(match pod.runtime() {
        Runtime::Runc | Runtime::Gvisor => container.mount(&pod.folder("home")?, HOME),
        Runtime::Caisson => container,
    })
}
