//! `caisson home`: manages the node's persistent homes. A home that a pod uses is left alone.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Child, Command as Process, ExitStatus, Stdio},
};

use anyhow::{bail, Context, Result};
use caisson_node::{
    config::NodeConfig,
    homes::{Holder, HomeStore},
};
use caisson_oci::annotations::is_plain_name;
use caisson_vmm::one_line;
use clap::Subcommand;
use nix::{
    mount::{mount, MsFlags},
    sched::{unshare, CloneFlags},
};

#[derive(Subcommand)]
pub enum Command {
    /// Lists this node's homes: size, what it takes on the host (both in MiB), name and the pod
    /// that has it
    ///
    /// Then what the sizes add up to, with ephemeral homes, for the node and for each namespace,
    /// and the budgets.
    List,
    /// Writes what is in a home to a tar file, with owners, modes, access control lists and
    /// attributes
    ///
    /// To be put back with `tar --extract --numeric-owner --acls --xattrs --xattrs-include='*'`.
    Archive {
        home: Name,
        /// Must not be there yet
        file: PathBuf,
    },
    /// Removes homes with all that is in them
    Remove {
        #[arg(required = true)]
        homes: Vec<Name>,
    },
}

/// A home as it is named on the command line.
#[derive(Clone)]
pub struct Name {
    namespace: String,
    name: String,
}

impl std::str::FromStr for Name {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name)) if is_plain_name(namespace) && is_plain_name(name) => {
                Ok(Self {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                })
            }
            _ => Err("is not of the form NAMESPACE/NAME"),
        }
    }
}

/// Runs the command.
pub fn run(command: Command, config: &NodeConfig) -> Result<()> {
    let store = HomeStore::new(config);
    match command {
        Command::List => {
            for home in store.list()? {
                let (size, used) = (home.size >> 20, home.used.div_ceil(1 << 20));
                let user = home.user.map(|user| format!(" {user}")).unwrap_or_default();
                println!("{size:>8} {used:>8} {}/{}{user}", home.namespace, home.name);
            }
            print_usage(&store)?;
        }
        Command::Archive { home, file } => archive(&store, &home, &file)?,
        Command::Remove { homes } => {
            for home in homes {
                store.remove(&home.namespace, &home.name)?;
                println!("{}/{}", home.namespace, home.name);
            }
        }
    }
    Ok(())
}

fn print_usage(store: &HomeStore) -> Result<()> {
    let (usage, limits) = (store.usage()?, store.limits());
    let of = |budget: Option<u64>| match budget {
        Some(budget) => format!("of {budget} MiB"),
        None => "(no budget)".to_owned(),
    };
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    for (namespace, used) in &usage.namespaces {
        let budget = of(limits.namespace(namespace));
        println!("namespace {namespace}: {} MiB {budget}", mib(*used));
    }
    let ephemeral = match mib(usage.ephemeral) {
        0 => String::new(),
        mib => format!(", {mib} MiB of them ephemeral"),
    };
    let (used, budget) = (mib(usage.node), of(limits.node()));
    println!("node: {used} MiB {budget}{ephemeral}");
    Ok(())
}

fn archive(store: &HomeStore, home: &Name, file: &Path) -> Result<()> {
    let archive = File::create_new(file).with_context(|| format!("create {}", file.display()))?;
    let written = write(store, home, archive);
    if written.is_err() {
        // An incomplete archive is of no use.
        fs::remove_file(file).with_context(|| format!("remove {}", file.display()))?;
    }
    written
}

fn write(store: &HomeStore, home: &Name, archive: File) -> Result<()> {
    // No other process sees what is mounted here, and it is gone when this process ends. Without a
    // network, tar can pass on nothing of what is in the home.
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("make a mount and a network namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .context("make the mounts private")?;
    let folder = tempfile::tempdir().context("make a temporary folder")?;
    let holder = Holder::program("caisson home archive");
    let files = store.mount(&home.namespace, &home.name, folder.path(), &holder)?;
    let end = archive.try_clone().context("write the archive")?;
    // tar opens only regular files and folders, through their parents' descriptors, and does not
    // read holes. Nothing else changes the home meanwhile.
    let tar = Process::new("tar")
        .args(["--create", "--sparse", "--numeric-owner", "--acls"])
        .args(["--xattrs", "--xattrs-include=*", "--directory"])
        .arg(files)
        .arg(".")
        .stdin(Stdio::null())
        .stdout(archive)
        .stderr(Stdio::piped())
        .spawn();
    let ended = tar.and_then(finish);
    let unmounted = nix::mount::umount(folder.path()).context("unmount the home");
    let (status, errors) = ended.context("run tar")?;
    if !status.success() {
        bail!("tar: {status}: {errors}");
    }
    unmounted?;
    end.sync_all().context("write the archive")
}

/// Waits for tar. A home may have a million sockets, and tar warns about each of them, so only the
/// first warnings are kept.
fn finish(mut tar: Child) -> io::Result<(ExitStatus, String)> {
    const MAX_ERRORS: u64 = 2048;
    let mut kept = Vec::new();
    if let Some(errors) = tar.stderr.take() {
        let mut errors = errors.take(MAX_ERRORS);
        errors.read_to_end(&mut kept)?;
        io::copy(&mut errors.into_inner(), &mut io::sink())?;
    }
    let errors = one_line(String::from_utf8_lossy(&kept).trim());
    Ok((tar.wait()?, errors))
}
