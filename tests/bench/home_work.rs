//! Measures typical work in a home compared with a bind mount with runc: unpacking a source tree,
//! `git status`, `npm install`, a cargo build.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use caisson_tests::{
    cri::{ContainerBuilder, CriNode},
    Runtime,
};

use crate::table::{heading, Series};

/// The number of files in the source tree, which is about that of Linux, with 500 in each folder.
const FILES: usize = 80_000;
const PACKAGES: usize = 50;
/// The time limit for one piece of work.
const LIMIT: Duration = Duration::from_secs(900);
const HOME: &str = "/home/work";

/// The pieces of work, each done in the home.
const WORK: [(&str, &str); 4] = [
    ("untar", "mkdir tree && tar -xf /input/tree.tar -C tree"),
    (
        "git add of 4,000 files, git status",
        "cd tree && git init -q . && git add [0-7] && git status --porcelain | wc -l",
    ),
    (
        "npm install",
        "cp -r /input/app app && cd app && npm install --offline --no-audit --no-fund --loglevel=error",
    ),
    (
        "cargo build",
        "cargo -q init --name small --vcs none small && cd small && cargo -q build --offline",
    ),
];

/// Prints how long each piece of work takes with each runtime, and the ratio.
pub fn measure(node: &CriNode) -> Result<()> {
    node.image("work")?;
    let input = node.dir().join("work-input");
    make_input(&input)?;
    let mut all = WORK.map(|_| {
        [
            Series::new("runc, a bind mount"),
            Series::new("Caisson, a home"),
        ]
    });
    for (index, runtime) in [Runtime::Runc, Runtime::Caisson].into_iter().enumerate() {
        let mut pod = node.pod().runtime(runtime);
        if runtime == Runtime::Caisson {
            pod = pod
                .annotation("caisson.dev/home", "ephemeral")
                .annotation("caisson.dev/home-path", HOME);
        }
        let pod = pod.start()?;
        let place = pod.folder("home")?;
        for ((what, line), series) in WORK.iter().zip(&mut all) {
            let mut container = pod.container("work").mount_read_only(&input, "/input");
            if runtime == Runtime::Runc {
                container = container.mount(&place, HOME);
            }
            series[index].add(done(container, line).with_context(|| (*what).to_owned())?);
        }
    }
    heading(&format!(
        "\nwork in a home: a tree of {FILES} files, {PACKAGES} packages"
    ));
    for ((what, _), [runc, caisson]) in WORK.iter().zip(&all) {
        println!("  {what}");
        runc.print();
        caisson.print();
        let ratio = caisson.median().as_secs_f64() / runc.median().as_secs_f64();
        println!(
            "  ratio of the medians {ratio:.2} (at most 1.5 is the goal where nothing is emulated)"
        );
    }
    Ok(())
}

/// Measures how long a line takes in its own container until all of it is on the disk. The
/// container's start does not count.
fn done(container: ContainerBuilder<'_>, line: &str) -> Result<Duration> {
    let line =
        format!("set -e; cd {HOME}; date +%s%N; {{ {line}; sync -f {HOME}; }} >&2; date +%s%N");
    let container = container.env("HOME", HOME).sh(&line);
    let told = container.run_within(LIMIT)?.ok()?.line();
    let (start, end) = told.split_once('\n').context("two times")?;
    let (start, end): (u64, u64) = (start.parse()?, end.parse()?);
    Ok(Duration::from_nanos(end.saturating_sub(start)))
}

/// Makes a tar of a typical source tree, and an application with its packages beside it.
fn make_input(input: &Path) -> Result<()> {
    fs::create_dir_all(input.join("app"))?;
    let mut tar = tar::Builder::new(fs::File::create(input.join("tree.tar"))?);
    for n in 0..FILES {
        let text = format!("/* file {n} */\n").repeat(64 + n % 512);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        let path = format!("{}/{}/file-{n}.c", n / 500, n / 25 % 20);
        tar.append_data(&mut header, path, text.as_bytes())?;
    }
    tar.finish()?;
    let mut dependencies = serde_json::Map::new();
    for n in 0..PACKAGES {
        let name = format!("package-{n}");
        let folder = input.join("app/packages").join(&name);
        fs::create_dir_all(&folder)?;
        let manifest = serde_json::json!({"name": name, "version": "1.0.0"});
        fs::write(folder.join("package.json"), manifest.to_string())?;
        for part in 0..20 {
            let text = format!("exports.n{part} = {n};\n").repeat(50);
            fs::write(folder.join(format!("part-{part}.js")), text)?;
        }
        dependencies.insert(name.clone(), format!("file:packages/{name}").into());
    }
    let manifest = serde_json::json!({
        "name": "app",
        "version": "1.0.0",
        "dependencies": dependencies,
    });
    fs::write(input.join("app/package.json"), manifest.to_string())?;
    // The packages are copied, as packages from elsewhere are, and not linked.
    fs::write(input.join("app/.npmrc"), "install-links=true\n")?;
    Ok(())
}
