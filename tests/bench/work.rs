//! Measures work with small files, as agents and CI jobs do it all day, in each kind of place that
//! a container has. What emulation costs is the same everywhere in a guest, so the yardstick is the
//! same work on a tmpfs of the same guest. The same work with runc stands beside it.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use caisson_tests::{
    cri::{Container, CriNode},
    Runtime,
};

use crate::table::{heading, millis, Series};

/// The number of files in the source tree, with 500 in each folder.
const FILES: usize = 4_000;
const PACKAGES: usize = 50;
/// The time limit for one piece of work.
const LIMIT: Duration = Duration::from_secs(900);
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

/// Where the work is done: a name for the table, and the folder in the container.
const PLACES: [(&str, &str); 4] = [
    ("tmpfs of the guest", "/tmpfs"),
    ("root", "/root-work"),
    ("emptyDir", "/empty"),
    ("home", HOME),
];

/// Writes, renames, reads and removes files, all in one process.
const SMALL_FILES: &str = r#"
my $n = shift; mkdir "small" or die $!;
for (1..$n) { open my $f, ">", "small/a$_" or die $!; print $f "text $_\n"; close $f; }
for (1..$n) { rename "small/a$_", "small/b$_" or die $!; }
for (1..$n) { open my $f, "<", "small/b$_" or die $!; <$f> eq "text $_\n" or die; }
for (1..$n) { unlink "small/b$_" or die $!; }
"#;

/// Prints how long each piece of work takes in each place, and the ratio to the guest's tmpfs.
pub fn measure(node: &CriNode, rounds: usize) -> Result<()> {
    node.image("work")?;
    let input = node.dir().join("work-input");
    make_input(&input)?;
    let mut caisson = WORK.map(|_| PLACES.map(|(place, _)| Series::new(place)));
    let mut runc = WORK.map(|_| PLACES.map(|(place, _)| Series::new(place)));
    for (runtime, all) in [(Runtime::Runc, &mut runc), (Runtime::Caisson, &mut caisson)] {
        let mut pod = node.pod().runtime(runtime).privileged();
        if runtime == Runtime::Caisson {
            pod = pod
                .annotation("caisson.dev/home", "ephemeral")
                .annotation("caisson.dev/home-path", HOME);
        }
        let pod = pod.start()?;
        let mut container = pod
            .container("work")
            .privileged()
            .memory_mib(2048)
            .mount_read_only(&input, "/input")
            .mount(&pod.folder("empty")?, "/empty");
        if runtime == Runtime::Runc {
            container = container.mount(&pod.folder("home")?, HOME);
        }
        let container = container.sh("exec sleep infinity").start()?;
        container.sh("mkdir /tmpfs /root-work && mount -t tmpfs -o size=1g none /tmpfs")?;
        for round in 0..rounds {
            for ((what, line), series) in WORK.iter().zip(all.iter_mut()) {
                for ((_, place), series) in PLACES.iter().zip(series) {
                    let time = done(&container, &format!("{place}/{round}"), line);
                    series.add(time.with_context(|| format!("{what} in {place}"))?);
                }
            }
            for (_, place) in PLACES {
                container
                    .exec_within(["rm", "-rf", &format!("{place}/{round}")], LIMIT)?
                    .ok()?;
            }
        }
    }
    heading(&format!(
        "\nwork with small files, medians of {rounds} rounds"
    ));
    for (((what, _), caisson), runc) in WORK.iter().zip(&caisson).zip(&runc) {
        println!("  {what}");
        for (series, beside) in caisson.iter().zip(runc) {
            println!(
                "    {:<20} {:>7.0} ms, {:>5.2} of the tmpfs; runc {:>6.0} ms, {:>5.2} of its own",
                series.name(),
                millis(series.median()),
                series.ratio_to(&caisson[0]),
                millis(beside.median()),
                beside.ratio_to(&runc[0]),
            );
        }
    }
    Ok(())
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
