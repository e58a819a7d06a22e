//! Lists the shared libraries that a program is linked with.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{bail, Result};

use crate::step;

/// Returns a program's shared libraries and the loader, at the places where the loader looks for
/// them.
pub fn of(program: &Path) -> Result<Vec<PathBuf>> {
    let said = step::output(Command::new("ldd").arg(program))?;
    let said = String::from_utf8_lossy(&said).into_owned();
    Ok(paths(&said)?.into_iter().map(PathBuf::from).collect())
}

/// Returns the paths in ldd's output, sorted.
fn paths(said: &str) -> Result<Vec<&str>> {
    let mut paths = Vec::new();
    for line in said.lines() {
        if line.contains("not found") {
            bail!("ldd: {}", line.trim());
        }
        // `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)`; the kernel's own page has no path.
        paths.extend(line.split_whitespace().find(|word| word.starts_with('/')));
    }
    paths.sort_unstable();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_paths_are_those_that_ldd_found() {
        let said = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let expected = ["/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(paths(said).unwrap(), expected);
    }

    #[test]
    fn library_that_is_not_found_is_named() {
        let error = paths("\tlibx.so => not found\n").unwrap_err();
        assert!(error.to_string().contains("libx.so"));
    }
}
