//! Finds programs: the others of Caisson, and those of the host.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Returns the path of a program beside this one, or else its name, to be found in `PATH`.
///
/// A program that another mount namespace holds is executed as `/proc/PID/root/…`. The kernel then
/// names it by its path there, which leads nowhere here, and only the path that it was called by
/// leads to its folder (proc(5), `/proc/pid/exe`).
pub fn beside(name: &str) -> PathBuf {
    let called = std::env::args_os().next().map(PathBuf::from);
    first_beside(std::env::current_exe().ok(), called, name).unwrap_or_else(|| name.into())
}

/// Finds a program of the host on this process's `PATH` or in the `sbin` folders.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let own = env::split_paths(&path).filter(|folder| folder.is_absolute());
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    own.chain(usual)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// Looks for a program beside the first of two paths of this program that has it there.
fn first_beside(own: Option<PathBuf>, called: Option<PathBuf>, name: &str) -> Option<PathBuf> {
    // A name without a folder was looked up in `PATH`.
    let called = called.filter(|path| path.parent().is_some_and(|dir| dir != Path::new("")));
    let programs = [own, called].into_iter().flatten();
    let mut beside = programs.map(|path| path.with_file_name(name));
    beside.find(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_is_found_beside_the_path_of_this_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("other"), "").unwrap();
        let own = Some(dir.path().join("this"));
        assert_eq!(
            first_beside(own, None, "other"),
            Some(dir.path().join("other"))
        );
    }

    #[test]
    fn program_of_another_mount_namespace_is_found_beside_the_path_it_was_called_by() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("other"), "").unwrap();
        let own = Some("/no/such/folder/this".into());
        let called = Some(dir.path().join("this"));
        assert_eq!(
            first_beside(own, called, "other"),
            Some(dir.path().join("other"))
        );
    }

    #[test]
    fn program_called_by_its_name_is_not_looked_for_in_the_working_directory() {
        // Tests run in the folder of their crate.
        assert_eq!(
            first_beside(None, Some("caisson".into()), "Cargo.toml"),
            None
        );
    }
}
