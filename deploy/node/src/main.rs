//! The `caisson` program, see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    caisson::main()
}
