//! `caisson run`: runs an image or a folder in a VM of its own, without containerd. It calls the
//! shim as containerd does.
//!
//! [`image`], [`layers`] and [`spec`] make a [`bundle`]. [`task`] runs it, with this process's
//! [`streams`] and [`terminal`].

mod arguments;
mod bundle;
mod image;
mod layers;
mod progress;
mod spec;
mod streams;
mod task;
mod terminal;
mod user;

use std::{
    fs,
    io::{self, IsTerminal},
    path::Path,
    process::ExitCode,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
};

use anyhow::{ensure, Context, Result};
use caisson_node::{
    config::{NodeConfig, CONFIG_ENV},
    skills::{Skill, SkillStore},
};
use caisson_oci::annotations::{is_plain_name, SkillRef};

use self::{arguments::Tty, bundle::NAMESPACE, image::Image, progress::Progress, task::Signals};
use crate::shim::Launch;

pub use arguments::Arguments;
pub use bundle::Bundle;

/// The exit code for what went wrong before the command ran, as docker uses it: lower codes are the
/// command's own.
const FAILED: u8 = 125;

/// Runs the command to its end.
pub fn run(arguments: Arguments, config: &NodeConfig) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new();
    let result = runtime.context("start threads").and_then(|runtime| {
        let result = runtime.block_on(session(arguments, config));
        // A thread may still read stdin.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("caisson: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

async fn session(arguments: Arguments, config: &NodeConfig) -> Result<u8> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "caisson run needs root: it mounts, and gives the VM a user of its own"
    );
    let mut signals = Signals::listen()?;
    for id in Bundle::sweep(config)? {
        eprintln!("caisson: removed what a killed run left: {id}");
    }
    let bundle = Arc::new(Bundle::create(config)?);
    let terminal = match arguments.tty {
        Tty::Auto => io::stdin().is_terminal() && io::stdout().is_terminal(),
        tty => tty == Tty::Always,
    };
    let verbose = arguments.verbose;
    let progress = Progress::start("unpacking the image");
    let cancelled = Arc::new(AtomicBool::new(false));
    let mut preparing = tokio::task::spawn_blocking({
        let (bundle, config, cancelled) = (bundle.clone(), config.clone(), cancelled.clone());
        move || prepare(&arguments, &config, &bundle, terminal, &cancelled)
    });
    let prepared = tokio::select! {
        prepared = &mut preparing => prepared,
        signal = signals.next_forwarded() => {
            cancelled.store(true, Ordering::Relaxed);
            // The thread still writes into the bundle, which is removed after this.
            let _ = preparing.await;
            return Ok(128 + signal as u8);
        }
    };
    prepared.context("prepare")??;
    progress.stage("starting the VM");
    let log = task::Log::make(&bundle, verbose)?;
    let launch = Launch {
        program: Launch::program(),
        bundle: bundle.path().to_owned(),
        namespace: NAMESPACE.to_owned(),
        id: bundle.id.clone(),
        config: match std::env::var_os(CONFIG_ENV) {
            // The shim runs in another working directory.
            Some(path) => Some(std::path::absolute(path)?),
            None => None,
        },
    };
    match launch.start().await {
        Ok(shim) => {
            let result = task::run(&shim, &bundle, terminal, &mut signals, progress).await;
            // The log is shown before the shim's end, which logs warnings of its own.
            let result = result.inspect_err(|_| log.show());
            if let Err(error) = shim.end().await {
                eprintln!("caisson: end the shim: {error:#}");
            }
            result
        }
        Err(error) => {
            drop(progress);
            log.show();
            Err(error)
        }
    }
}

/// Fills the bundle.
fn prepare(
    arguments: &Arguments,
    config: &NodeConfig,
    bundle: &Bundle,
    terminal: bool,
    cancelled: &AtomicBool,
) -> Result<()> {
    let named = || arguments.image.display().to_string();
    let skills = skills(&arguments.skill, config)?;
    let (rootfs, image) = match arguments.image.is_dir() {
        true => (arguments.image.canonicalize()?, image::Config::default()),
        false => {
            let plain = bundle.file("archive.tar");
            let image = Image::open(&arguments.image, &plain).with_context(named)?;
            let rootfs = bundle.file("rootfs");
            fs::create_dir(&rootfs).context("create rootfs")?;
            layers::unpack(&image, &rootfs, cancelled).with_context(named)?;
            if plain.exists() {
                fs::remove_file(&plain).context("remove the unpacked archive")?;
            }
            (rootfs, image.config)
        }
    };
    let user = arguments.user.as_ref().unwrap_or(&image.user);
    let spec = spec::make(
        arguments,
        &spec::Container {
            id: &bundle.id,
            rootfs: &rootfs,
            image: &image,
            user: &user::resolve(&rootfs, user)?,
            terminal,
            skills: &skills,
        },
    )?;
    let json = serde_json::to_vec_pretty(&spec)?;
    fs::write(bundle.file("config.json"), json).context("write config.json")
}

/// Returns each skill in the annotation's form. Files are added to the store.
fn skills(said: &[String], config: &NodeConfig) -> Result<Vec<String>> {
    let store = SkillStore::new(&config.store_dir);
    let mut skills = Vec::new();
    for said in said {
        let (name, what) = match said.split_once('=') {
            Some((name, what)) if !Path::new(said).exists() => (Some(name), what),
            _ => (None, said.as_str()),
        };
        let skill = match SkillRef::parse(what) {
            Some(skill) => skill,
            None => {
                let file = Path::new(what);
                ensure!(
                    !file.is_dir(),
                    "skill {what}: is a folder; make a file of it with `caisson skill pack`"
                );
                let stem = file.file_stem().and_then(|stem| stem.to_str());
                let stem = stem.filter(|stem| is_plain_name(stem)).or(name);
                let stem = stem.with_context(|| format!("skill {what}: say NAME={what}"))?;
                SkillRef::Digest(store.add(file, Skill::named(stem))?.digest)
            }
        };
        skills.push(match name {
            Some(name) => format!("{name}={skill}"),
            None => skill.to_string(),
        });
    }
    Ok(skills)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skill_file_is_added_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let config = NodeConfig {
            store_dir: dir.path().join("store"),
            ..NodeConfig::default()
        };
        let file = dir.path().join("tool.squashfs");
        fs::write(&file, "hsqs").unwrap();
        let said = [file.display().to_string(), format!("x={}", file.display())];
        let found = skills(&said, &config).unwrap();
        assert!(found[0].starts_with("sha256:"), "{found:?}");
        assert_eq!(found[1], format!("x={}", found[0]));
        assert!(skills(&["no/such/file".to_owned()], &config).is_err());
    }
}
