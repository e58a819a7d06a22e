//! Tests reading archives as they occur in the wild, made here.

use std::{fs, io::Write};

use serde_json::{json, Value};
use tempfile::TempDir;

use super::*;

const LAYER: &[u8] = b"the bytes of a layer's tar";

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn config(architecture: &str) -> Vec<u8> {
    json!({
        "architecture": architecture,
        "config": { "Cmd": ["serve"], "Entrypoint": null, "User": "app" },
        "rootfs": { "diff_ids": [digest(LAYER)] },
    })
    .to_string()
    .into_bytes()
}

/// Makes an archive of files and (with `None`) of symlinks to `a/layer.tar`.
fn archive(files: &[(&str, Option<&[u8]>)]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.tar");
    let mut tar = tar::Builder::new(File::create(&path).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        match bytes {
            Some(bytes) => {
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, name, *bytes).unwrap();
            }
            None => {
                header.set_size(0);
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, name, "../a/layer.tar")
                    .unwrap();
            }
        }
    }
    tar.finish().unwrap();
    (dir, path)
}

fn open(path: &Path) -> Result<Image> {
    Image::open(path, &path.with_file_name("plain.tar"))
}

fn layers(image: &Image) -> Vec<Vec<u8>> {
    let read = |layer: Result<Layer>| {
        let mut bytes = Vec::new();
        layer.unwrap().tar.read_to_end(&mut bytes).unwrap();
        bytes
    };
    image.layers().map(read).collect()
}

/// Makes an OCI layout whose index leads to another with one manifest for each platform.
fn oci(layer: &[u8], config: &[u8], platforms: &[&str]) -> (TempDir, PathBuf) {
    let manifest = json!({
        "config": { "digest": digest(config) },
        "layers": [{ "digest": digest(layer) }],
    })
    .to_string();
    let entry = |platform: &&str| -> Value {
        let (os, architecture) = platform.split_once('/').unwrap();
        let named = match *platform {
            "linux/amd64" => digest(manifest.as_bytes()),
            _ => digest(b"not in here"),
        };
        json!({ "digest": named, "platform": { "os": os, "architecture": architecture } })
    };
    let entries: Vec<_> = platforms.iter().map(entry).collect();
    let inner = json!({ "manifests": entries }).to_string();
    let outer = json!({ "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": digest(inner.as_bytes()),
    }]})
    .to_string();
    let mut files = vec![("index.json".to_owned(), outer.as_bytes())];
    for blob in [layer, config, manifest.as_bytes(), inner.as_bytes()] {
        let hex = digest(blob).replace("sha256:", "");
        files.push((format!("blobs/sha256/{hex}"), blob));
    }
    let files: Vec<_> = files.iter().map(|(n, b)| (n.as_str(), Some(*b))).collect();
    archive(&files)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[test]
fn layers_are_read_however_they_are_packed() {
    let platforms = ["linux/arm64", "linux/amd64", "unknown/unknown"];
    for packed in [
        LAYER.to_owned(),
        gzip(LAYER),
        zstd::encode_all(LAYER, 1).unwrap(),
    ] {
        let (_dir, path) = oci(&packed, &config("amd64"), &platforms);
        let image = open(&path).unwrap();
        assert_eq!(layers(&image), [LAYER]);
        assert_eq!(image.config.cmd, ["serve"]);
        assert_eq!(image.config.user, "app");
        assert_eq!(image.config.entrypoint, Vec::<String>::new());
    }
}

#[test]
fn image_for_other_platforms_only_is_refused_naming_them() {
    let (_dir, path) = oci(LAYER, &config("amd64"), &["linux/arm64", "windows/amd64"]);
    let error = format!("{:#}", open(&path).err().unwrap());
    assert!(error.contains("linux/arm64"), "{error}");
    let (_dir, path) = oci(LAYER, &config("riscv64"), &["linux/amd64"]);
    let error = format!("{:#}", open(&path).err().unwrap());
    assert!(error.contains("riscv64"), "{error}");
}

#[test]
fn archive_of_docker_save_is_read_packed_too() {
    let config = config("amd64");
    let manifest = json!([{ "Config": "c.json", "Layers": ["b/layer.tar"] }]).to_string();
    let (_dir, path) = archive(&[
        ("a/layer.tar", Some(LAYER)),
        ("b/layer.tar", None),
        ("c.json", Some(&config)),
        ("manifest.json", Some(manifest.as_bytes())),
    ]);
    assert_eq!(layers(&open(&path).unwrap()), [LAYER]);
    fs::write(&path, gzip(&fs::read(&path).unwrap())).unwrap();
    assert_eq!(layers(&open(&path).unwrap()), [LAYER]);
}

#[test]
fn manifest_that_is_not_what_its_digest_says_is_refused() {
    let config = config("amd64");
    let (_dir, path) = oci(LAYER, &config, &["linux/amd64"]);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(5).position(|w| w == b"serve").unwrap();
    bytes[at] = b'S';
    fs::write(&path, bytes).unwrap();
    let error = format!("{:#}", open(&path).err().unwrap());
    assert!(error.contains("damaged"), "{error}");
}

#[test]
fn links_that_lead_in_a_circle_end() {
    let manifest = json!([{ "Config": "a/layer.tar", "Layers": [] }]).to_string();
    let (_dir, path) = archive(&[
        ("a/layer.tar", None),
        ("manifest.json", Some(manifest.as_bytes())),
    ]);
    assert!(open(&path).is_err());
}
