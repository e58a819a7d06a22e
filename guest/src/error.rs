//! The errors of the guest, and the ttrpc code that the host gets for each.

use std::{io, path::PathBuf, time::Duration};

use ttrpc::Code;

/// A failed operation, with the path, id or device on which it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, directory or device node can't be used.
    #[error("{action} {}", path.display())]
    File {
        /// For example `read`.
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file system can't be mounted.
    #[error("mount {what} at {}", target.display())]
    Mount {
        /// The type, tag or serial.
        what: String,
        target: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A kernel module can't be loaded.
    #[error("load module {name}")]
    Module {
        name: String,
        #[source]
        source: io::Error,
    },
    /// The kernel refused a call that does not concern a file.
    #[error("{call}")]
    System {
        /// The call and its purpose.
        call: &'static str,
        #[source]
        source: io::Error,
    },
    /// A network card can't be set up as the host said.
    #[error("{step} the interface {interface}")]
    Network {
        interface: String,
        step: &'static str,
        #[source]
        source: io::Error,
    },
    /// A device that the host announced did not appear.
    #[error("{device} did not appear within {} s", waited.as_secs())]
    NoDevice { device: String, waited: Duration },
    /// Something that normally happens at once did not.
    #[error("{what}: not done within {} s", waited.as_secs())]
    Slow {
        what: &'static str,
        waited: Duration,
    },
    /// The runtime process failed, see [`crate::runtime`]; the message is for people.
    #[error("{message}")]
    Runtime { message: String },
    /// The runtime process ended without an answer.
    #[error("runtime {verb} ended with status {status} and no answer")]
    RuntimeDied { verb: &'static str, status: u32 },
    /// There is no such container.
    #[error("container {0} not found")]
    NoContainer(String),
    /// There is no such exec, or it has ended.
    #[error("process {exec:?} of container {container} {what}")]
    NoProcess {
        container: String,
        exec: String,
        /// `not found` or `already finished`
        what: &'static str,
    },
    /// The id is taken.
    #[error("{what} {id} exists already")]
    Exists { what: &'static str, id: String },
    /// The container is in another state than the call needs.
    #[error("container {container} is {state}, can't {action}")]
    State {
        container: String,
        state: &'static str,
        action: &'static str,
    },
    /// A request has JSON that can't be read.
    #[error("{field} is not valid")]
    Json {
        field: &'static str,
        #[source]
        source: serde_json::Error,
    },
    /// A field of a request has a value that is not accepted.
    #[error("{field} {value:?}: {why}")]
    Argument {
        field: &'static str,
        value: String,
        why: &'static str,
    },
}

/// The result of an operation in the guest.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Turns an I/O error into an [`Error::File`].
    pub fn file<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Error {
        let path = path.into();
        move |source| Error::File {
            action,
            path,
            source: source.into(),
        }
    }

    /// Turns an I/O error into an [`Error::System`].
    pub fn system<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::System {
            call,
            source: source.into(),
        }
    }

    fn code(&self) -> Code {
        match self {
            Error::File { .. }
            | Error::Mount { .. }
            | Error::Module { .. }
            | Error::System { .. }
            | Error::Network { .. }
            | Error::Slow { .. }
            | Error::Runtime { .. }
            | Error::RuntimeDied { .. } => Code::INTERNAL,
            Error::NoDevice { .. } | Error::NoContainer(_) | Error::NoProcess { .. } => {
                Code::NOT_FOUND
            }
            Error::Exists { .. } => Code::ALREADY_EXISTS,
            Error::State { .. } => Code::FAILED_PRECONDITION,
            Error::Argument { .. } | Error::Json { .. } => Code::INVALID_ARGUMENT,
        }
    }

    /// Returns the error with all its causes, outermost first.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// Returns an error with all its causes, outermost first. Leaves out causes that only repeat what
/// was said.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), error.chain()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_with_a_cause_tells_both() {
        let error = Error::file("read", "/x")(io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(
            error.chain(),
            "read /x: No such file or directory (os error 2)"
        );
    }
}
