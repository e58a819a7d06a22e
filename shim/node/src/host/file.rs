//! Writes files of ours so that a reader sees the old content or the new, never a part.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use super::error::{FileError, OnFile};

/// Puts a file with this content in the place of the one at `path`, if there is one. Only its
/// owner may read it.
///
/// The content is written to `.NAME` beside it first: one writer at a time, in a folder that nobody
/// else can write to. Nothing is synced: the file outlives a crash of its writer, not of the node.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let new = path.with_file_name(name);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(&new)
        .and_then(|mut file| file.write_all(content))
        .map_err(FileError::file("write", &new))?;
    fs::rename(&new, path).map_err(FileError::file("replace", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn replaced_file_has_the_new_content_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        replace(&path, b"a longer one").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_a_killed_writer_left_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(dir.path().join(".file"), b"a part of something else").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn file_of_a_missing_folder_is_an_error_that_names_it() {
        let error = replace(Path::new("/nonexistent/file"), b"").unwrap_err();
        assert_eq!(error.to_string(), "write /nonexistent/.file");
    }
}
