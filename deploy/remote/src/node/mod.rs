//! `caisson node serve`, which the chart's DaemonSet runs on each node, and the commands of the
//! chart's other pods.
//!
//! ```text
//!              the DaemonSet has no annotation caisson.dev/drain     it has
//!            ┌──────────────────────────────────────────────┐  ┌──────────────┐
//! start ──▶ install ── fails ──▶ why not: condition, event    uninstall ── fails ──▶ same, retry
//!            │   ▲                     │ after a while         │
//!            ▼   └─────────────────────┘                       ▼
//!          labels, condition                                 neither is left
//! ```
//!
//! [`progress`] decides what is done next, [`standing`] what the node object should look like, and
//! [`capacity`] which extended resources the node offers; none of them does I/O. [`api`] speaks to
//! the API server, [`device_plugin`] to the kubelet, and [`host`] runs `caisson` where the node's
//! files are. [`metrics`] serves what Prometheus asks for, [`claims`] claims pods, and
//! [`degraded`] makes events of them.

mod api;
mod capacity;
mod claims;
mod degraded;
mod device_plugin;
mod drain;
mod handlers;
mod host;
mod kernels;
mod metrics;
mod pod_event;
mod progress;
mod rollout;
mod standing;

use std::{
    convert::Infallible,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{ensure, Context, Result};
use clap::{Args, Subcommand};
use tokio::{
    signal::unix::{signal, SignalKind},
    sync::watch,
};

use self::{
    api::{node_name, DaemonSetName, NodeApi},
    capacity::Capacity,
    claims::Claims,
    degraded::DegradedPods,
    metrics::Health,
    pod_event::OwnNode,
    progress::{Progress, Retry, Step, Wanted},
    standing::Standing,
};

/// Exists while the node is ready. It is in a folder of the container's own, in memory.
const READY: &str = "/run/caisson/ready";
/// How often the node object is checked, since others may change it: a node that registers anew has
/// none of Caisson's labels.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// The same, after the API server could not be told.
const TELL_AGAIN: Duration = Duration::from_secs(5);

#[derive(Subcommand)]
pub enum Command {
    /// Sets the node up that this pod is on, labels it, and gives it back when the chart is removed
    Serve(Box<Arguments>),
    /// Says by its exit code whether `serve` in the same container has made the node ready
    Ready,
    /// Tells the pods of a DaemonSet to give their nodes back, and waits until they have
    Drain(drain::Arguments),
    /// Waits until the pods of a DaemonSet have set their nodes up
    Await(rollout::Arguments),
    /// Fails where this pod has the same kernel as its node, the one that NODE_NAME names
    CompareKernels,
    /// Prints the runtime handlers that containerd has, for `caisson node`
    #[command(hide = true)]
    Handlers {
        /// containerd's socket
        #[arg(long, value_name = "PATH")]
        containerd_socket: PathBuf,
    },
}

#[derive(Args)]
pub struct Arguments {
    /// The DaemonSet that this pod is of
    #[arg(long, value_name = "NAMESPACE/NAME")]
    daemonset: DaemonSetName,
    /// Where versions are put, on the node
    #[arg(long, default_value = "/opt/caisson")]
    prefix: PathBuf,
    /// The runtime's name in containerd's configuration
    #[arg(long, default_value = "sandbox")]
    handler: String,
    /// containerd's configuration, on the node
    #[arg(long, value_name = "PATH")]
    containerd_config: Option<PathBuf>,
    /// containerd's socket, on the node
    #[arg(long, value_name = "PATH")]
    containerd_socket: Option<PathBuf>,
    /// How containerd is restarted: systemd:UNIT, signal or none
    #[arg(long)]
    restart: Option<String>,
    /// A TOML file, in this container, that becomes a part of the node's configuration
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Calls a node ready on which no VM has run
    #[arg(long)]
    no_self_test: bool,
    /// The process whose mount namespace is the node's
    #[arg(long, value_name = "PID", default_value_t = 1)]
    node_process: u32,
    /// Serves metrics at this port of the address that POD_IP has, by HTTPS
    #[arg(long, value_name = "PORT")]
    metrics_port: Option<u16>,
    /// A folder with tls.crt and tls.key for that; without it, the certificate is self-signed
    #[arg(long, value_name = "FOLDER", requires = "metrics_port")]
    metrics_tls: Option<PathBuf>,
    /// Claims pods of this node that have the annotation caisson.dev/claim
    #[arg(long)]
    claims: bool,
    /// Makes events of pods that are worse off than the node's settings want
    #[arg(long)]
    pod_events: bool,
    /// Seconds until it is tried again after a failure, twice as many after each further one
    #[arg(long, default_value_t = 10)]
    retry: u64,
    /// Seconds that it waits at most
    #[arg(long, default_value_t = 300)]
    retry_max: u64,
    /// Offers this many caisson.dev/vm-slot to the scheduler, and caisson.dev/kvm where VMs run by
    /// KVM
    #[arg(long, value_name = "NUMBER")]
    vm_slots: Option<u32>,
    /// The folder in which the kubelet looks for device plugins, in this container
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/kubelet/device-plugins"
    )]
    device_plugin_dir: PathBuf,
}

/// Runs `command`.
pub async fn run(command: &Command) -> Result<()> {
    match command {
        Command::Serve(arguments) => serve(arguments).await,
        Command::Ready => {
            ensure!(
                Path::new(READY).exists(),
                "the node is not ready; this pod's log and the node's condition CaissonReady say why"
            );
            Ok(())
        }
        Command::Drain(arguments) => drain::run(arguments).await,
        Command::Await(arguments) => rollout::run(arguments).await,
        Command::Handlers { containerd_socket } => handlers::run(containerd_socket).await,
        Command::CompareKernels => kernels::compare().await,
    }
}

/// Serves until SIGTERM, but does not end in the middle of an installation.
async fn serve(arguments: &Arguments) -> Result<()> {
    set_ready(false)?;
    let node = NodeApi::connect(&node_name()?).await?;
    let mut end = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let (tell, mut wanted) = watch::channel(None);
    let watching = api::watch_wanted(node.client(), &arguments.daemonset, tell);
    let (offer, offered) = watch::channel(capacity_before(arguments, &node).await);
    let offering = offer_capacity(arguments, &offered);
    let claiming = claim_pods(arguments, &node);
    let telling = tell_of_pods(arguments, &node);
    let health = Health::new()?;
    let serving = serve_metrics(arguments, &node, health.clone());
    tokio::select! {
        never = watching => match never? {},
        never = offering => match never {},
        never = claiming => match never? {},
        never = telling => match never? {},
        never = serving => match never? {},
        result = work(arguments, &node, &offer, &mut wanted, &health) => result,
        _ = end.recv() => {
            println!("SIGTERM: the node stays as it is");
            Ok(())
        }
    }
}

/// Tells the kubelet of the node's extended resources, for ever, if that is asked for.
async fn offer_capacity(arguments: &Arguments, offered: &watch::Receiver<Capacity>) -> Infallible {
    match arguments.vm_slots {
        Some(_) => device_plugin::serve(&arguments.device_plugin_dir, offered).await,
        None => std::future::pending().await,
    }
}

/// Returns what the node goes on to offer while it is installed anew.
async fn capacity_before(arguments: &Arguments, node: &NodeApi) -> Capacity {
    let Some(vm_slots) = arguments.vm_slots else {
        return Capacity::default();
    };
    match node.get().await {
        Ok(found) => Capacity::of_node(&found, vm_slots),
        Err(error) => {
            eprintln!("{error:#}");
            Capacity::default()
        }
    }
}

/// Claims the pods of the node that ask for it, for ever, if that is wanted.
async fn claim_pods(arguments: &Arguments, node: &NodeApi) -> Result<Infallible> {
    if !arguments.claims {
        return std::future::pending().await;
    }
    Claims(own_node(arguments, node)?).serve().await
}

/// Makes events of pods of the node, for ever, if that is wanted.
async fn tell_of_pods(arguments: &Arguments, node: &NodeApi) -> Result<Infallible> {
    if !arguments.pod_events {
        return std::future::pending().await;
    }
    Ok(DegradedPods(own_node(arguments, node)?).tell().await)
}

fn own_node(arguments: &Arguments, node: &NodeApi) -> Result<OwnNode> {
    Ok(OwnNode {
        client: node.client(),
        node: node_name()?,
        process: arguments.node_process,
        program: installed(arguments),
    })
}

/// Serves metrics for ever, if they are wanted.
async fn serve_metrics(
    arguments: &Arguments,
    node: &NodeApi,
    health: Health,
) -> Result<Infallible> {
    let Some(port) = arguments.metrics_port else {
        return std::future::pending().await;
    };
    let address = std::env::var("POD_IP").context("POD_IP is not set: where is this pod?")?;
    let address = address.parse();
    let place = metrics::Place {
        address: address.context("POD_IP is no address")?,
        port,
        tls: arguments.metrics_tls.clone(),
        process: arguments.node_process,
        program: installed(arguments),
    };
    metrics::serve(place, node.client(), health).await
}

/// Does the next step, for ever.
async fn work(
    arguments: &Arguments,
    node: &NodeApi,
    offer: &watch::Sender<Capacity>,
    wanted: &mut watch::Receiver<Option<Wanted>>,
    health: &Health,
) -> Result<()> {
    let mut progress = Progress::new(Retry {
        first: Duration::from_secs(arguments.retry),
        most: Duration::from_secs(arguments.retry_max),
    });
    let mut standing = None;
    // Nothing is done before the API server says what is wanted, since it also has to be told the
    // result.
    let ended = "the watch has ended";
    wanted.wait_for(Option::is_some).await.context(ended)?;
    loop {
        let now = wanted.borrow_and_update().unwrap_or(Wanted::Installed);
        let pause = match progress.next(now, Instant::now()) {
            Step::Do => {
                let reached = reach(arguments, node, offer, now).await;
                progress.ended(now, reached.is_ok(), Instant::now());
                health.step(now, reached.is_ok());
                let new = reached.unwrap_or_else(|why| Standing::failed(now, &format!("{why:#}")));
                change_offer(arguments, offer, &new);
                if standing.as_ref() != Some(&new) {
                    announce(node, &new).await;
                }
                standing = Some(new);
                Duration::ZERO
            }
            Step::Wait(pause) => pause.min(LOOK_AGAIN),
            Step::Rest => LOOK_AGAIN,
        };
        let told = match &standing {
            Some(standing) => tell(node, standing).await?,
            None => true,
        };
        health.ready(told && matches!(standing, Some(Standing::Ready { .. })));
        let pause = if told { pause } else { pause.min(TELL_AGAIN) };
        tokio::select! {
            changed = wanted.changed() => changed.context(ended)?,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Installs or uninstalls, and returns how the node stands then. The error is what the command said
/// last.
async fn reach(
    arguments: &Arguments,
    node: &NodeApi,
    offer: &watch::Sender<Capacity>,
    wanted: Wanted,
) -> Result<Standing> {
    let process = arguments.node_process;
    match wanted {
        Wanted::Installed => {
            node.publish(&Standing::Installing).await?;
            host::caisson(process, &install_arguments(arguments)).await?;
            let status = host::ask(
                process,
                &installed(arguments),
                &on_node(arguments, &["status", "--json"]),
            )
            .await?;
            Ok(Standing::Ready {
                accelerator: accelerator(&status)?,
            })
        }
        Wanted::Removed => {
            // No pod may come to the node while it is taken apart. The scheduler goes by the label.
            set_ready(false)?;
            change_offer(arguments, offer, &Standing::Removing);
            node.publish(&Standing::Removing).await?;
            host::caisson(process, &on_node(arguments, &["uninstall"])).await?;
            Ok(Standing::Removed)
        }
    }
}

/// Has the kubelet told what the node offers in this standing.
fn change_offer(arguments: &Arguments, offer: &watch::Sender<Capacity>, standing: &Standing) {
    let vm_slots = arguments.vm_slots.unwrap_or_default();
    offer.send_if_modified(|now| {
        let new = now.after(standing, vm_slots);
        std::mem::replace(now, new) != new
    });
}

/// Updates the node object and the pod's readiness to this standing. Returns false where the API
/// server could not be told.
async fn tell(node: &NodeApi, standing: &Standing) -> Result<bool> {
    let told = node.publish(standing).await;
    if let Err(error) = &told {
        eprintln!("{error:#}");
    }
    set_ready(told.is_ok() && matches!(standing, Standing::Ready { .. }))?;
    Ok(told.is_ok())
}

/// Announces a change once, on standard output and with an event.
async fn announce(node: &NodeApi, standing: &Standing) {
    println!("{standing}");
    if let Some(event) = standing.event() {
        if let Err(error) = node.event(&event).await {
            eprintln!("{error:#}");
        }
    }
}

/// Returns the installed `caisson`, on the node. The result of the accelerator's probe lies beside
/// it.
fn installed(arguments: &Arguments) -> PathBuf {
    arguments.prefix.join("current/bin/caisson")
}

/// Returns the accelerator of `caisson node status --json`, or `None` where no VM has run yet.
fn accelerator(status: &str) -> Result<Option<String>> {
    let status: serde_json::Value =
        serde_json::from_str(status).context("understand caisson node status")?;
    Ok(status["accelerator"].as_str().map(str::to_owned))
}

fn install_arguments(arguments: &Arguments) -> Vec<OsString> {
    let mut all = on_node(arguments, &["install"]);
    let mut option = |name: &str, value: &OsStr| {
        all.push(name.into());
        all.push(value.into());
    };
    option(
        "--from",
        host::seen_from_the_node("/usr/lib/caisson").as_ref(),
    );
    option("--prefix", arguments.prefix.as_ref());
    option("--handler", arguments.handler.as_ref());
    if let Some(path) = &arguments.containerd_config {
        option("--containerd-config", path.as_ref());
    }
    if let Some(how) = &arguments.restart {
        option("--restart", how.as_ref());
    }
    if let Some(path) = &arguments.settings {
        option("--settings", host::seen_from_the_node(path).as_ref());
    }
    if arguments.no_self_test {
        all.push("--no-self-test".into());
    }
    all
}

/// Returns the arguments of a subcommand of `caisson node`, with those that each of them gets.
fn on_node(arguments: &Arguments, command: &[&str]) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["node".into()];
    all.extend(command.iter().map(OsString::from));
    if let Some(path) = &arguments.containerd_socket {
        all.push("--containerd-socket".into());
        all.push(path.into());
    }
    all
}

fn set_ready(ready: bool) -> Result<()> {
    let done = if ready {
        fs::write(READY, "")
    } else {
        match fs::remove_file(READY) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    };
    done.with_context(|| format!("write {READY}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(subcommand)]
        command: Command,
    }

    fn arguments(words: &[&str]) -> Arguments {
        let all = ["caisson", "serve", "--daemonset=ns/name"];
        let parsed = Program::parse_from(all.iter().chain(words));
        match parsed.command {
            Command::Serve(arguments) => *arguments,
            _ => panic!("not serve"),
        }
    }

    fn words(all: &[OsString]) -> String {
        let words: Vec<_> = all.iter().map(|word| word.to_string_lossy()).collect();
        let root = format!("/proc/{}/root", std::process::id());
        words.join(" ").replace(&root, "ROOT")
    }

    #[test]
    fn installation_takes_the_release_and_the_settings_out_of_the_container() {
        let arguments = arguments(&["--settings=/etc/caisson/settings/settings.toml"]);
        assert_eq!(
            words(&install_arguments(&arguments)),
            "node install --from ROOT/usr/lib/caisson --prefix /opt/caisson --handler sandbox \
             --settings ROOT/etc/caisson/settings/settings.toml"
        );
    }

    #[test]
    fn what_is_said_of_containerd_is_passed_on() {
        let arguments = arguments(&[
            "--containerd-config=/c.toml",
            "--containerd-socket=/c.sock",
            "--restart=signal",
            "--no-self-test",
        ]);
        let install = words(&install_arguments(&arguments));
        for part in [
            "--containerd-config /c.toml",
            "--containerd-socket /c.sock",
            "--restart signal",
            "--no-self-test",
        ] {
            assert!(install.contains(part), "{install}");
        }
        let uninstall = on_node(&arguments, &["uninstall"]);
        assert_eq!(
            words(&uninstall),
            "node uninstall --containerd-socket /c.sock"
        );
    }

    #[test]
    fn accelerator_is_the_one_of_the_nodes_status() {
        assert_eq!(
            accelerator(r#"{"accelerator": "tcg"}"#).unwrap().as_deref(),
            Some("tcg")
        );
        assert_eq!(accelerator(r#"{"accelerator": null}"#).unwrap(), None);
        assert!(accelerator("no JSON").is_err());
    }
}
