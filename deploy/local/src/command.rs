//! The command `caisson-local`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::{down, existing, secrets, supervise, up, Layout, Programs};

/// The folder in which `make cluster` has its cluster.
const DIR: &str = "/var/tmp/caisson";
const NAMESPACE: &str = "sandboxes";

/// A Kubernetes of one node on this machine, with Caisson in it.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Starts the cluster, or takes the one that runs: that of Docker Desktop, kind or k3s on this
    /// machine, if kubectl points at it.
    Up {
        /// Never takes the one that kubectl points at.
        #[arg(long)]
        own: bool,
        /// Everything of the cluster is in this folder.
        #[arg(long, default_value = DIR)]
        dir: PathBuf,
        /// The namespace that is made for your pods.
        #[arg(long, default_value = NAMESPACE)]
        namespace: String,
        /// Makes a Secret in it of a file of `KEY=value` lines; its name is the file's without
        /// `.env`. May be said more than once.
        #[arg(long, value_name = "FILE")]
        env_file: Vec<PathBuf>,
    },
    /// Removes the cluster and everything in it.
    Down {
        #[arg(long, default_value = DIR)]
        dir: PathBuf,
    },
    /// Keeps the programs of a cluster running; `up` starts it.
    #[command(hide = true)]
    Supervise { dir: PathBuf },
}

/// Runs the whole program.
pub fn main() -> ExitCode {
    match run(Arguments::parse().what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("caisson-local: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(what: What) -> Result<()> {
    match what {
        What::Up {
            own,
            dir,
            namespace,
            env_file,
        } => start(&Layout::new(&dir)?, own, &namespace, &env_file),
        What::Down { dir } => stop(&Layout::new(&dir)?),
        What::Supervise { dir } => supervise::run(&Layout::new(&dir)?),
    }
}

fn start(layout: &Layout, own: bool, namespace: &str, env_files: &[PathBuf]) -> Result<()> {
    let programs = Programs::find(&target())?;
    for file in env_files {
        fs::metadata(file).with_context(|| file.display().to_string())?;
    }
    if let Some(there) = existing::find(&programs).filter(|_| !own && !layout.dir().exists()) {
        eprintln!(
            "kubectl points at a cluster on this machine: {there:?}; installing Caisson there"
        );
        there.install(&programs)?;
        let kubectl = || Command::new(programs.kubernetes("kubectl"));
        secrets::apply(kubectl, namespace, env_files)?;
        println!("Pods with `runtimeClassName: sandbox` run in a VM. `make cluster-down` takes Caisson away again.");
        return Ok(());
    }
    let own = std::env::current_exe().context("find this program")?;
    let started = Instant::now();
    let cluster = up(layout, &programs, &own, &mut |step| {
        eprintln!("  {:>5.1} s  {step}", started.elapsed().as_secs_f32());
    })?;
    secrets::apply(|| cluster.kubectl_command(), namespace, env_files)?;
    println!(
        "The cluster is ready. To look at it:\n\n  export KUBECONFIG={}\n  export PATH={}:$PATH\n  kubectl get pods --all-namespaces\n\n\
         Pods with `runtimeClassName: sandbox` run in a VM; the namespace {namespace} is for yours. Images are brought in by\n\n  {} --address {} --namespace k8s.io images import IMAGE_TAR\n\n\
         `make cluster-down` removes the cluster.",
        cluster.layout().kubeconfig().display(),
        programs.kubernetes("").display().to_string().trim_end_matches('/'),
        programs.containerd("ctr").display(),
        layout.containerd_socket().display(),
    );
    Ok(())
}

/// Removes a cluster of our own; from a cluster that was there before, removes only Caisson.
fn stop(layout: &Layout) -> Result<()> {
    let there = Programs::find(&target()).ok().and_then(|programs| {
        let existing = existing::find(&programs).filter(|_| !layout.dir().exists());
        existing.map(|existing| (existing, programs))
    });
    match there {
        Some((existing, programs)) => existing.uninstall(&programs),
        None => down(layout),
    }
}

/// The `target/` that this program was built into.
fn target() -> PathBuf {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let target = checkout.join(target);
    target.canonicalize().unwrap_or(target)
}
