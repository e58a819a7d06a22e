//! `cargo xtask test-tools`: what the tests and the bench compare with and Debian does not have, from the Go modules
//! under `packaging/test-tools`, whose go.mod and go.sum are the pins. Nothing of this is shipped.

use std::{path::Path, process::Command};

use anyhow::{bail, Result};

use crate::{dirs::Dirs, files, step};

/// Debian's backported Go; `packaging/setup` installs it only where the PATH has none that is new enough.
const BACKPORT: &str = "/usr/lib/go-1.23/bin/go";

/// A binary set built from one module of `packaging/test-tools`.
struct Tool {
    /// The module's folder.
    module: &'static str,
    /// The folder under `target/cache/tools` whose `bin` gets the binaries.
    to: &'static str,
    packages: &'static [&'static str],
    tags: &'static str,
    cgo: bool,
}

const CONTAINERD: Tool = Tool {
    module: "containerd",
    to: "containerd-2.1",
    packages: &[
        "github.com/containerd/containerd/v2/cmd/containerd",
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        "github.com/containerd/containerd/v2/cmd/ctr",
    ],
    tags: "no_btrfs",
    cgo: false,
};

const RUNC: Tool = Tool {
    module: "runc",
    to: "containerd-2.1",
    packages: &["github.com/opencontainers/runc"],
    tags: "seccomp",
    cgo: true,
};

const GVISOR: Tool = Tool {
    module: "gvisor",
    to: "gvisor",
    packages: &["gvisor.dev/gvisor/runsc"],
    tags: "",
    // With cgo runsc dies in the empty root that it gives itself.
    cgo: false,
};

/// Builds containerd 2.1 and runc, and gVisor for the bench if it is wanted.
pub fn build(dirs: &Dirs, gvisor: bool) -> Result<()> {
    build_tool(dirs, &CONTAINERD)?;
    build_tool(dirs, &RUNC)?;
    if gvisor {
        build_tool(dirs, &GVISOR)?;
    }
    Ok(())
}

fn build_tool(dirs: &Dirs, tool: &Tool) -> Result<()> {
    let module = dirs.root.join("packaging/test-tools").join(tool.module);
    let bin = dirs.cache.join("tools").join(tool.to).join("bin");
    let stamp_path = bin.join(format!(".{}", tool.module));
    let stamp = [
        files::read_text(&module.join("go.mod"))?,
        files::read_text(&module.join("go.sum"))?,
        include_str!("test_tools.rs").to_owned(),
    ]
    .concat();
    if std::fs::read_to_string(&stamp_path).is_ok_and(|old| old == stamp) {
        return Ok(());
    }
    files::make_dir(&bin)?;
    let go = go();
    if Command::new(go).arg("version").output().is_err() {
        bail!(
            "no `go` on the PATH: {} is built with Go 1.23 or later, which `packaging/setup test` brings",
            tool.module
        );
    }
    let mut build = Command::new(go);
    build
        .args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false"])
        .args(["-tags", tool.tags, "-o"])
        .arg(&bin)
        .args(tool.packages)
        .current_dir(&module)
        .env("CGO_ENABLED", if tool.cgo { "1" } else { "0" });
    step::run(&dirs.log, tool.module, &mut build)?;
    files::write(&stamp_path, stamp.as_bytes(), 0o644)
}

fn go() -> &'static str {
    if Path::new(BACKPORT).exists() {
        BACKPORT
    } else {
        "go"
    }
}
