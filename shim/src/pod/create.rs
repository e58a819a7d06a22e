//! Creates a container in a pod: from the bundle to an init that waits for its start.
//!
//! A container without a pod boots the VM that it runs in. So does a pod's sandbox, which is that
//! VM and nothing else. The containers of a pod come into the VM that its sandbox has booted.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use caisson_node::{host::chain::chain, oom_score, state::PodDir};
use caisson_oci::{exec::Grants, plan, scratch::Fit, PidNamespace, PidWish, Plan, Role, Wishes};
use containerd_shim::protos::events::task::{TaskCreate, TaskIO};

use super::{base::Pod, request::CreateRequest};
use crate::{
    agent::ProcessId,
    block,
    bundle::read_config,
    container::Container,
    error::{Error, Result},
    hooks::HostHooks,
    logger::stage,
    machine::{Machine, Site},
    places::{self, Creation},
    plug::Plug,
    process::Process,
    scratch::{self, root::Layers},
    share::Share,
    stand_in::{self, StandIn},
    streams::HostEnds,
};

/// A container whose root and volumes are mounted into the share.
struct Prepared {
    plan: Plan,
    grants: Grants,
    name: Option<String>,
    skills: Vec<(PathBuf, PathBuf)>,
    /// Set if the root is a disk.
    root: Option<Plug>,
    plugs: Vec<Plug>,
    ends: HostEnds,
}

impl Pod {
    /// Creates a container. Returns the pid of the VM on the host. A failure leaves nothing of the
    /// container, and the pod as it was.
    pub async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<u32> {
        let (task, began) = (self.next_task(), Instant::now());
        let created = self.create_task(request).await;
        self.count_start(task, began, &created);
        created
    }

    async fn create_task(self: &Arc<Self>, request: CreateRequest) -> Result<u32> {
        self.check_new(&request.id)?;
        let _claiming = self.claiming.read().await;
        self.step();
        let json = read_config(&request.bundle)?;
        let wishes = Wishes::parse(&json, &self.config.policy, &self.namespace)?;
        let in_pod = matches!(wishes.role, Role::Container { .. });
        let hooks = HostHooks::new(wishes.hooks(), &request.id, &request.bundle);
        let stand_in = match in_pod || !hooks.is_empty() {
            true => Some(StandIn::start(network(&wishes, &hooks))?),
            false => None,
        };
        let created = async {
            if let Some(stand_in) = &stand_in {
                hooks.create(stand_in.pid).await?;
            }
            match wishes.role {
                Role::Container { .. } => self.create_in_pod(&request, wishes).await,
                Role::Sandbox => self.boot_sandbox(&request, wishes, true).await,
                Role::Alone => self.create_alone(&request, wishes, stand_in.as_ref()).await,
            }
        };
        let (machine, mut container) = match self.turns.take(&request.id, Box::pin(created)).await {
            Ok(created) => created,
            Err(error) => {
                // Nothing else is in the VM.
                if !in_pod {
                    self.shutdown().await;
                }
                hooks.stopped().await;
                return Err(error);
            }
        };
        container.hooks = hooks;
        match stand_in {
            // The pid of a sandbox is that of its VM.
            Some(stand_in) if !container.is_sandbox() => container.stand_in(stand_in),
            _ => {}
        }
        let container = self.admit(&request.id, container);
        self.score(&machine).await;
        self.events.send(TaskCreate {
            container_id: request.id,
            bundle: request.bundle.display().to_string(),
            rootfs: request.rootfs,
            io: Some(TaskIO {
                stdin: request.stdio.stdin,
                stdout: request.stdio.stdout,
                stderr: request.stdio.stderr,
                terminal: request.stdio.terminal,
                ..Default::default()
            })
            .into(),
            pid: container.pid,
            ..Default::default()
        });
        self.watch(machine, container.init.clone(), &container);
        Ok(container.pid)
    }

    /// Creates a container that has a VM to itself. Its network, unless the spec names one, is what
    /// hooks have brought to its stand-in.
    async fn create_alone(
        self: &Arc<Self>,
        request: &CreateRequest,
        wishes: Wishes,
        stand_in: Option<&StandIn>,
    ) -> Result<(Arc<Machine>, Container)> {
        let started = Instant::now();
        let brought = stand_in.filter(|_| wishes.has_network());
        let network = wishes.network().or(brought.map(StandIn::network));
        let (egress, servers) = self.egress(&wishes)?;
        let hostname = wishes.hostname();
        let mut site = self.site(wishes.cgroups_path().as_deref())?;
        let mut prepared = self.prepare(&site.share, request, wishes).await?;
        let score = oom_score::of_vm(site.dir.class, &[prepared.plan.oom_score_adj()]);
        site.dir.placement.oom_score_adj = score;
        let hostname = hostname.unwrap_or_else(|| request.id.clone());
        stage(&self.id, "prepare", started);
        let machine = self.boot(hostname, site, prepared.plan.limits).await?;
        // All have a host's half and a guest's half, which wait for the guest to boot.
        let limits = [prepared.plan.limits];
        tokio::try_join!(
            self.join_network(&machine, network.as_deref(), egress, servers),
            machine.plug(std::mem::take(&mut prepared.plugs)),
            self.make_room(&machine, &limits),
        )?;
        let container = self.bring_in(&machine, request, prepared, started).await?;
        Ok((machine, container))
    }

    /// Creates a container in a pod that already has its VM.
    async fn create_in_pod(
        self: &Arc<Self>,
        request: &CreateRequest,
        mut wishes: Wishes,
    ) -> Result<(Arc<Machine>, Container)> {
        let started = Instant::now();
        let machine = self.machine(&self.id)?;
        if let Some(files) = self.files.get() {
            wishes.add_files(files)?;
        }
        if let Some(claimed) = self.claimed.get() {
            wishes.add_claim(claimed, &self.namespace)?;
        }
        let created = async {
            let prepared = self.prepare(&machine.share, request, wishes).await?;
            stage(&request.id, "prepare", started);
            self.make_room(&machine, &[prepared.plan.limits]).await?;
            self.bring_in(&machine, request, prepared, started).await
        };
        match created.await {
            Ok(container) => Ok((machine, container)),
            Err(error) => {
                let cleaned_up = async {
                    machine.unplug_root(&request.id).await?;
                    Result::Ok(machine.share.remove(&request.id)?)
                };
                if let Err(left) = cleaned_up.await {
                    log::error!(container = request.id; "clean up after a failed create: {}", left.chain());
                }
                Err(error)
            }
        }
    }

    /// Makes the folders and the cgroup of a new pod, for the VM that came from the pool or for one
    /// to be made.
    pub(super) fn site(&self, cgroup: Option<&Path>) -> Result<Site> {
        let mut site = match self.take_spare() {
            Some(mut site) => {
                // That of the pool is not the pod's.
                site.dir.placement = Default::default();
                site
            }
            None => {
                let dir = PodDir::create(&self.config, &self.id)?;
                let share = Share::create(dir.path())?;
                Site {
                    dir,
                    share,
                    bare: None,
                }
            }
        };
        let recorder = site.dir.begin_record(&self.namespace)?;
        self.recorder.get_or_init(|| recorder);
        self.record(|record| record.preset.clone_from(&self.config.preset));
        if let Some(cgroup) = cgroup {
            site.dir.use_cgroup(cgroup)?;
        }
        Ok(site)
    }

    /// Does what is possible for a container while the guest is still booting, or before.
    async fn prepare(
        &self,
        share: &Share,
        request: &CreateRequest,
        wishes: Wishes,
    ) -> Result<Prepared> {
        let id = &request.id;
        let folder = wishes.root(&request.bundle);
        let disks = self.scratch.count().await;
        let disks = disks
            + self
                .machine
                .get()
                .map_or(0, |machine| machine.count_roots());
        let root = block::root(id, &request.rootfs);
        let layers = match root {
            Some(_) => None,
            None => self.layers(request, &wishes, disks)?,
        };
        let (root, guest_root) = match (root, &layers) {
            (Some(root), _) => (Some(root), block::root_place(id)),
            (None, Some(layers)) => {
                let lower = vec![layers.lower.clone()];
                share.mount_rootfs(id, lower, &folder).await?;
                let root = layers.plug(id, &Share::guest_rootfs(id)).await?;
                (Some(root), scratch::root::place(id))
            }
            (None, None) => {
                let mounts = request.rootfs.clone();
                share.mount_rootfs(id, mounts, &folder).await?;
                (None, Share::guest_rootfs(id))
            }
        };
        let creation = Creation {
            id,
            root: &share.rootfs(id),
            guest_root,
            pid_namespace: self.pid_namespace(wishes.pid_namespace())?,
            mounted: share.mounted(),
            disks: disks + usize::from(root.is_some()),
        };
        let (places, mut plugs) = places::find(
            &wishes,
            &self.config,
            creation,
            self.pods_home(),
            &self.tally,
        )
        .await?;
        let (name, devices) = (wishes.name(), wishes.annotations.devices.clone());
        let mut plan = plan(wishes, self.node(), &places)?;
        plan.shared.extend(layers.map(|_| Share::guest_rootfs(id)));
        let grants = plan.grants(devices);
        for warning in &plan.warnings {
            log::warn!(container = id; "{warning}");
        }
        for disk in &plan.disks {
            plugs.push(block::plug(disk)?);
        }
        for disk in &plan.scratch {
            plugs.push(self.scratch.plug(disk).await?);
        }
        share.mount_volumes(id, &plan.volumes)?;
        let ends = HostEnds::open(&request.stdio, id, &self.namespace).await?;
        Ok(Prepared {
            plan,
            grants,
            name,
            skills: places.skills,
            root,
            plugs,
            ends,
        })
    }

    /// Returns the layers of a container's root if what it writes is to be on a disk. Nothing can
    /// be written in a read-only root, which is shared. `disks` is how many the VM has.
    fn layers(
        &self,
        request: &CreateRequest,
        wishes: &Wishes,
        disks: usize,
    ) -> Result<Option<Layers>> {
        let layers = Layers::of(&request.rootfs);
        let fit = match &layers {
            Ok(layers) => scratch::with_room(layers.fit(), disks),
            Err(why) => Fit::No(why),
        };
        if wishes.has_read_only_root() && fit != Fit::Made {
            return Ok(None);
        }
        let wanted = wishes.scratch(self.config.vm.scratch);
        let is_disk = wanted.is_disk(fit, "the container's root")?;
        Ok(layers.ok().filter(|_| is_disk))
    }

    /// Finds the pid namespace that a container asks for. One of a process of the host is the pod's
    /// if the sandbox has that pid, or that of the container with that pid.
    fn pid_namespace(&self, wish: PidWish) -> Result<PidNamespace> {
        let pid = match wish {
            PidWish::Own => return Ok(PidNamespace::Own),
            PidWish::Pod => return Ok(PidNamespace::Pod),
            PidWish::Of(pid) if self.pid() == Some(pid) => return Ok(PidNamespace::Pod),
            PidWish::Of(pid) => pid,
        };
        let containers = self.lock();
        let target = containers.iter().find(|(_, target)| target.pid == pid);
        let target = target.ok_or_else(|| Error::NotFound {
            what: "container of this pod whose processes are to be seen, with the pid",
            id: pid.to_string(),
        })?;
        Ok(PidNamespace::Of(target.0.clone()))
    }

    /// Plugs in a container's devices and has the agent create the container.
    async fn bring_in(
        &self,
        machine: &Machine,
        request: &CreateRequest,
        prepared: Prepared,
        started: Instant,
    ) -> Result<Container> {
        let id = &request.id;
        let Prepared {
            plan,
            grants,
            name,
            skills,
            root,
            plugs,
            ends,
        } = prepared;
        let (agent, (), ()) = tokio::try_join!(
            machine.agent(),
            machine.plug(plugs),
            machine.plug_root(id, root)
        )?;
        stage(id, "attached", started);
        let guest_pid = agent.create(id, &plan, ends.tokens).await?;
        stage(id, "created", started);
        let init = Process::new(ProcessId::init(id), request.stdio.clone());
        match ends.connect(&machine.vm, id).await {
            Ok(pumps) => init.set_pumps(pumps),
            Err(error) => {
                // Without a pod, the container's VM ends anyway.
                if let Err(left) = agent.delete(id).await {
                    log::warn!(container = id; "clean up after a failed create: {}", chain(&left));
                }
                return Err(error.into());
            }
        }
        stage(id, "streams", started);
        let mut container = Container::new(
            request.bundle.clone(),
            init,
            machine.pid,
            guest_pid,
            plan.limits,
            grants,
        );
        (container.name, container.skills) = (name, skills);
        container.oom_score_adj = plan.oom_score_adj();
        Ok(container)
    }
}

/// Returns the network namespace that hooks find by a container's pid.
fn network(wishes: &Wishes, hooks: &HostHooks) -> stand_in::Network {
    match wishes.network() {
        Some(path) if !hooks.is_empty() => stand_in::Network::Of(path),
        None if !hooks.is_empty() && wishes.has_network() => stand_in::Network::New,
        _ => stand_in::Network::Host,
    }
}
