//! Opens the log URIs that a request may name in place of FIFOs (containerd, runtime v2 README,
//! "Logging"): `file:///path` and `binary:///path?arg=value`.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use caisson_node::host::error::OnFile;
use tokio::{io::AsyncReadExt, net::unix::pipe, process::Command};

use super::sink::{Result, Sink, StreamError};

/// How long a logging program may take to report that it is ready, as in containerd's own shim.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// Whether a stream is named by a URI rather than a FIFO's path.
pub fn is_uri(stdio: &str) -> bool {
    stdio.contains("://")
}

/// Opens the sinks of stdout and stderr that a URI stands for.
pub async fn open(
    uri: &str,
    container: &str,
    namespace: &str,
) -> Result<(Option<Sink>, Option<Sink>)> {
    let refuse = |reason| StreamError::Uri {
        uri: uri.to_owned(),
        reason,
    };
    let (scheme, rest) = uri.split_once("://").ok_or_else(|| refuse("is no URI"))?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = PathBuf::from(percent_decode(path).ok_or_else(|| refuse("has a broken escape"))?);
    if !path.is_absolute() {
        return Err(refuse("needs an absolute path"));
    }
    match scheme {
        "fifo" => Err(refuse("is to be given as a plain path")),
        "file" => {
            let file = open_file(&path).await?;
            let second = file
                .try_clone()
                .await
                .map_err(StreamError::file("open log", &path))?;
            Ok((
                Some(Sink::Log(Box::pin(file))),
                Some(Sink::Log(Box::pin(second))),
            ))
        }
        "binary" => {
            let arguments = parse_query(query).ok_or_else(|| refuse("has a broken escape"))?;
            start_program(&path, &arguments, container, namespace).await
        }
        _ => Err(refuse(
            "has an unknown scheme; possible are file and binary",
        )),
    }
}

async fn open_file(path: &Path) -> Result<tokio::fs::File> {
    if let Some(folder) = path.parent() {
        tokio::fs::create_dir_all(folder)
            .await
            .map_err(StreamError::file("create", folder))?;
    }
    let mut options = tokio::fs::OpenOptions::new();
    let opened = options.create(true).append(true).open(path).await;
    opened.map_err(StreamError::file("open log", path))
}

/// Starts a logging program. It reads the container's stdout and stderr from descriptors 3 and 4,
/// and closes descriptor 5 when it is ready.
async fn start_program(
    path: &Path,
    arguments: &[String],
    container: &str,
    namespace: &str,
) -> Result<(Option<Sink>, Option<Sink>)> {
    let failed = |source| StreamError::Open {
        stream: format!("logging program {}", path.display()),
        source,
    };
    let (stdout, stdout_end) = pipe::pipe().map_err(failed)?;
    let (stderr, stderr_end) = pipe::pipe().map_err(failed)?;
    let (ready, mut ready_end) = pipe::pipe().map_err(failed)?;
    let descriptors: [OwnedFd; 3] = [
        stdout_end.into_blocking_fd().map_err(failed)?,
        stderr_end.into_blocking_fd().map_err(failed)?,
        ready.into_blocking_fd().map_err(failed)?,
    ];
    let mut command = Command::new(path);
    command
        .args(arguments)
        .env_clear()
        .env("CONTAINER_ID", container)
        .env("CONTAINER_NAMESPACE", namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(search) = std::env::var_os("PATH") {
        command.env("PATH", search);
    }
    place_descriptors(&mut command, descriptors);
    let mut child = command.spawn().map_err(failed)?;
    // The closure holds the descriptors. They must be closed here for the program to see the end of
    // the streams.
    drop(command);
    let mut byte = [0; 1];
    match tokio::time::timeout(READY_LIMIT, ready_end.read(&mut byte)).await {
        Ok(_) => {}
        Err(_) => return Err(failed(std::io::ErrorKind::TimedOut.into())),
    }
    tokio::spawn(async move {
        match child.wait().await {
            Ok(status) if status.success() => {}
            ended => log::warn!("logging program ended: {ended:?}"),
        }
    });
    Ok((
        Some(Sink::Log(Box::pin(stdout))),
        Some(Sink::Log(Box::pin(stderr))),
    ))
}

/// Makes `command` start with these open as descriptors 3, 4 and 5.
fn place_descriptors(command: &mut Command, descriptors: [OwnedFd; 3]) {
    use std::os::fd::AsRawFd;
    let place = move || {
        // Move them out of the way of 3 to 5 first, then into place. dup2 clears close-on-exec.
        let mut moved = [0; 3];
        for (to, from) in moved.iter_mut().zip(&descriptors) {
            // SAFETY: a system call on a descriptor that the closure owns; async-signal-safe.
            *to = unsafe { libc::fcntl(from.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10) };
            if *to < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        for (to, from) in (3..).zip(moved) {
            // SAFETY: as above.
            if unsafe { libc::dup2(from, to) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes only async-signal-safe system calls and allocates nothing.
    unsafe { command.pre_exec(place) };
}

/// Converts the query to arguments, `a=b&c` → `a b c`: keys and values in their order, as
/// containerd's NewBinaryCmd does.
fn parse_query(query: &str) -> Option<Vec<String>> {
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        arguments.push(percent_decode(key)?);
        if !value.is_empty() {
            arguments.push(percent_decode(value)?);
        }
    }
    Some(arguments)
}

/// Decodes percent-encoding (RFC 3986, section 2.1). Returns `None` if an escape is broken or the
/// result is not UTF-8.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_becomes_the_programs_arguments() {
        assert_eq!(
            parse_query("id=a%20b&verbose").unwrap(),
            ["id", "a b", "verbose"]
        );
    }

    #[test]
    fn broken_escape_is_noticed() {
        assert_eq!(percent_decode("a%2"), None);
        assert_eq!(percent_decode("a%zz"), None);
    }
}
