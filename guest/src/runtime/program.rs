//! Finds the program that a process executes, gives it its environment and executes it. Errors are
//! in the words of runc.
//!
//! This runs inside the container, with the process' user, rights and directory.

use std::{
    convert::Infallible,
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::AT_FDCWD,
    unistd::{faccessat, AccessFlags},
};
use oci_spec::runtime::Process;

/// The home directory if /etc/passwd has none.
const NO_HOME: &str = "/";
/// How many bytes of /etc/passwd are read at most. The file belongs to the container.
const MAX_PASSWD: u64 = 1 << 20;

/// Finds the executable for `args[0]` as runc does: a name with a slash is taken as it is, others
/// are searched along `PATH` of `env`.
pub fn find(name: &str, env: &[String]) -> Result<PathBuf, String> {
    if name.is_empty() {
        return Err("exec: \"\": executable file not found in $PATH".to_string());
    }
    if name.contains('/') {
        return match usable(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(Errno::ENOENT) => Err(format!(
                "exec: \"{name}\": stat {name}: no such file or directory"
            )),
            Err(error) => Err(format!("exec: \"{name}\": {}", words(error))),
        };
    }
    let path = env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or_default();
    let mut refused = None;
    for dir in path.split(':') {
        let file = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match usable(&file) {
            Ok(()) => return Ok(file),
            Err(Errno::EACCES) if file.is_file() => refused = Some(Errno::EACCES),
            Err(_) => {}
        }
    }
    match refused {
        Some(error) => Err(format!("exec: \"{name}\": {}", words(error))),
        None => Err(format!(
            "exec: \"{name}\": executable file not found in $PATH"
        )),
    }
}

fn usable(file: &Path) -> Result<(), Errno> {
    let metadata = fs::metadata(file).map_err(|error| errno(&error))?;
    if metadata.is_dir() {
        return Err(Errno::EISDIR);
    }
    faccessat(
        AT_FDCWD,
        file,
        AccessFlags::X_OK,
        nix::fcntl::AtFlags::AT_EACCESS,
    )
}

/// Returns the environment in its order. Of entries with the same name the last one counts. `HOME`
/// comes from /etc/passwd if there is none.
pub fn environment(env: &[String], uid: u32) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_string();
    let mut result: Vec<String> = Vec::with_capacity(env.len() + 1);
    for (number, entry) in env.iter().enumerate() {
        let again = env[number + 1..]
            .iter()
            .any(|later| name(later) == name(entry));
        if !again && entry.contains('=') && entry != "HOME=" {
            result.push(entry.clone());
        }
    }
    if !result.iter().any(|entry| entry.starts_with("HOME=")) {
        result.push(format!("HOME={}", home(uid)));
    }
    result
}

fn home(uid: u32) -> String {
    use io::Read;
    let mut text = Vec::new();
    if let Ok(file) = fs::File::open("/etc/passwd") {
        // If reading fails halfway, the part that was read is used.
        let _ = file.take(MAX_PASSWD).read_to_end(&mut text);
    }
    home_in(&String::from_utf8_lossy(&text), uid)
}

fn home_in(passwd: &str, uid: u32) -> String {
    passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2).and_then(|field| field.parse().ok()) == Some(uid))
        .and_then(|fields| fields.get(5).map(|home| home.to_string()))
        .filter(|home| !home.is_empty())
        .unwrap_or_else(|| NO_HOME.to_string())
}

/// Replaces this process by the program.
pub fn execute(process: &Process) -> Result<Infallible, String> {
    let args = process.args().clone().unwrap_or_default();
    let env = process.env().clone().unwrap_or_default();
    let name = args.first().map(String::as_str).unwrap_or_default();
    let file = find(name, &env)?;
    let c_string = |text: &str| {
        CString::new(text).map_err(|_| format!("exec: {text:?}: a zero byte in an argument"))
    };
    let argv = args
        .iter()
        .map(|arg| c_string(arg))
        .collect::<Result<Vec<_>, _>>()?;
    let env = environment(&env, process.user().uid());
    let envp = env
        .iter()
        .map(|entry| c_string(entry))
        .collect::<Result<Vec<_>, _>>()?;
    let path = c_string(&file.to_string_lossy())?;
    nix::unistd::execve(&path, &argv, &envp)
        .map_err(|error| format!("exec {}: {}", file.display(), words(error)))
}

/// Changes to the process' directory. Without one, nothing is done.
pub fn change_dir(cwd: &Path) -> Result<(), Errno> {
    if cwd.as_os_str().is_empty() {
        return Ok(());
    }
    nix::unistd::chdir(cwd)
}

/// Returns runc's message for a directory that can't be entered.
pub fn no_dir(cwd: &Path, error: Errno) -> String {
    format!(
        "chdir to cwd ({:?}) set in config.json failed: {}",
        cwd.display().to_string(),
        words(error)
    )
}

/// Returns the system's message for an error, as Go writes it.
pub fn words(error: Errno) -> String {
    error.desc().to_lowercase()
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| word.to_string()).collect()
    }

    #[test]
    fn program_in_the_path_is_found() {
        let env = strings(&["PATH=/nosuch:/bin"]);
        assert_eq!(find("sh", &env).unwrap(), Path::new("/bin/sh"));
    }

    #[test]
    fn program_not_in_the_path_is_told_as_runc_does() {
        let told = find("nosuch", &strings(&["PATH=/bin"])).unwrap_err();
        assert_eq!(told, "exec: \"nosuch\": executable file not found in $PATH");
    }

    #[test]
    fn program_without_a_path_is_not_found() {
        assert!(find("sh", &[]).is_err());
    }

    #[test]
    fn program_that_is_no_file_is_told_as_runc_does() {
        assert_eq!(
            find("/nosuch", &[]).unwrap_err(),
            "exec: \"/nosuch\": stat /nosuch: no such file or directory"
        );
        assert_eq!(
            find("/etc", &[]).unwrap_err(),
            "exec: \"/etc\": is a directory"
        );
        assert_eq!(
            find("/etc/passwd", &[]).unwrap_err(),
            "exec: \"/etc/passwd\": permission denied"
        );
    }

    #[test]
    fn environment_keeps_the_last_of_a_name_and_its_order() {
        let env = strings(&["A=1", "B=2", "A=3", "HOME=/h", "junk"]);
        assert_eq!(environment(&env, 0), ["B=2", "A=3", "HOME=/h"]);
    }

    #[test]
    fn home_is_that_of_the_user() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/srv/app:/bin/sh\n";
        assert_eq!(home_in(passwd, 1000), "/srv/app");
        assert_eq!(home_in(passwd, 7), "/");
    }
}
