//! `caisson-remote`: the subcommands of `caisson` that speak to servers, which are the cluster's
//! API server, containerd's CRI plugin and the sources of skills.
//!
//! `caisson` executes this program for them. It is a program of its own since the clients of these
//! servers take longer to build than everything else, and since a node without a cluster and
//! without sources of skills needs none of them.

mod node;
mod skill;

use std::{future::Future, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// Users call it as `caisson`, and its help says so.
#[derive(Parser)]
#[command(name = "caisson", bin_name = "caisson", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Copies skills between this node's store and the configured sources
    #[command(subcommand)]
    Skill(skill::Command),
    /// Looks after a node of a cluster
    #[command(subcommand)]
    Node(node::Command),
}

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("caisson: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<()> {
    // Fails where a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match command {
        Command::Skill(command) => block_on(skill::run(command)),
        Command::Node(command) => block_on(node::run(command)),
    }
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start")?
        .block_on(work)
}
