//! Collects what libcontainer logs on its way to a failure. Its errors name only the last step,
//! while the log has the causes.
//!
//! The processes that libcontainer clones write to the same file, which is gone when the
//! container's program starts.

use std::{
    ffi::CString,
    fmt::{self, Write as _},
    fs::File,
    io::{Read, Seek, Write},
    os::fd::FromRawFd,
    sync::OnceLock,
};

use nix::{
    fcntl::{fcntl, FcntlArg},
    sys::memfd::{memfd_create, MFdFlags},
};
use tracing::{
    field::{Field, Visit},
    span, Event, Level, Metadata, Subscriber,
};

use super::{descriptors::OWN, error::Error};

/// Marks a line that is the whole message.
const FINAL: &str = "final: ";
/// The most lines of the log in one message.
const MAX_LINES: usize = 4;

static FILE: OnceLock<File> = OnceLock::new();

/// Starts to collect the log.
pub fn start() {
    // Without the file, messages are shorter.
    let made = memfd_create(CString::default().as_c_str(), MFdFlags::MFD_CLOEXEC);
    let made = made.and_then(|file| fcntl(file, FcntlArg::F_DUPFD_CLOEXEC(OWN)));
    if let Ok(file) = made {
        // SAFETY: fcntl(2) just returned this descriptor, and nothing else owns it.
        let _ = FILE.set(unsafe { File::from_raw_fd(file) });
        let _ = tracing::subscriber::set_global_default(Collector);
    }
}

/// Gives the reason in words for people. What libcontainer says about it is then left out.
pub fn last_words(message: &str) {
    line(&format!("{FINAL}{message}"));
}

/// Returns the message for the host.
pub fn explain(error: &Error) -> String {
    let mut log = String::new();
    if let Some(mut file) = FILE.get() {
        // If the log can't be read, messages are shorter.
        let _ = file.rewind().and_then(|()| file.read_to_string(&mut log));
    }
    tell(&crate::error::chain(error), &log)
}

fn tell(error: &str, log: &str) -> String {
    if let Some(message) = log.lines().find_map(|line| line.strip_prefix(FINAL)) {
        return message.to_string();
    }
    if let Some(message) = of_a_mount(log) {
        return message;
    }
    let mut lines: Vec<&str> = Vec::new();
    for line in log.lines() {
        if !lines.contains(&line) && !error.contains(line) {
            lines.push(line);
        }
    }
    lines.truncate(MAX_LINES);
    match lines[..] {
        [] => error.to_string(),
        _ => format!("{error} ({})", lines.join("; ")),
    }
}

/// Returns the reason if the log says that a mount failed, as runc gives it: where, and what the
/// kernel said. libcontainer writes down all that it knows about the mount.
fn of_a_mount(log: &str) -> Option<String> {
    const MOUNT: &str = "failed to mount Mount { destination: \"";
    let line = log.lines().find_map(|line| line.strip_prefix(MOUNT))?;
    let (destination, rest) = line.split_once('"')?;
    let (_, step) = rest.rsplit_once(" }: ")?;
    let said = log
        .split_once("message: \"")
        .and_then(|(_, said)| said.split_once('"'));
    Some(match said {
        Some((said, _)) => format!("mount at {destination:?}: {step}: {said}"),
        None => format!("mount at {destination:?}: {step}"),
    })
}

fn line(text: &str) {
    if let Some(mut file) = FILE.get() {
        let text = text.replace(['\n', '\r'], " ");
        // The file is in memory. If writing fails, messages are shorter.
        let _ = file.write_all(format!("{text}\n").as_bytes());
    }
}

struct Collector;

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == Level::ERROR
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        line(fields.0.trim());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => {
                let rest = std::mem::take(&mut self.0);
                write!(self.0, "{value:?} {rest}")
            }
            name => write!(self.0, "{name}={value:?} "),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_with_last_words_is_told_in_them() {
        let log = "failed to validate\nfinal: exec: \"x\": executable file not found in $PATH\n";
        assert_eq!(
            tell("create container: exec process failed", log),
            "exec: \"x\": executable file not found in $PATH"
        );
    }

    #[test]
    fn failure_with_a_log_tells_each_line_once() {
        assert_eq!(
            tell(
                "create container",
                "no mount err=EPERM\nno mount err=EPERM\n"
            ),
            "create container (no mount err=EPERM)"
        );
    }

    #[test]
    fn failure_of_a_mount_tells_where_and_what_the_kernel_said() {
        let log = "failed to mount Mount { destination: \"/data/sub\", typ: Some(\"bind\"), \
                   uid_mappings: None }: create next directory component failed\n\
                   failed to prepare rootfs err=Mount(Pathrs(Os { code: 30, \
                   message: \"Read-only file system\" }))\n";
        assert_eq!(
            tell("create container: exec process failed", log),
            "mount at \"/data/sub\": create next directory component failed: Read-only file system"
        );
    }

    #[test]
    fn failure_without_a_log_is_told_as_it_is() {
        assert_eq!(tell("create container", ""), "create container");
    }
}
