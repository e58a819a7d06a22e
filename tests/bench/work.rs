//! Measures work with small files, as agents and CI jobs do it all day, in each kind of place that
//! a container has. What emulation costs is the same everywhere in a guest, so the yardstick is the
//! same work on a tmpfs of the same guest. The same work with runc stands beside it.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use caisson_tests::{
    cri::{Container, CriNode, Pod},
    Runtime,
};

use crate::table::{heading, millis, Series};

/// The number of files in the source tree, with 500 in each folder.
const FILES: usize = 4_000;
const PACKAGES: usize = 50;
/// The time limit for one piece of work.
const LIMIT: Duration = Duration::from_secs(900);
/// The pods' uid, by which an emptyDir of theirs is known.
const UID: &str = "0f11e5-work";
const HOME: &str = "/home/work";

/// The pieces of work, in the order in which each place has them.
const WORK: [(&str, &str); 7] = [
    (
        "3,000 small files, by a script",
        "perl /input/small-files.pl 3000",
    ),
    ("untar of 4,000 files", "mkdir tree && tar -xf /input/tree.tar -C tree"),
    (
        "git add of 4,000 files, git status",
        "cd tree && git init -q . && git add . && git status --porcelain | wc -l",
    ),
    (
        "25 git commits",
        "cd tree && for n in $(seq 25); do echo $n >> changed && git add changed && \
         git -c user.name=a -c user.email=a@b commit -qm $n; done",
    ),
    (
        "500 runs of mv",
        "mkdir moved && for n in $(seq 500); do : > moved/a$n; done && \
         for n in $(seq 500); do mv moved/a$n moved/b$n; done",
    ),
    (
        "npm install of 50 packages",
        "cp -r /input/app app && cd app && npm install --offline --no-audit --no-fund --loglevel=error",
    ),
    (
        "cargo build",
        "cargo -q init --name small --vcs none small && cd small && cargo -q build --offline",
    ),
];

/// The folder of each place in the container.
const TMPFS: &str = "/tmpfs";
const ROOT: &str = "/root-work";
const EMPTY_DIR: &str = "/empty";

/// Where the work is done: the kind of pod, a name for the table, and the folder. The first of each
/// kind of pod is the yardstick for the others.
const PLACES: [(Kind, &str, &str); 10] = [
    (Kind::Runc, "runc, tmpfs", TMPFS),
    (Kind::Runc, "runc, root", ROOT),
    (Kind::Runc, "runc, emptyDir", EMPTY_DIR),
    (Kind::Shared, "Caisson, tmpfs of the guest", TMPFS),
    (Kind::Shared, "Caisson, root, shared", ROOT),
    (Kind::Shared, "Caisson, emptyDir, shared", EMPTY_DIR),
    (Kind::Shared, "Caisson, home", HOME),
    (Kind::Disk, "Caisson, tmpfs of the guest", TMPFS),
    (Kind::Disk, "Caisson, root, disk", ROOT),
    (Kind::Disk, "Caisson, emptyDir, disk", EMPTY_DIR),
];

/// A kind of pod.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Runc,
    /// Caisson with `caisson.dev/scratch: shared`.
    Shared,
    /// Caisson with `caisson.dev/scratch: disk`.
    Disk,
}

/// Writes, renames, reads and removes files, all in one process.
const SMALL_FILES: &str = r#"
my $n = shift; mkdir "small" or die $!;
for (1..$n) { open my $f, ">", "small/a$_" or die $!; print $f "text $_\n"; close $f; }
for (1..$n) { rename "small/a$_", "small/b$_" or die $!; }
for (1..$n) { open my $f, "<", "small/b$_" or die $!; <$f> eq "text $_\n" or die; }
for (1..$n) { unlink "small/b$_" or die $!; }
"#;

/// Prints how long each piece of work takes in each place, and how many times as long as on the
/// tmpfs of the same pod.
pub fn measure(node: &CriNode, rounds: usize) -> Result<()> {
    node.image("work")?;
    let input = node.dir().join("work-input");
    make_input(&input)?;
    let mut all = WORK.map(|_| PLACES.map(|(_, place, _)| Series::new(place)));
    for kind in [Kind::Runc, Kind::Shared, Kind::Disk] {
        let pod = pod(node, kind)?;
        let empty = format!("pods/{UID}/volumes/kubernetes.io~empty-dir/empty");
        let container = pod
            .container("work")
            .privileged()
            .memory_mib(2048)
            .mount_read_only(&input, "/input")
            .mount(&pod.folder(&empty)?, EMPTY_DIR)
            .sh("exec sleep infinity")
            .start()?;
        container.sh(&format!(
            "mkdir {TMPFS} {ROOT} && mount -t tmpfs -o size=1g none {TMPFS}"
        ))?;
        for round in 0..rounds {
            for ((what, line), series) in WORK.iter().zip(&mut all) {
                let places = PLACES.iter().zip(series);
                for ((_, name, place), series) in places.filter(|((of, ..), _)| *of == kind) {
                    let time = done(&container, &format!("{place}/{round}"), line);
                    series.add(time.with_context(|| format!("{what} in {name}"))?);
                }
            }
        }
    }
    heading(&format!("\nwork with small files, rounds: {rounds}"));
    for ((what, _), series) in WORK.iter().zip(&all) {
        println!("  {what}");
        let mut tmpfs = &series[0];
        for ((_, _, folder), series) in PLACES.iter().zip(series) {
            if *folder == TMPFS {
                tmpfs = series;
            }
            println!(
                "    {:<28} {:>7.0} ms, {:>6.2} of its tmpfs",
                series.name(),
                millis(series.median()),
                series.ratio_to(tmpfs),
            );
        }
    }
    Ok(())
}

fn pod(node: &CriNode, kind: Kind) -> Result<Pod<'_>> {
    let pod = node.pod().privileged().configure(|config| {
        config.metadata.get_or_insert_default().uid = UID.to_owned();
    });
    let scratch = match kind {
        Kind::Runc => return pod.runtime(Runtime::Runc).start(),
        Kind::Shared => "shared",
        Kind::Disk => "disk",
    };
    pod.runtime(Runtime::Caisson)
        .annotation("caisson.dev/scratch", scratch)
        .annotation("caisson.dev/home", "ephemeral")
        .annotation("caisson.dev/home-path", HOME)
        .start()
}

/// Measures how long a line takes in a new folder until all of it is on the disk.
fn done(container: &Container<'_>, folder: &str, line: &str) -> Result<Duration> {
    let line = format!(
        "set -e; mkdir -p {folder}; cd {folder}; export HOME={folder}; date +%s%N; \
         {{ {line}; sync -f .; }} >&2; date +%s%N"
    );
    let told = container
        .exec_within(["sh", "-c", &line], LIMIT)?
        .ok()?
        .line();
    let (start, end) = told.split_once('\n').context("two times")?;
    let (start, end): (u64, u64) = (start.parse()?, end.parse()?);
    Ok(Duration::from_nanos(end.saturating_sub(start)))
}

/// Makes a tar of a typical source tree, an application with its packages, and the script.
fn make_input(input: &Path) -> Result<()> {
    fs::create_dir_all(input.join("app"))?;
    fs::write(input.join("small-files.pl"), SMALL_FILES)?;
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
