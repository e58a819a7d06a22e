//! Lists the Debian packages that shipped files come from.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{dirs::Dirs, files, image, inputs::Inputs, machine::Source, pins::Pins, step};

/// One package.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// Its `copyright` file.
    pub copyright: String,
    /// The sha256 of the .deb, if it is pinned.
    pub sha256: Option<String>,
}

/// Returns the packages that files of this machine belong to.
pub fn owners(files: &[PathBuf]) -> Result<Vec<Package>> {
    let mut names = BTreeSet::new();
    for file in files {
        let said = step::output(Command::new("dpkg-query").arg("-S").arg(file))?;
        let said = String::from_utf8_lossy(&said).into_owned();
        // `libc6:amd64: /lib/…`
        let (name, _) = said
            .split_once(':')
            .with_context(|| format!("dpkg-query -S {} said: {said}", file.display()))?;
        names.insert(name.to_owned());
    }
    names.iter().map(|name| installed(name)).collect()
}

/// Returns a package of this machine.
pub fn installed(name: &str) -> Result<Package> {
    let mut query = Command::new("dpkg-query");
    let version = step::output(query.args(["-W", "-f", "${Version}\n", name]))?;
    let version = String::from_utf8_lossy(&version).into_owned();
    let path = Path::new("/usr/share/doc").join(name).join("copyright");
    Ok(Package {
        name: name.to_owned(),
        // There is a line for each architecture that it is installed for.
        version: version.lines().next().unwrap_or_default().to_owned(),
        copyright: files::read_text(&path)?,
        sha256: None,
    })
}

/// Returns a source of our own machine.
pub fn source(of: &Source) -> Package {
    Package {
        name: of.package.package.clone(),
        version: of.package.version.clone(),
        copyright: of.copyright.clone(),
        sha256: Some(of.package.sha256.clone()),
    }
}

/// Returns the package of Debian's kernel and its modules.
pub fn kernel(dirs: &Dirs) -> Result<Package> {
    let inputs = Inputs::read(&dirs.inputs())?;
    let (kernel, deb) = image::kernel_package(dirs, &inputs, Pins::Prefer)?;
    let path = format!("./usr/share/doc/{}/copyright", kernel.package);
    let temp = tempfile::tempdir_in(&dirs.cache).context("make a folder in the cache")?;
    let tar = temp.path().join("files.tar");
    let mut unpack = Command::new("sh");
    unpack
        .args(["-c", "dpkg-deb --fsys-tarfile \"$1\" >\"$2\"", "sh"])
        .args([&deb, &tar]);
    step::run(&dirs.log, "kernel-copyright", &mut unpack)?;
    let copyright = step::output(Command::new("tar").arg("-xOf").arg(&tar).arg(&path))?;
    Ok(Package {
        name: kernel.package,
        version: kernel.version,
        copyright: String::from_utf8_lossy(&copyright).into_owned(),
        sha256: Some(kernel.sha256),
    })
}
