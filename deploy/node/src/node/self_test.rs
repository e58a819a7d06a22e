//! The self-test of `caisson node install`: runs a command in a VM of the version that was just
//! installed.
//!
//! The command is this very program with the libraries that it needs, so no image has to be on the
//! node.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{ensure, Context, Result};
use caisson_node::config::CONFIG_ENV;

use super::{
    files,
    program::{last_lines, output},
};

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
/// More time than a VM takes to boot without KVM on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

/// Runs the self-test and returns a line that says what ran. `dir` is made and removed.
pub fn run(version: &Path, config_file: &Path, dir: &Path) -> Result<String> {
    files::remove_tree(dir)?;
    let result = root(dir).and_then(|()| command(version, config_file, dir));
    files::remove_tree(dir)?;
    result.context("the self-test, a command in a VM, failed")
}

/// Runs in the VM: prints which kernel it sees.
pub fn hello() -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("kernel's release")?;
    println!("Linux {}", release.trim());
    Ok(())
}

fn command(version: &Path, config_file: &Path, root: &Path) -> Result<String> {
    let started = Instant::now();
    let mut caisson = Command::new(version.join("bin/caisson"));
    caisson
        .args([
            "run",
            "--tty=never",
            "--memory=64",
            "--env",
            "LD_LIBRARY_PATH=/lib64",
        ])
        .arg(root)
        .args(["--", "/caisson", "node", "hello"])
        .env(CONFIG_ENV, config_file)
        .current_dir("/");
    let output = output(&mut caisson, LIMIT)?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(
        output.status.success() && text.starts_with("Linux "),
        "{}: {}",
        output.status,
        last_lines(&output.stderr)
    );
    Ok(format!(
        "{text}, after {:.1} s",
        started.elapsed().as_secs_f64()
    ))
}

/// Makes a root folder with this program.
fn root(dir: &Path) -> Result<()> {
    let what = || format!("make {}", dir.display());
    for folder in ["lib64", "proc", "sys", "dev", "tmp", "etc"] {
        fs::create_dir_all(dir.join(folder)).with_context(what)?;
    }
    let program = dir.join("caisson");
    fs::copy("/proc/self/exe", &program).with_context(what)?;
    for (name, path) in libraries(&program)? {
        fs::copy(&path, dir.join("lib64").join(name)).with_context(what)?;
    }
    Ok(())
}

/// Returns the names and files of the libraries that the program links, as the loader lists them
/// (ld.so(8), `--list`). A program that links nothing gives an empty list.
fn libraries(program: &Path) -> Result<Vec<(String, PathBuf)>> {
    if !Path::new(LOADER).exists() {
        return Ok(Vec::new());
    }
    let listed = output(
        Command::new(LOADER).arg("--list").arg(program),
        Duration::from_secs(10),
    )?;
    if !listed.status.success() {
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    // `NAME => PATH (ADDRESS)`
    let mut found: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.trim().split_once(" => ")?;
            let path = rest.rsplit_once(" (")?.0;
            Some((name.rsplit('/').next()?.to_owned(), PathBuf::from(path)))
        })
        .collect();
    found.push(("ld-linux-x86-64.so.2".to_owned(), LOADER.into()));
    Ok(found)
}
