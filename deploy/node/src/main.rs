//! The `caisson` program; the library implements it.

use std::process::ExitCode;

fn main() -> ExitCode {
    caisson::main()
}
