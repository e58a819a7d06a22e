//! `caisson-local supervise`: keeps a cluster's programs running, as systemd does on a node. A
//! program that ends, for whatever reason, is started again; at SIGTERM all of them end.
//!
//! ```text
//! started ──ends──▶ pause (0.2 s, doubled up to 5 s while it keeps ending) ──▶ started
//! ```

use std::{
    fs::File,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::{
        resource::{getrlimit, setrlimit, Resource},
        signal::{self, SigHandler, Signal},
    },
};

use crate::{
    components::{Component, Plan},
    layout::Layout,
    network,
};

const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);
/// How long the programs have to end by themselves.
const GRACE: Duration = Duration::from_secs(5);

static ENDING: AtomicBool = AtomicBool::new(false);

/// Starts a supervisor as a process of its own, which outlives this one. `program` has the
/// subcommand `supervise DIR`.
pub fn start(program: &std::path::Path, layout: &Layout) -> Result<()> {
    let log = File::create(layout.path("log/supervisor.log"))?;
    let mut command = Command::new(program);
    command
        .arg("supervise")
        .arg(layout.dir())
        .env(crate::components::MARK, layout.dir())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // SAFETY: setsid is async-signal-safe and touches no memory.
    unsafe { command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?)) };
    let child = command
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    // A thread waits for it, so that it does not become a zombie while this process goes on.
    std::thread::spawn(move || child.wait_with_output());
    Ok(())
}

/// Runs the supervisor until SIGTERM or SIGINT.
pub fn run(layout: &Layout) -> Result<()> {
    let plan = std::fs::read(layout.path("plan.json")).context("read plan.json")?;
    let plan: Plan = serde_json::from_slice(&plan).context("read plan.json")?;
    let lock = File::create(layout.path("supervisor.lock"))?;
    let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock);
    let _lock = lock
        .map_err(|(_, errno)| errno)
        .context("this cluster has a supervisor")?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: the handler stores into an atomic, which is async-signal-safe.
        unsafe { signal::signal(signal, SigHandler::Handler(end)) }.context("handle signals")?;
    }
    network::enter(&plan.namespace)?;
    let mut running: Vec<Running> = plan.components.iter().map(Running::new).collect();
    while !ENDING.load(Ordering::Relaxed) {
        for component in &mut running {
            component.look(&plan);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // End the programs that use the others first.
    for component in running.iter_mut().rev() {
        component.ask_to_end();
    }
    let end = Instant::now() + GRACE;
    for component in &mut running {
        component.end(end);
    }
    Ok(())
}

extern "C" fn end(_: i32) {
    ENDING.store(true, Ordering::Relaxed);
}

struct Running<'p> {
    component: &'p Component,
    child: Option<Child>,
    started: Instant,
    pause: Duration,
    next: Instant,
}

impl<'p> Running<'p> {
    fn new(component: &'p Component) -> Self {
        let now = Instant::now();
        Self {
            component,
            child: None,
            started: now,
            pause: SHORTEST,
            next: now,
        }
    }

    fn look(&mut self, plan: &Plan) {
        if let Some(child) = &mut self.child {
            let Ok(Some(status)) = child.try_wait() else {
                return;
            };
            println!("{} ended: {status}", self.component.name);
            // A program that ran for a while is started again at once.
            self.pause = if self.started.elapsed() > LONGEST {
                SHORTEST
            } else {
                (self.pause * 2).min(LONGEST)
            };
            self.child = None;
            self.next = Instant::now() + self.pause;
        }
        if Instant::now() < self.next {
            return;
        }
        self.started = Instant::now();
        match spawn(self.component, plan) {
            Ok(child) => {
                println!("{} started: {}", self.component.name, child.id());
                self.child = Some(child);
            }
            Err(error) => {
                println!("{error:#}");
                self.next = Instant::now() + LONGEST;
            }
        }
    }

    fn ask_to_end(&self) {
        if let Some(child) = &self.child {
            // SAFETY: kill on the pid of a child that was not yet waited for.
            unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        }
    }

    fn end(&mut self, by: Instant) {
        let Some(child) = &mut self.child else {
            return;
        };
        while let Ok(None) = child.try_wait() {
            if Instant::now() > by {
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn spawn(component: &Component, plan: &Plan) -> Result<Child> {
    let path = plan.logs.join(format!("{}.log", component.name));
    let log = File::options().create(true).append(true).open(&path);
    let log = log.with_context(|| path.display().to_string())?;
    let (program, args) = component
        .command
        .split_first()
        .context("an empty command")?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(&component.env)
        .env("HOME", "/root")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // SAFETY: prctl with PR_SET_PDEATHSIG and setrlimit are async-signal-safe and touch no memory.
    unsafe {
        command.pre_exec(|| {
            // As in containerd's unit (LimitCORE), where the hard limit allows it. Containers of
            // runc inherit it.
            let (_, most) = getrlimit(Resource::RLIMIT_CORE)?;
            setrlimit(Resource::RLIMIT_CORE, most, most)?;
            Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?)
        });
    }
    command.spawn().with_context(|| format!("start {program}"))
}
