//! The agent: PID 1 of the guest. The same binary also plays the guest's helper roles, depending on
//! how it is called:
//!
//! - PID 1 (`/init` of the initramfs): [`boot`] makes the machine usable, then [`service`] serves
//!   the host.
//! - `/pause` (called by the agent): [`pause`] is PID 1 of the pid namespace that containers of a
//!   pod share.
//! - `/sbin/modprobe` (called by the kernel): [`modprobe`] loads a module that the initramfs does
//!   not have.
//! - `caisson-agent runtime <verb>` (called by the agent): [`runtime`], single-threaded, makes one
//!   container or process.
//! - `caisson-agent --fake DIR` (called by tests on the host): [`fake`] runs the service on
//!   unix sockets.
//!
//! The modules form layers. A module may use what stands below it in this list, and nothing above
//! it, so no file imports a file that imports it:
//!
//! 1. [`boot`] and [`fake`] prepare a machine, a guest or the host of a test, and start the
//!    service.
//! 2. [`service`] answers the host, each request in one short method. `hostile`, in builds for
//!    tests, stands between the host and the service.
//! 3. [`containers`] makes, starts, watches and removes containers and their processes.
//! 4. [`machine`] says which machine this is.
//! 5. [`devices`] makes usable what the host plugs in. [`modprobe`] loads a module that the kernel
//!    asks for.
//! 6. [`launch`] starts runtime processes and talks to them.
//! 7. [`runtime`] is such a process. Its `task` holds the words that it shares with [`launch`].
//! 8. [`kernel`] asks the guest's kernel: memory, mounts, sysfs, modules, terminals.
//! 9. [`cgroup`], [`reaper`], [`pause`], [`door`] with [`secret`], [`forward`], [`identity`],
//!    [`id`], [`console`] and [`error`] each do one thing, and of each other use
//!    no more than [`error`] and, for the door, the secret.

mod boot;
mod cgroup;
mod clock;
mod console;
mod containers;
mod devices;
mod door;
mod error;
mod fake;
mod forward;
#[cfg(feature = "hostile")]
mod hostile;
mod id;
mod identity;
mod kernel;
mod launch;
mod listen;
mod machine;
mod modprobe;
mod packets;
mod pause;
mod reaper;
mod runtime;
mod secret;
mod service;

use std::{ffi::OsString, os::unix::ffi::OsStrExt, path::PathBuf, process::ExitCode};

pub use error::{Error, Result};

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    if name == pause::NAME {
        pause::run();
    }
    if std::process::id() == 1 {
        boot::run();
    }
    if name.as_bytes().ends_with(b"modprobe") {
        return modprobe::run(args);
    }
    let rest: Vec<OsString> = args.collect();
    let words: Vec<&str> = rest.iter().filter_map(|word| word.to_str()).collect();
    match words[..] {
        ["--fake", dir] => fake::serve(&PathBuf::from(dir)),
        ["runtime"] => runtime::run(),
        ["--version"] => {
            println!("caisson-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("caisson-agent runs as PID 1 of a Caisson guest; on a host: caisson-agent --fake DIR");
            ExitCode::from(2)
        }
    }
}
