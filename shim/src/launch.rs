//! Implements the shim's commands as containerd calls them (containerd, core/runtime/v2/README.md):
//! `start` spawns the serving process, [`serve`] is that process, and `delete` cleans up after a
//! dead one. All three run in a task's bundle.

use std::{io::Write, path::Path, sync::Arc, time::SystemTime};

use caisson_node::{
    accelerator, config,
    control::{Answer, Claim},
    host::{chain::chain, error::OnFile},
    state, templates,
};
use caisson_oci::{Hooks, NodeConfig, Role};
use containerd_shim::{
    api::DeleteResponse,
    asynchronous::{spawn, ExitSignal},
    protos::{
        protobuf::{self, Message},
        shim_async::create_task,
        ttrpc::r#async::{transport::Listener, Server},
    },
    socket_address, Flags, StartOpts,
};
use containerd_shim_protos::sandbox_async::create_sandbox;
use tokio::signal::unix::{signal, SignalKind};

use crate::{
    bundle::read_config,
    error::{Error, Result},
    events::Events,
    features,
    hooks::HostHooks,
    logger,
    machine::Site,
    pod::Pod,
    pool,
    sandbox::SandboxService,
    stats::timestamp,
    task::TaskService,
    template,
};

/// The exit status that `delete` reports for a task whose shim died: that of a killed process.
const KILLED: u32 = 137;

/// The file in the bundle with the address of the serving shim's socket. containerd 1.6 uses it to
/// find a running shim again.
const ADDRESS_FILE: &str = "address";

/// The spec in the bundle. The bundle of a sandbox from containerd's sandbox service has none.
const SPEC_FILE: &str = "config.json";

/// Task v2 and v3 differ only in the name of their protobuf package (containerd,
/// api/runtime/task/).
const TASK_SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// Executes containerd's command line.
pub async fn run() -> Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let refused = |error: containerd_shim::Error| Error::Request {
        field: "command line",
        reason: error.to_string(),
    };
    let flags = containerd_shim::parse(&arguments).map_err(refused)?;
    if flags.version {
        println!(
            "containerd-shim-caisson-v2 {}\n{}",
            env!("CARGO_PKG_VERSION"),
            config::RUNTIME
        );
        return Ok(());
    }
    if flags.info {
        return answer(&encoded(features::info())?);
    }
    match flags.action.as_str() {
        "start" => answer(start(flags).await?.as_bytes()),
        "delete" => answer(&delete(&flags).await?),
        pool::ACTION => live_in_the_pool(&flags.id).await,
        templates::ACTION => template::build().await,
        _ => serve_new(flags).await,
    }
}

fn answer(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(Error::file("write", "stdout"))
}

/// Returns the role that the bundle's task has in a pod.
fn role() -> Result<Role> {
    Ok(Role::parse(&read_config(Path::new("."))?)?)
}

/// Starts a serving process for a pod, or finds the one that it has. Returns how to reach it.
async fn start(flags: Flags) -> Result<String> {
    // An error in a bundle is reported by the request to create its task, where the user sees it.
    let role = role().unwrap_or(Role::Alone);
    let address = match role {
        Role::Container { sandbox_id } => pod_address(&sandbox_id)?,
        Role::Sandbox | Role::Alone => {
            let grouping = flags.id.clone();
            let socket = socket_address(&flags.address, &flags.namespace, &grouping);
            let bundle = std::env::current_dir().map_err(Error::file("find", "the bundle"))?;
            let preset = config::own_preset();
            // If the configuration is refused, the shim tells the user.
            let node = config::load();
            let claimed = node.is_ok_and(|node| {
                let config = config::of_preset(&node, preset.as_deref());
                config.is_ok_and(|config| pool::claim(&node, &config, &flags, &socket, bundle))
            });
            if claimed {
                return bootstrap(socket);
            }
            // The serving process is started by the program's own name.
            let preset = preset
                .iter()
                .map(|name| (config::PRESET_ENV, name.as_str()));
            let variables = preset.collect();
            let options = StartOpts {
                id: flags.id,
                publish_binary: flags.publish_binary,
                address: flags.address,
                ttrpc_address: String::new(),
                namespace: flags.namespace,
                debug: flags.debug,
            };
            let spawned = spawn(options, &grouping, variables).await;
            spawned.map_err(|error| Error::Spawn(Box::new(error)))?
        }
    };
    bootstrap(address)
}

/// Notes the address of a pod's shim. Returns how containerd reaches it.
fn bootstrap(address: String) -> Result<String> {
    std::fs::write(ADDRESS_FILE, &address).map_err(Error::file("write", ADDRESS_FILE))?;
    if Path::new(SPEC_FILE).exists() {
        return Ok(address);
    }
    // The version tells containerd 2 that it need not ask for the pod's containers (containerd,
    // core/runtime/v2/shim.go, `parseStartResponse`). It is left out for a task, since containerd
    // 1.6 and 1.7 do not know version 3 and do not say so either.
    let bootstrap = serde_json::json!({"version": 3, "address": address, "protocol": "ttrpc"});
    Ok(bootstrap.to_string())
}

/// Returns the address of the shim that serves a pod. It is in the bundle of the pod's sandbox,
/// which lies beside this one.
fn pod_address(sandbox_id: &str) -> Result<String> {
    let path = Path::new("..").join(sandbox_id).join(ADDRESS_FILE);
    std::fs::read_to_string(&path)
        .map_err(Error::file("find the shim of the pod's sandbox by", path))
}

/// Removes what a dead shim left behind, and runs the hooks that come after a container's end.
/// Returns the answer for containerd.
async fn delete(flags: &Flags) -> Result<Vec<u8>> {
    let state_dir = config::load().unwrap_or_default().state_dir;
    // A container of a pod leaves nothing outside the pod, and the pod is removed with its sandbox.
    if !matches!(role(), Ok(Role::Container { .. })) {
        state::remove(&state_dir, &flags.id)?;
        if let Ok(address) = std::fs::read_to_string(ADDRESS_FILE) {
            remove_socket(&address);
        }
    }
    let bundle = std::env::current_dir().map_err(Error::file("find", "the bundle"))?;
    if let Ok(hooks) = read_config(&bundle).and_then(|json| Ok(Hooks::parse(&json)?)) {
        HostHooks::new(hooks, &flags.id, &bundle).stopped().await;
    }
    let response = DeleteResponse {
        exit_status: KILLED,
        exited_at: Some(timestamp(SystemTime::now())).into(),
        ..Default::default()
    };
    encoded(response.write_to_bytes())
}

fn encoded(message: protobuf::Result<Vec<u8>>) -> Result<Vec<u8>> {
    message.map_err(|error| Error::Request {
        field: "answer",
        reason: error.to_string(),
    })
}

/// Removes the shim's socket, either when the shim ends or after it died without doing so.
fn remove_socket(address: &str) {
    match std::fs::remove_file(socket_path(address)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            log::warn!("remove socket {address}: {error}");
        }
        _ => {}
    }
}

fn socket_path(address: &str) -> &Path {
    Path::new(address.strip_prefix("unix://").unwrap_or(address))
}

/// Serves a new pod.
async fn serve_new(flags: Flags) -> Result<()> {
    let address = std::env::var(pool::TTRPC_ADDRESS).unwrap_or_default();
    // If the configuration was refused, the first request returns the reason, where the user sees
    // it.
    let preset = config::own_preset();
    let config = config::load_for(preset.as_deref()).map_err(|error| chain(&error));
    let level = config.as_ref().map_or("info", |config| &config.log.level);
    logger::init(flags.debug, level, &flags.namespace, &flags.id)?;
    let pod = config.map(|config| pod(&flags, address, config));
    let serving = Serving::start(&flags.socket, pod).await?;
    close(nix::unistd::dup2_stdout)?;
    serving.until_the_end().await
}

/// Lives in the pool until a pod claims this process, and serves the pod.
async fn live_in_the_pool(id: &str) -> Result<()> {
    let born = || close(nix::unistd::dup2_stderr);
    let member = pool::member(id, born).await;
    let Some(claimed) = member? else {
        return Ok(());
    };
    let serving = serve_claimed(&claimed.claim, claimed.site).await;
    let answer = match &serving {
        Ok(_) => Answer::Claimed,
        Err(error) => Answer::Failed(error.chain()),
    };
    // If the process that asked is gone, containerd asks for the pod's end.
    let _ = claimed.answer.send(answer);
    serving?.until_the_end().await
}

/// Takes a pod's name and serves it, in its bundle.
async fn serve_claimed(claim: &Claim, mut site: Site) -> Result<Serving> {
    let flags = Flags {
        id: claim.id.clone(),
        namespace: claim.namespace.clone(),
        debug: claim.debug,
        ..Default::default()
    };
    site.rename(&claim.id)?;
    std::env::set_current_dir(&claim.bundle).map_err(Error::file("enter", &claim.bundle))?;
    let config = config::load_for(claim.preset.as_deref())?;
    logger::init(flags.debug, &config.log.level, &flags.namespace, &flags.id)?;
    let pod = pod(&flags, claim.ttrpc_address.clone(), config);
    pod.give(site);
    Serving::start(&claim.socket, Ok(pod)).await
}

/// A server that containerd can reach.
struct Serving {
    server: Server,
    socket: String,
    exit: Arc<ExitSignal>,
}

impl Serving {
    async fn start(socket: &str, pod: std::result::Result<Arc<Pod>, String>) -> Result<Self> {
        ignore_signals()?;
        let exit = Arc::new(ExitSignal::default());
        let task = Arc::new(TaskService {
            pod,
            exit: exit.clone(),
        });
        let mut server = Server::new().add_listener(listen(socket)?);
        for name in TASK_SERVICES {
            let service = create_task(task.clone()).into_values();
            server = server.register_service(service.map(|s| (name.to_owned(), s)).collect());
        }
        server = server.register_service(create_sandbox(Arc::new(SandboxService::new(task))));
        let started = server.start().await;
        started.map_err(|error| Error::Spawn(Box::new(error.into())))?;
        Ok(Self {
            server,
            socket: socket.to_owned(),
            exit,
        })
    }

    /// Serves containerd until the pod ends.
    async fn until_the_end(mut self) -> Result<()> {
        self.exit.wait().await;
        log::info!("the shim ends");
        // containerd may remove the bundle while the server still answers, and a shim of the same
        // id may follow. Hence the socket goes first, and by the name that this process was told.
        remove_socket(&self.socket);
        if let Err(error) = self.server.shutdown().await {
            log::debug!("end of the server: {error}");
        }
        Ok(())
    }
}

fn pod(flags: &Flags, containerd: String, config: NodeConfig) -> Arc<Pod> {
    let events = Events::new(containerd, flags.namespace.clone());
    let vmm = Arc::new(accelerator::qemu(&config));
    Pod::new(
        flags.id.clone(),
        flags.namespace.clone(),
        config,
        vmm,
        events,
    )
}

/// Ignores termination signals. Only containerd's requests end a shim: a signal to all processes of
/// a service must not end the pods too.
fn ignore_signals() -> Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(Error::file("listen for signals by", "signalfd"))?;
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                log::info!("a signal to end is ignored: the pod's end is containerd's word");
            }
        });
    }
    Ok(())
}

fn listen(address: &str) -> Result<Listener> {
    let path = socket_path(address);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::file("create", parent))?;
    }
    let bind = || std::os::unix::net::UnixListener::bind(path);
    let listener = match bind() {
        // The socket belonged to a shim that was killed.
        Err(error)
            if error.kind() == std::io::ErrorKind::AddrInUse
                && std::os::unix::net::UnixStream::connect(path).is_err() =>
        {
            std::fs::remove_file(path).map_err(Error::file("remove", path))?;
            bind()
        }
        bound => bound,
    };
    let listening = listener.and_then(Listener::try_from);
    listening.map_err(Error::file("listen on", path))
}

/// Closes stdout or stderr, whose end the process that started this one waits for.
fn close(stream: impl FnOnce(std::fs::File) -> nix::Result<()>) -> Result<()> {
    let null = std::fs::File::options().write(true).open("/dev/null");
    let null = null.map_err(Error::file("open", "/dev/null"))?;
    stream(null)
        .map_err(std::io::Error::from)
        .map_err(Error::file("close", "the standard streams"))
}
