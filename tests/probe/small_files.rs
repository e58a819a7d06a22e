//! Measures work with small files.

use std::{fs, io, path::PathBuf, time::Instant};

/// Makes a folder of small files, reads them, renames them, and removes them with the folder.
/// Returns how long each of the four took, in microseconds.
pub fn small_files(folder: &str, count: u64) -> io::Result<String> {
    let folder = PathBuf::from(folder);
    let text = "a line of a small file\n".repeat(50);
    let path = |name: &str, number| folder.join(format!("{name}-{number}"));
    let mut times = Vec::new();
    let mut timed = |work: &dyn Fn() -> io::Result<()>| {
        let started = Instant::now();
        work()?;
        times.push(started.elapsed().as_micros().to_string());
        io::Result::Ok(())
    };
    timed(&|| {
        fs::create_dir(&folder)?;
        (0..count).try_for_each(|number| fs::write(path("file", number), &text))
    })?;
    timed(&|| (0..count).try_for_each(|number| fs::read(path("file", number)).map(drop)))?;
    timed(&|| {
        (0..count).try_for_each(|number| fs::rename(path("file", number), path("other", number)))
    })?;
    timed(&|| {
        (0..count).try_for_each(|number| fs::remove_file(path("other", number)))?;
        fs::remove_dir(&folder)
    })?;
    Ok(times.join(" "))
}
