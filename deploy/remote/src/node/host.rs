//! Runs `caisson` in the node's mount namespace, where containerd's configuration and systemd's
//! socket are.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{bail, Context, Result};
use nix::sched::{setns, CloneFlags};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader},
    process::Command,
};

/// How many of the last lines of a command's errors are kept to say why it failed.
const LINES: usize = 5;

/// Returns a path of this container as the node's processes see it.
pub fn seen_from_the_node(path: impl AsRef<Path>) -> PathBuf {
    let root = PathBuf::from(format!("/proc/{}/root", std::process::id()));
    match path.as_ref().strip_prefix("/") {
        Ok(relative) => root.join(relative),
        Err(_) => root.join(path),
    }
}

/// Runs the `caisson` beside this program on the node.
pub async fn caisson(process: u32, arguments: &[OsString]) -> Result<()> {
    let this = std::env::current_exe().context("find this program")?;
    let program = seen_from_the_node(this.with_file_name("caisson"));
    let show = |line: &str| println!("{line}");
    run(process, &program, arguments, None, show, false)
        .await
        .map(drop)
}

/// Runs a program on the node and returns what it prints. The program is killed if nobody waits for
/// it any more.
pub async fn ask(process: u32, program: &Path, arguments: &[OsString]) -> Result<String> {
    run(process, program, arguments, None, |_| (), true).await
}

/// Runs a program on the node that reads `input`, and returns what it prints.
pub async fn tell(
    process: u32,
    program: &Path,
    arguments: &[OsString],
    input: Vec<u8>,
) -> Result<String> {
    run(process, program, arguments, Some(input), |_| (), true).await
}

/// Runs a program in the mount namespace of `process` and returns its output. Each line of its
/// output and of its errors is shown. If it fails, the error has the last lines that it wrote.
async fn run(
    process: u32,
    program: &Path,
    arguments: &[OsString],
    input: Option<Vec<u8>>,
    show: impl Fn(&str),
    kill_on_drop: bool,
) -> Result<String> {
    let shown = shown(arguments);
    let path = format!("/proc/{process}/ns/mnt");
    let namespace = File::open(&path).with_context(|| {
        format!("enter the node's mount namespace, {path} (--node-process names another process)")
    })?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .kill_on_drop(kill_on_drop)
        .stdin(match &input {
            Some(_) => Stdio::piped(),
            None => Stdio::null(),
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // SAFETY: one system call between fork and exec, where there is one thread; it touches none of
    // this process's memory.
    unsafe {
        command.pre_exec(move || {
            // The working directory becomes the namespace's root.
            setns(&namespace, CloneFlags::CLONE_NEWNS).map_err(io::Error::from)
        });
    }
    let mut child = command
        .spawn()
        .with_context(|| format!("start {shown} on the node"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let stdin = child.stdin.take();
    let write = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A program that ends before it has read everything says why.
            let _ = stdin.write_all(&input).await;
        }
    };
    let (output, errors, ()) = tokio::join!(
        pass_on(stdout, show),
        pass_on(stderr, |line| eprintln!("{line}")),
        write
    );
    let status = child
        .wait()
        .await
        .with_context(|| format!("wait for {shown}"))?;
    if status.success() {
        return Ok(output.join("\n"));
    }
    bail!("{}", why(&shown, &status.to_string(), &errors))
}

/// Shows each line as it comes, and keeps all of them.
async fn pass_on(stream: Option<impl AsyncRead + Unpin>, show: impl Fn(&str)) -> Vec<String> {
    let mut kept = Vec::new();
    let Some(stream) = stream else {
        return kept;
    };
    let mut lines = BufReader::new(stream).lines();
    // A line that is not UTF-8 ends the loop; the exit status of the process says the rest.
    while let Ok(Some(line)) = lines.next_line().await {
        show(&line);
        kept.push(line);
    }
    kept
}

/// Returns the last lines that a failed command wrote, or its status where it wrote nothing.
fn why(shown: &str, status: &str, errors: &[String]) -> String {
    let last = &errors[errors.len().saturating_sub(LINES)..];
    let said: Vec<_> = last
        .iter()
        .map(|line| line.strip_prefix("caisson: ").unwrap_or(line))
        .filter(|line| !line.trim().is_empty())
        .collect();
    if said.is_empty() {
        format!("{shown}: {status}")
    } else {
        said.join("\n")
    }
}

fn shown(arguments: &[OsString]) -> String {
    let words: Vec<_> = std::iter::once(OsStr::new("caisson"))
        .chain(arguments.iter().map(OsString::as_os_str).take(2))
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn command_that_failed_is_explained_by_what_it_said_last() {
        let errors = lines(&["one", "two", "", "caisson: no QEMU: apt-get install it"]);
        assert_eq!(
            why("caisson node install", "exit status: 1", &errors),
            "one\ntwo\nno QEMU: apt-get install it"
        );
    }

    #[test]
    fn command_that_said_nothing_is_explained_by_its_status() {
        assert_eq!(
            why("caisson node install", "signal: 9", &lines(&[""])),
            "caisson node install: signal: 9"
        );
    }

    #[test]
    fn path_of_the_container_is_seen_by_its_process() {
        let seen = seen_from_the_node("/usr/lib/caisson");
        let expected = format!("/proc/{}/root/usr/lib/caisson", std::process::id());
        assert_eq!(seen, Path::new(&expected));
    }
}
