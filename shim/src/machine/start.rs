//! Makes a bare VM that of a pod, and gives its guest the identity.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        Mutex, PoisonError,
    },
    time::Instant,
};

use caisson_node::{
    counters::Origin,
    record::{Degraded, MachineState},
};
use caisson_oci::{config, NodeConfig, VmSize};
use caisson_protocol::{port, secret};
use caisson_vmm::{Accelerator, VmSpec, Vmm};
use tokio::sync::OnceCell;

use super::{
    bare::{attach_share, discard, plug_modules, return_free_pages, Site},
    Machine,
};
use crate::{agent::Agent, error::Result, logger::stage};

// The two crates that must agree here do not depend on each other. A test compares
// `secret::MARKER`.
const _: () = assert!(caisson_vmm::READY_PORT == port::READY);
const _: () = assert!(caisson_vmm::SERVICE_PORT == port::AGENT);
const _: () = assert!(caisson_vmm::SECRET_LENGTH == secret::LENGTH);
const _: () = assert!(caisson_vmm::ADMITTED == secret::ADMITTED);
const _: () = assert!(caisson_vmm::BY_DAEMON == secret::BY_DAEMON);
const _: () = assert!(caisson_vmm::BY_KERNEL == secret::BY_KERNEL);

impl Machine {
    /// Makes the VM of a pod: the one that its site has, or a new one.
    pub async fn boot(
        vmm: &dyn Vmm,
        config: &NodeConfig,
        id: &str,
        hostname: String,
        site: Site,
        size: VmSize,
    ) -> Result<Self> {
        let started = Instant::now();
        let (bare, dir, share) = site.vm(vmm, config, id, size).await?;
        let pids = bare.vm.pids().await?;
        let machine = Self {
            vm: bare.vm,
            class: dir.class,
            pid: pids.first().map_or_else(std::process::id, |(_, pid)| *pid),
            modules: Mutex::new(bare.modules),
            returns_free_pages: AtomicBool::new(bare.returns_free_pages),
            plugged: Mutex::default(),
            holds: Mutex::default(),
            roots: Mutex::default(),
            hostname,
            origin: bare.booted.origin,
            template: bare.booted.template,
            missing: Mutex::new(bare.booted.missing),
            boot_timeout: bare.boot_timeout,
            accelerator: bare.booted.shape.accelerator,
            patience: bare.patience,
            known: Mutex::new(bare.agent),
            agent: OnceCell::new(),
            size: tokio::sync::Mutex::new(bare.booted.size),
            recorder: dir.recorder.clone(),
            dir: Mutex::new(Some(dir)),
            network: Mutex::default(),
            stopped: OnceCell::new(),
            removed: OnceCell::new(),
            anti_spoofing: config.network.anti_spoofing,
            is_broken: AtomicBool::new(false),
            share,
        };
        if let Some(recorder) = &machine.recorder {
            let degraded = degraded(config, machine.origin, machine.accelerator);
            recorder.change(|record| {
                record.degraded = degraded;
                record.machine_becomes(MachineState::Running)
            });
        }
        stage(id, "vmm", started);
        if let Err(error) = machine.record().await {
            machine.shutdown().await;
            return Err(error);
        }
        Ok(machine)
    }

    /// Returns, once, the VM that a template is to be made of, if there is none or it lacks
    /// something.
    pub fn missing_template(&self) -> Option<VmSpec> {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.take()
    }

    /// Returns the agent, once the guest has booted and has its identity. If the guest does not get
    /// that far, its VM is stopped, so that nobody waits for it a second time.
    pub async fn agent(&self) -> Result<&Agent> {
        self.agent
            .get_or_try_init(|| async {
                let greeted = self.greet().await;
                if let Err(error) = &greeted {
                    if let Some(template) = &self.template {
                        discard(template);
                    }
                    if self.end().await.is_none() {
                        self.break_off(&error.chain()).await;
                    }
                }
                greeted
            })
            .await
    }

    /// Whether the agent has left a call unanswered that should have been answered by now.
    pub fn is_overdue(&self) -> bool {
        self.agent.get().is_some_and(|agent| agent.overdue() > 0)
    }

    /// Connects to the agent and gives the guest its identity.
    async fn greet(&self) -> Result<Agent> {
        let started = Instant::now();
        let known = self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let (agent, has_share) = match known {
            Some(agent) => (agent, true),
            None => {
                let connection = self.vm.connect(port::AGENT, self.boot_timeout).await?;
                stage(&self.hostname, "agent answers", started);
                (Agent::new(connection, self.patience), false)
            }
        };
        let identifying = Instant::now();
        let identify = async {
            let max_processes = self.process_limit();
            let kernel = agent.configure(&self.hostname, max_processes).await?;
            stage(&self.hostname, "identity", identifying);
            Result::Ok(kernel)
        };
        let share = async {
            match has_share {
                true => Ok(()),
                false => attach_share(&agent).await,
            }
        };
        let (kernel, ()) = tokio::try_join!(identify, share)?;
        stage(&self.hostname, "guest", started);
        log::info!(kernel; "guest is up");
        Ok(agent)
    }

    /// Plugs in, once, the disk with the kernel's additional modules, for which the guest asks.
    pub async fn plug_modules(&self) {
        let path = self
            .modules
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(path) = path {
            plug_modules(&self.vm, path).await;
            self.record_devices().await;
        }
    }

    /// Has the guest, from the first call on, return free pages to the host.
    pub async fn return_free_pages(&self) {
        if self.returns_free_pages.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Ok(agent) = self.agent().await {
            return_free_pages(&self.vm, agent).await;
            self.record_devices().await;
        }
    }

    async fn record_devices(&self) {
        if let Err(error) = self.record().await {
            log::warn!("record the VM's devices: {}", error.chain());
        }
    }
}

/// Returns in what a VM is worse off than the node's settings want.
fn degraded(config: &NodeConfig, origin: Origin, accelerator: Accelerator) -> Vec<Degraded> {
    let wants_kvm = config.hypervisor.accelerator != config::Accelerator::Tcg;
    let cold = config.vm.templates && origin == Origin::Boot;
    let emulated = wants_kvm && accelerator == Accelerator::Tcg;
    let all = [(cold, Degraded::Cold), (emulated, Degraded::Emulated)];
    let holds = all.into_iter().filter(|(holds, _)| *holds);
    holds.map(|(_, degraded)| degraded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_is_degraded_where_the_node_wanted_something_else() {
        let auto = NodeConfig::default();
        let of = |config, origin| degraded(config, origin, Accelerator::Tcg);
        assert_eq!(
            of(&auto, Origin::Boot),
            [Degraded::Cold, Degraded::Emulated]
        );
        assert_eq!(of(&auto, Origin::Template), [Degraded::Emulated]);
        assert_eq!(degraded(&auto, Origin::Pool, Accelerator::Kvm), []);
        let mut told = NodeConfig::default();
        told.hypervisor.accelerator = config::Accelerator::Tcg;
        told.vm.templates = false;
        assert_eq!(of(&told, Origin::Boot), []);
    }

    #[test]
    fn guest_and_vmm_know_the_same_question() {
        assert_eq!(caisson_vmm::SECRET_MARKER, secret::MARKER);
    }
}
