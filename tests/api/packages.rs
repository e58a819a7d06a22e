//! Tests what `cargo xtask release` left in `target/dist`: the Debian package, the node image,
//! checksums, SBOM, licences.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{ensure, Context, Result};
use caisson_tests::paths;
use rstest::rstest;
use serde_json::Value;
use tempfile::TempDir;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The folder of Caisson's files, both in the package and in the image.
const PLACE: &str = "usr/lib/caisson";

#[test]
fn debian_package_installs_into_an_empty_root_and_caisson_runs() -> Result<()> {
    let root = installed()?;
    let said = run(Command::new(root.path().join("usr/bin/caisson")).arg("--version"))?;
    assert_eq!(said.trim(), format!("caisson {VERSION}"));
    Ok(())
}

#[test]
fn debian_package_has_what_a_node_gets() -> Result<()> {
    let root = installed()?;
    assert_eq!(payload(&root.path().join(PLACE))?, payload(&paths::dist())?);
    Ok(())
}

#[test]
fn debian_package_keeps_a_configuration_that_was_changed() -> Result<()> {
    let root = installed()?;
    let config = root.path().join("etc/caisson/config.toml");
    caisson_oci::NodeConfig::parse(&[("config.toml".to_owned(), fs::read_to_string(&config)?)])?;
    fs::write(&config, "[log]\nlevel = \"debug\"\n")?;
    dpkg(root.path(), &["--install"], &[deb()?])?;
    assert_eq!(fs::read_to_string(&config)?, "[log]\nlevel = \"debug\"\n");
    Ok(())
}

#[test]
fn debian_package_that_is_purged_leaves_nothing() -> Result<()> {
    let root = installed()?;
    // One file is changed after the installation. The checksums must report this file and no other.
    let changed = root.path().join(PLACE).join("bin/caisson");
    fs::write(&changed, "")?;
    let verify = Command::new("dpkg")
        .arg("--root")
        .arg(root.path())
        .args(["--verify", "caisson"])
        .output()?;
    let verified = String::from_utf8_lossy(&verify.stdout).into_owned();
    assert_eq!(verified.lines().count(), 1, "{verified}");
    dpkg(root.path(), &["--purge", "caisson"], &[])?;
    for gone in [
        "usr/lib/caisson",
        "usr/share/doc/caisson",
        "etc/caisson",
        "usr/bin/caisson",
    ] {
        assert!(!root.path().join(gone).exists(), "{gone}");
    }
    Ok(())
}

#[test]
fn node_image_runs_caisson_without_anything_else() -> Result<()> {
    let image = Image::open()?;
    let root = image.unpacked()?;
    let said = run(Command::new("chroot")
        .arg(root.path())
        .args([&image.entrypoint()?, "--version"]))?;
    assert_eq!(said.trim(), format!("caisson {VERSION}"));
    Ok(())
}

#[test]
fn node_image_has_what_a_node_gets() -> Result<()> {
    let root = Image::open()?.unpacked()?;
    assert_eq!(payload(&root.path().join(PLACE))?, payload(&paths::dist())?);
    Ok(())
}

#[test]
fn node_image_is_a_layout_whose_digests_are_right() -> Result<()> {
    let image = Image::open()?;
    let blobs = image.layout.path().join("blobs/sha256");
    for blob in fs::read_dir(&blobs)? {
        let path = blob?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        assert_eq!(sha256(&path)?, name);
    }
    let said = run(Command::new("sh")
        .args(["-c", "gzip -dc \"$1\" | sha256sum", "sh"])
        .arg(image.blob(&image.manifest()?["layers"][0])?))?;
    let diff_id = &image.config()?["rootfs"]["diff_ids"][0];
    assert_eq!(*diff_id, format!("sha256:{}", &said[..64]));
    Ok(())
}

#[test]
fn node_image_has_the_name_that_the_chart_asks_for() -> Result<()> {
    let index = Image::open()?.index()?;
    let name = &index["manifests"][0]["annotations"]["io.containerd.image.name"];
    assert_eq!(*name, format!("caisson.dev/node:{VERSION}"));
    let values = fs::read_to_string(paths::workspace().join("deploy/chart/values.yaml"))?;
    assert!(values.contains("repository: caisson.dev/node\n"));
    Ok(())
}

#[test]
fn checksums_are_right_and_of_every_file() -> Result<()> {
    let sums = fs::read_to_string(dist("SHA256SUMS")?)?;
    let named: BTreeSet<_> = sums.lines().filter_map(|line| line.get(66..)).collect();
    let said = run(Command::new("find")
        .args([".", "-type", "f", "-printf", "%P\n"])
        .current_dir(paths::dist()))?;
    let there: BTreeSet<_> = said.lines().filter(|path| *path != "SHA256SUMS").collect();
    assert_eq!(named, there);
    run(Command::new("sha256sum")
        .args(["--check", "--quiet", "SHA256SUMS"])
        .current_dir(paths::dist()))?;
    Ok(())
}

#[rstest]
#[case::a_crate_of_the_shim("containerd-shim")]
#[case::a_crate_of_the_agent("libcontainer")]
#[case::a_daemon("virtiofsd")]
#[case::a_crate_of_a_daemon("vhost-user-backend")]
#[case::a_library_of_the_image("libc6")]
fn sbom_and_licences_name(#[case] name: &str) -> Result<()> {
    let sbom: Value = serde_json::from_slice(&fs::read(dist("sbom.cdx.json")?)?)?;
    let components = sbom["components"].as_array().context("no components")?;
    let component = components
        .iter()
        .find(|component| component["name"] == name);
    let component = component.with_context(|| format!("no {name}"))?;
    let version = component["version"].as_str().unwrap_or_default();
    let licences = fs::read_to_string(dist("licences.txt")?)?;
    let begin = format!("{name} {version} (");
    assert!(licences
        .lines()
        .any(|line| line.trim_start().starts_with(&begin)));
    Ok(())
}

#[test]
fn sbom_has_the_guests_kernel_with_its_digest() -> Result<()> {
    let sbom: Value = serde_json::from_slice(&fs::read(dist("sbom.cdx.json")?)?)?;
    let manifest: Value = serde_json::from_slice(&fs::read(dist("guest/manifest.json")?)?)?;
    let components = sbom["components"].as_array().context("no components")?;
    let kernel = components
        .iter()
        .find(|component| component["name"] == manifest["kernel_package"]);
    let kernel = kernel.context("no kernel")?;
    assert_eq!(kernel["version"], manifest["kernel_version"]);
    assert_eq!(
        kernel["hashes"][0]["content"],
        manifest["sha256"]["kernel_deb"]
    );
    Ok(())
}

#[test]
fn sbom_has_no_component_twice_and_each_has_a_licence_or_is_debians() -> Result<()> {
    let sbom: Value = serde_json::from_slice(&fs::read(dist("sbom.cdx.json")?)?)?;
    let mut seen = BTreeSet::new();
    for component in sbom["components"].as_array().context("no components")? {
        let purl = component["purl"].as_str().context("no purl")?;
        assert!(seen.insert(purl), "{purl} twice");
        let licence = &component["licenses"][0];
        let known = licence["expression"].is_string() || licence["license"]["name"].is_string();
        assert!(
            known || purl.starts_with("pkg:deb/"),
            "{purl} has no licence"
        );
    }
    Ok(())
}

/// The unpacked node image.
struct Image {
    layout: TempDir,
}

impl Image {
    fn open() -> Result<Self> {
        let layout = tempfile::tempdir()?;
        tar::Archive::new(File::open(dist("node-image.tar")?)?).unpack(layout.path())?;
        Ok(Self { layout })
    }

    fn json(&self, path: &Path) -> Result<Value> {
        let path = self.layout.path().join(path);
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    fn index(&self) -> Result<Value> {
        self.json(Path::new("index.json"))
    }

    /// Returns the file that a descriptor names.
    fn blob(&self, descriptor: &Value) -> Result<PathBuf> {
        let digest = descriptor["digest"].as_str().context("no digest")?;
        let digest = digest.strip_prefix("sha256:").context("not sha256")?;
        Ok(self.layout.path().join("blobs/sha256").join(digest))
    }

    fn manifest(&self) -> Result<Value> {
        self.json(&self.blob(&self.index()?["manifests"][0])?)
    }

    fn config(&self) -> Result<Value> {
        self.json(&self.blob(&self.manifest()?["config"])?)
    }

    fn entrypoint(&self) -> Result<String> {
        let config = self.config()?;
        let entrypoint = config["config"]["Entrypoint"][0].as_str();
        Ok(entrypoint.context("no entrypoint")?.to_owned())
    }

    /// Unpacks the root of a container of this image.
    fn unpacked(&self) -> Result<TempDir> {
        let root = tempfile::tempdir()?;
        run(Command::new("tar")
            .arg("-xzf")
            .arg(self.blob(&self.manifest()?["layers"][0])?)
            .arg("-C")
            .arg(root.path()))?;
        Ok(root)
    }
}

fn dist(name: &str) -> Result<PathBuf> {
    let path = paths::dist().join(name);
    ensure!(path.exists(), "no {}: cargo xtask release", path.display());
    Ok(path)
}

fn deb() -> Result<PathBuf> {
    dist(&format!("caisson_{VERSION}_amd64.deb"))
}

/// Returns a root with the package and nothing else.
fn installed() -> Result<TempDir> {
    let root = tempfile::tempdir()?;
    let admin = root.path().join("var/lib/dpkg");
    fs::create_dir_all(admin.join("updates"))?;
    fs::create_dir_all(admin.join("info"))?;
    fs::write(admin.join("status"), "")?;
    fs::write(admin.join("available"), "")?;
    dpkg(root.path(), &["--install"], &[deb()?])?;
    Ok(root)
}

/// Runs dpkg on another root. The package's dependencies are missing there, and the root is not a
/// complete system.
fn dpkg(root: &Path, action: &[&str], files: &[PathBuf]) -> Result<()> {
    run(Command::new("dpkg")
        .arg("--root")
        .arg(root)
        .args(["--force-depends", "--force-confold", "--no-triggers"])
        .args(action)
        .args(files))
    .map(drop)
}

/// Returns the path and digest of each file below `bin`, `guest` and `libexec`.
fn payload(root: &Path) -> Result<BTreeSet<String>> {
    let said = run(Command::new("sh")
        .args(["-c", "find bin guest libexec -type f | xargs sha256sum"])
        .current_dir(root))?;
    Ok(said.lines().map(str::to_owned).collect())
}

fn sha256(path: &Path) -> Result<String> {
    Ok(run(Command::new("sha256sum").arg(path))?[..64].to_owned())
}

fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
