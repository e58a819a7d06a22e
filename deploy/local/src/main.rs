//! The `caisson-local` program; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    caisson_local::command::main()
}
