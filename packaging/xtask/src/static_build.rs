//! Builds programs that are linked statically on glibc.

use std::process::Command;

use crate::step;

/// The one target that there is for it.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Returns `cargo build` for [`TARGET`] with `flags` of rustc in addition to those that link
/// statically. The binaries are below a folder of that name in cargo's target folder.
pub fn cargo(flags: &str) -> Command {
    let mut cargo = step::cargo();
    cargo
        .args(["build", "--target", TARGET])
        // Both would take precedence over the flags below.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            format!("-C target-feature=+crt-static {flags}"),
        );
    cargo
}
