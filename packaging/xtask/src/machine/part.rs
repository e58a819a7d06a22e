//! Makes a part of the machine from its recipe, unless the cache has it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    apt::{Kind, Package, Release},
    cache,
    dirs::Dirs,
    files,
    pins::Pins,
    step,
};

/// A part of the machine in the cache.
pub struct Part {
    pub dir: PathBuf,
    pub sources: Vec<Source>,
}

/// A package that a part is built from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Source {
    pub package: Package,
    /// Its `copyright` file.
    pub copyright: String,
}

/// What went into a part, and how to make it.
pub struct Recipe<'a> {
    pub name: &'static str,
    /// Pinned packages: of the part's sources, and of what is copied from them.
    pub pinned: Vec<(&'a Package, Kind)>,
    /// Configurations and the code of the recipe.
    pub texts: Vec<String>,
    /// Packages of this machine that the result depends on.
    pub tools: &'static [&'static str],
    pub make: Make,
}

/// Makes a part in the second folder, with the first one for what is in between, from the files of
/// the pinned packages. Returns their copyright texts.
pub type Make = fn(&Dirs, work: &Path, to: &Path, packages: &[PathBuf]) -> Result<Vec<String>>;

/// The folder of the configurations in the checkout.
pub fn sources(dirs: &Dirs) -> PathBuf {
    dirs.root.join("packaging/machine")
}

impl Recipe<'_> {
    /// Returns the part from the cache, and makes it there first if needed.
    pub fn part(&self, dirs: &Dirs, release: &str, pins: Pins) -> Result<Part> {
        let cache = cache::dir(CACHE)?;
        let tools = self
            .tools()
            .context("packages are missing: run `packaging/setup machine`")?;
        if let Some(part) = self.cached(&cache, &self.pinned(), &tools)? {
            return Ok(part);
        }
        let temp = tempfile::tempdir_in(&dirs.cache).context("make a folder in the cache")?;
        let debian = Release::open(&dirs.log, release, &temp.path().join("apt"))?;
        let mut packages = Vec::new();
        let mut paths = Vec::new();
        for (pinned, kind) in &self.pinned {
            let (package, path) = debian.fetch(pinned, *kind, pins)?;
            packages.push(package);
            paths.push(path);
        }
        if let Some(part) = self.cached(&cache, &packages, &tools)? {
            return Ok(part);
        }
        eprintln!("  {}: building it takes minutes, once", self.name);
        let made = tempfile::tempdir_in(&cache).context("make a folder in the cache")?;
        let work = temp.path().join("work");
        files::make_dir(&work)?;
        let texts = (self.make)(dirs, &work, made.path(), &paths)?;
        let sources: Vec<Source> = packages
            .iter()
            .zip(texts)
            .map(|(package, copyright)| Source {
                package: package.clone(),
                copyright,
            })
            .collect();
        let text = serde_json::to_string_pretty(&sources)?;
        files::write(&made.path().join(SOURCES), text.as_bytes(), 0o644)?;
        let dir = self.dir(&cache, &packages, &tools)?;
        if let Err(error) = fs::rename(made.path(), &dir) {
            // Another checkout was quicker, with the same result.
            if !dir.exists() {
                return Err(error).with_context(|| format!("make {}", dir.display()));
            }
        }
        cache::remove_old(&cache)?;
        self.cached(&cache, &packages, &tools)?
            .with_context(|| format!("{} is not there", dir.display()))
    }

    /// Returns whether the part is in the cache. Without the tools to build it, it is not.
    pub fn is_built(&self) -> Result<bool> {
        match self.tools() {
            Some(tools) => Ok(self
                .cached(&cache::dir(CACHE)?, &self.pinned(), &tools)?
                .is_some()),
            None => Ok(false),
        }
    }

    /// Returns the versions of the packages of this machine. `None` if one is missing.
    fn tools(&self) -> Option<String> {
        let mut query = Command::new("dpkg-query");
        query.args(["-W", "-f", "${Package} ${Version}\n"]);
        let said = query.args(self.tools).output().ok()?;
        let said = said.status.success().then_some(said.stdout)?;
        String::from_utf8(said).ok()
    }

    fn pinned(&self) -> Vec<Package> {
        let packages = self.pinned.iter().map(|(package, _)| *package);
        packages.cloned().collect()
    }

    fn cached(&self, cache: &Path, packages: &[Package], tools: &str) -> Result<Option<Part>> {
        let dir = self.dir(cache, packages, tools)?;
        // It is written last.
        let Ok(text) = fs::read_to_string(dir.join(SOURCES)) else {
            return Ok(None);
        };
        cache::use_now(&dir)?;
        let sources = serde_json::from_str(&text)
            .with_context(|| format!("read {}", dir.join(SOURCES).display()))?;
        Ok(Some(Part { dir, sources }))
    }

    /// Returns the folder that is named by all that goes in.
    fn dir(&self, cache: &Path, packages: &[Package], tools: &str) -> Result<PathBuf> {
        let mut all = format!("{packages:?}\n");
        for text in &self.texts {
            all.push_str(text);
            all.push('\0');
        }
        all.push_str(tools);
        cache::entry(cache, self.name, &all)
    }
}

/// The file in a part's folder that lists its sources.
const SOURCES: &str = "sources.json";
/// The folder of the parts in the user's cache.
const CACHE: &str = "machine";

/// Changes a source by a patch.
pub fn apply(dirs: &Dirs, step: &str, patch: &Path, source: &Path) -> Result<()> {
    let mut command = Command::new("patch");
    command
        .args(["--strip=1", "--fuzz=0", "--input"])
        .arg(patch)
        .current_dir(source);
    step::run(&dirs.log, step, &mut command)
}

/// Returns the number of compilers that run at once, as an option of make and ninja.
pub fn jobs() -> String {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("-j{count}")
}
