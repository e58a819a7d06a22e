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
//! - `caisson-agent --fake DIR` (called by tests on the host): the service on unix sockets, see
//!   [`machine::Machine::Fake`].

mod boot;
mod cgroup;
mod console;
mod container;
mod containers;
mod devices;
mod door;
mod error;
mod follow;
mod forward;
#[cfg(feature = "hostile")]
mod hostile;
mod identity;
mod kernel;
mod launch;
mod machine;
mod memory;
mod modprobe;
mod oom;
mod pause;
mod pod_pids;
mod process;
mod reaper;
mod runtime;
mod secret;
mod service;
mod streams;

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
        ["--fake", dir] => machine::serve_fake(&PathBuf::from(dir)),
        ["runtime", _] => runtime::run(),
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
