//! `k8s-cluster` is the supervisor of the tests' cluster.

use std::process::ExitCode;

fn main() -> ExitCode {
    caisson_local::command::main()
}
