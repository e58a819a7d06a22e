//! Gets packages of a Debian release that is not the one of this machine. apt gets lists and a
//! cache of its own, so that this machine's stay as they are; it checks the signatures as usual.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{bail, Context, Result};
use serde::{Deserialize, Serialize};

use crate::{files, pins::Pins, step};

const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A package that is pinned.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    pub package: String,
    pub version: String,
    /// The sha256 of the .deb, or of a source package's .dsc, which has those of its other files.
    pub sha256: String,
}

/// Whether a package is one of programs or one of sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Binary,
    Source,
}

/// A release, such as `trixie`, and a folder for its packages.
pub struct Release {
    name: String,
    dir: PathBuf,
    log: PathBuf,
}

impl Release {
    /// Gets the lists of a release. What apt needs goes to `dir`, and downloads, too.
    pub fn open(log: &Path, name: &str, dir: &Path) -> Result<Self> {
        let mirror = debian_mirror()?;
        let line = |kind| format!("{kind} [signed-by={KEYS}] {mirror} {name} main\n");
        let sources = line("deb") + &line("deb-src");
        files::write(&dir.join("sources.list"), sources.as_bytes(), 0o644)?;
        files::make_dir(&dir.join("lists/partial"))?;
        files::make_dir(&dir.join("archives/partial"))?;
        // dpkg's own status would list what is installed here.
        files::write(&dir.join("status"), b"", 0o644)?;
        let release = Self {
            name: name.to_owned(),
            dir: dir.to_owned(),
            log: log.to_owned(),
        };
        let mut update = release.command("apt-get");
        step::run(log, &format!("apt-update-{name}"), update.arg("update"))?;
        Ok(release)
    }

    /// Returns the newest version that the release has of a package.
    pub fn newest(&self, package: &str, kind: Kind) -> Result<String> {
        let show = match kind {
            Kind::Binary => "show",
            Kind::Source => "showsrc",
        };
        let mut command = self.command("apt-cache");
        let said = step::output(command.args([show, package]))?;
        let said = String::from_utf8_lossy(&said);
        let versions = said.lines().filter_map(|l| l.strip_prefix("Version: "));
        let mut newest: Option<&str> = None;
        for version in versions {
            if newest.is_none_or(|old| is_newer(version, old)) {
                newest = Some(version);
            }
        }
        newest
            .map(str::to_owned)
            .with_context(|| format!("Debian's {} has no {package}", self.name))
    }

    /// Downloads a version of a package. Returns its .deb or .dsc.
    pub fn download(&self, package: &str, version: &str, kind: Kind) -> Result<PathBuf> {
        let (arguments, extension) = match kind {
            Kind::Binary => (&["download"][..], "deb"),
            Kind::Source => (&["source", "--download-only"][..], "dsc"),
        };
        let mut download = self.command("apt-get");
        download
            .args(arguments)
            .arg(format!("{package}={version}"))
            .current_dir(&self.dir);
        step::run(&self.log, &format!("{package}-download"), &mut download)?;
        std::fs::read_dir(&self.dir)
            .context("look at the download")?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| {
                path.extension().is_some_and(|found| found == extension)
                    && files::name(path).starts_with(&format!("{package}_"))
            })
            .with_context(|| format!("apt-get left no .{extension} of {package}"))
    }

    /// Downloads the pinned version, or, unless it is required, the newest with a warning. Returns
    /// the package that it got and its .deb or .dsc.
    pub fn fetch(&self, pinned: &Package, kind: Kind, pins: Pins) -> Result<(Package, PathBuf)> {
        let Package {
            package, version, ..
        } = pinned;
        if let Ok(path) = self.download(package, version, kind) {
            let sha256 = files::sha256(&path)?;
            if sha256 != pinned.sha256 {
                bail!(
                    "{package} {version} has sha256 {sha256}, pinned is {}",
                    pinned.sha256
                );
            }
            return Ok((pinned.clone(), path));
        }
        let newest = self.newest(package, kind)?;
        if pins == Pins::Require {
            bail!(
                "{package} {version} is gone from Debian's {}, which has {newest} now: pin that in packaging/guest/inputs.toml",
                self.name
            );
        }
        eprintln!(
            "WARNING: the pinned {package} {version} is gone from Debian's {}.\n\
             WARNING: building with {newest} instead, which nobody has tested with this checkout.\n\
             WARNING: packaging/guest/inputs.toml has the pin.",
            self.name
        );
        let path = self.download(package, &newest, kind)?;
        let now = Package {
            package: package.clone(),
            version: newest,
            sha256: files::sha256(&path)?,
        };
        Ok((now, path))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (option, value) in [
            ("Dir::Etc::sourcelist", self.dir.join("sources.list")),
            ("Dir::Etc::sourceparts", "-".into()),
            ("Dir::State::lists", self.dir.join("lists")),
            ("Dir::State::status", self.dir.join("status")),
            ("Dir::Cache", self.dir.clone()),
            // The sandbox user can't write into the checkout.
            ("APT::Sandbox::User", "root".into()),
        ] {
            let mut setting = OsString::from(format!("{option}="));
            setting.push(value);
            command.arg("-o").arg(setting);
        }
        command
    }
}

fn is_newer(one: &str, other: &str) -> bool {
    Command::new("dpkg")
        .args(["--compare-versions", one, "gt", other])
        .status()
        .is_ok_and(|status| status.success())
}

/// Returns the mirror that apt uses for Debian 12; it has every release.
pub fn debian_mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(SITE) $(RELEASE)"])
        .arg("Created-By: Packages")
        .stdin(Stdio::null())
        .output()
        .context("start apt-get")?;
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let site = lines.lines().find_map(|line| {
        let site = line.strip_suffix(" bookworm")?;
        (!site.contains("security")).then(|| site.to_owned())
    });
    site.context("found no Debian 12 mirror in apt's sources")
}
