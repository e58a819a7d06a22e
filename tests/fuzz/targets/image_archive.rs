//! Fuzzes an image archive: its tables and its configuration, and the layers to their end.
#![no_main]

use std::{fs, io, io::Read};

use caisson_fuzz::{memory, run::image::Image};
use libfuzzer_sys::fuzz_target;

/// Decoders have windows of some MiB.
const LIMIT: usize = 64 << 20;
/// How many bytes of a layer are read.
const MAX_LAYER: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let path = dir.path().join("image.tar");
    fs::write(&path, bytes).expect("a file");
    memory::bounded(LIMIT, || {
        let Ok(image) = Image::open(&path, &dir.path().join("plain")) else {
            return;
        };
        for layer in image.layers().take(8).flatten() {
            let _ = io::copy(&mut layer.tar.take(MAX_LAYER), &mut io::sink());
        }
    });
});
