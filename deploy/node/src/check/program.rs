//! Finds programs and their versions.

use std::{
    env,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::unistd::{access, AccessFlags};

/// How long a program may take to print its version.
const VERSION_LIMIT: Duration = Duration::from_secs(5);

/// Returns where in `PATH` a program is.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let mut places = env::split_paths(&path).map(|dir| dir.join(program));
    places.find(|place| access(place, AccessFlags::X_OK).is_ok() && place.is_file())
}

/// Returns what follows the name in the first line of `--version`, or why there is none.
pub fn version(program: &Path) -> Result<String, String> {
    let failed = |what: &str| Err(format!("{}: {what}", program.display()));
    let started = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => return failed(&error.to_string()),
    };
    let deadline = Instant::now() + VERSION_LIMIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => break,
            Ok(Some(status)) => return failed(&format!("--version: {status}")),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            _ => {
                // It may have ended meanwhile.
                let _ = child.kill().and_then(|()| child.wait());
                return failed("does not say its version");
            }
        }
    }
    let mut text = String::new();
    if let Some(stdout) = child.stdout.take() {
        let read = stdout.take(4096).read_to_string(&mut text);
        if let Err(error) = read {
            return failed(&error.to_string());
        }
    }
    let line = text.lines().next().unwrap_or_default();
    let start = line.find(|c: char| c.is_ascii_digit()).unwrap_or(0);
    Ok(line[start..].trim().to_owned())
}

/// Returns the first two numbers of a version.
pub fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(numbers("7.2.15 (Debian 1:7.2)"), Some((7, 2)));
        assert!(numbers("10.0.2") >= Some((7, 2)));
        assert!(numbers("6.9") < Some((7, 2)));
        assert_eq!(numbers("unknown"), None);
    }

    #[test]
    fn program_that_is_not_there_is_named() {
        let error = version(Path::new("/no/such/program")).unwrap_err();
        assert!(error.contains("/no/such/program"), "{error}");
    }
}
