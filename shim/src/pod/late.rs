//! Attaches skills to a pod whose containers already exist, and detaches them again.
//!
//! The node's operator asks for this, so `[policy]` does not apply.
//!
//! A container that comes later does not get these skills. The skills that a pod always has are set
//! by its annotations.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use caisson_node::skills::{self, Asker, SkillError, SkillStore};
use caisson_oci::annotations::{SkillRef, SkillWish};
use containerd_shim::protos::ttrpc;

use super::{base::Pod, late_skill::LateSkill};
use crate::{
    agent::{Agent, AgentError},
    container::Container,
    error::{Error, Result},
    machine::Machine,
    process::State,
    skill_disk,
};

/// The result of attaching or detaching a skill.
pub struct Shown {
    /// The mount point in the containers.
    pub target: PathBuf,
    /// The names of the containers, or ids for those without a name.
    pub containers: Vec<String>,
}

impl Pod {
    /// Plugs in a skill and shows it in the pod's containers, or only in the container with this
    /// name or id. Idempotent; a failure leaves nothing of it.
    pub async fn attach_skill(&self, wish: &SkillWish, container: Option<&str>) -> Result<Shown> {
        let mut late = self.late.lock().await;
        let machine = self.machine(&self.id)?;
        let agent = machine.agent().await?;
        let chosen = self.chosen(container)?;
        let store = SkillStore::new(&self.config.store_dir);
        let obtained = skills::obtain(
            &store,
            &self.config,
            std::slice::from_ref(wish),
            Asker::Operator,
            |event| self.tally.count(event),
        );
        let obtained = obtained.await.map_err(Error::LateSkill)?;
        let Some((name, skill)) = obtained.into_iter().next() else {
            return Err(missing("skill", &wish.skill));
        };
        let (target, place) = (skill.target(name.as_deref()), skills::place(&skill));
        let taken = chosen.iter().any(|container| {
            let mut own = container.skills.iter();
            own.any(|(at, other)| *at == target && *other != place)
                || late.iter().any(|other| {
                    other.target == target
                        && other.skill.digest != skill.digest
                        && other.containers.contains(&container.init.id.container)
                })
        });
        if taken {
            return Err(Error::LateSkill(SkillError::SamePlace(target)));
        }
        let same = |other: &LateSkill| other.target == target && other.skill.digest == skill.digest;
        let mut entry = match late.iter().position(same) {
            Some(index) => late.swap_remove(index),
            None => {
                let plug = skill_disk::plug(&store, &skill).map_err(Error::LateSkill)?;
                LateSkill {
                    wanted: wish.skill.clone(),
                    disk: machine.plug_late(plug).await?,
                    target: target.clone(),
                    containers: BTreeSet::new(),
                    skill,
                }
            }
        };
        let shown = self.show(agent, &mut entry, &chosen).await;
        if !entry.containers.is_empty() {
            late.push(entry);
        } else if let Err(left) = self.let_go(&machine, &mut late, entry).await {
            log::warn!("clean up after a failed attach: {}", left.chain());
        }
        self.record_late(&late);
        shown?;
        Ok(Shown {
            target,
            containers: chosen.iter().map(|container| name_of(container)).collect(),
        })
    }

    /// Hides a late skill in the pod's containers, or only in the container with this name or id,
    /// and unplugs it if no other container has it. Skills in use stay.
    pub async fn detach_skill(&self, wanted: &SkillRef, container: Option<&str>) -> Result<Shown> {
        let mut late = self.late.lock().await;
        let machine = self.machine(&self.id)?;
        let agent = machine.agent().await?;
        let Some(index) = late.iter().position(|skill| skill.is(wanted)) else {
            return Err(missing("skill that was attached late", wanted));
        };
        let mut entry = late.swap_remove(index);
        let (target, place) = (entry.target.clone(), skills::place(&entry.skill));
        let mut hidden = Vec::new();
        for id in entry.containers.clone() {
            let Some(found) = self
                .running()
                .into_iter()
                .find(|c| c.init.id.container == id)
            else {
                // The container has ended, and its mounts with it.
                entry.containers.remove(&id);
                continue;
            };
            if container.is_some_and(|wanted| !is_named(&found, wanted)) {
                continue;
            }
            match hide(agent, &id, &place, &target).await {
                Ok(()) => {
                    entry.containers.remove(&id);
                    hidden.push(name_of(&found));
                }
                Err(error) => {
                    late.push(entry);
                    self.record_late(&late);
                    return Err(error);
                }
            }
        }
        let let_go = match entry.containers.is_empty() {
            true => self.let_go(&machine, &mut late, entry).await,
            false => {
                late.push(entry);
                Ok(())
            }
        };
        self.record_late(&late);
        let_go?;
        if let (Some(wanted), true) = (container, hidden.is_empty()) {
            return Err(Error::NotFound {
                what: "container with the skill",
                id: wanted.to_owned(),
            });
        }
        Ok(Shown {
            target,
            containers: hidden,
        })
    }

    fn record_late(&self, late: &[LateSkill]) {
        let recorded = late.iter().map(LateSkill::recorded).collect();
        self.record(|record| record.late_skills = recorded);
    }

    /// Shows a skill in all of these containers. If that fails, hides it again in those that did
    /// not have it before.
    async fn show(
        &self,
        agent: &Agent,
        entry: &mut LateSkill,
        chosen: &[Arc<Container>],
    ) -> Result<()> {
        let place = skills::place(&entry.skill);
        let mut fresh: Vec<String> = Vec::new();
        for container in chosen {
            let id = &container.init.id.container;
            let own = (entry.target.clone(), place.clone());
            if container.skills.contains(&own) || entry.containers.contains(id) {
                continue;
            }
            let serial = skills::serial(&entry.skill);
            if let Err(error) = agent.show_disk(id, &serial, &entry.target, true).await {
                for id in fresh {
                    if let Err(left) = hide(agent, &id, &place, &entry.target).await {
                        log::warn!(container = id; "clean up after a failed attach: {}", left.chain());
                    }
                    entry.containers.remove(&id);
                }
                return Err(error.into());
            }
            entry.containers.insert(id.clone());
            fresh.push(id.clone());
        }
        Ok(())
    }

    /// Unplugs a skill that no container has through this entry any more.
    async fn let_go(
        &self,
        machine: &Machine,
        late: &mut Vec<LateSkill>,
        mut entry: LateSkill,
    ) -> Result<()> {
        let Some(disk) = entry.disk.take() else {
            return Ok(());
        };
        // The same skill at another mount point takes over the disk.
        let same = |other: &&mut LateSkill| other.skill.digest == entry.skill.digest;
        if let Some(other) = late.iter_mut().find(same) {
            other.disk = Some(disk);
            return Ok(());
        }
        let place = skills::place(&entry.skill);
        let containers = self.lock().values().cloned().collect::<Vec<_>>();
        if containers
            .iter()
            .any(|c| c.skills.iter().any(|(_, own)| *own == place))
        {
            machine.keep(disk);
            return Ok(());
        }
        let unplugged = machine.unplug(&disk).await;
        if unplugged.is_err() {
            entry.disk = Some(disk);
            late.push(entry);
        }
        unplugged
    }

    /// The containers that have processes, or will have once they are started.
    fn running(&self) -> Vec<Arc<Container>> {
        let containers = self.lock();
        let running = containers.values().filter(|container| {
            !container.is_sandbox() && !matches!(container.init.state(), State::Stopped(_))
        });
        running.cloned().collect()
    }

    /// All running containers, or the one with this name or id.
    fn chosen(&self, wanted: Option<&str>) -> Result<Vec<Arc<Container>>> {
        let mut chosen = self.running();
        chosen.retain(|container| wanted.is_none_or(|wanted| is_named(container, wanted)));
        match chosen.is_empty() {
            false => Ok(chosen),
            true => Err(Error::NotFound {
                what: "running container",
                id: wanted.unwrap_or("of the pod").to_owned(),
            }),
        }
    }
}

async fn hide(agent: &Agent, id: &str, place: &Path, target: &Path) -> Result<()> {
    let serial = place.file_name().unwrap_or_default().to_string_lossy();
    match agent.show_disk(id, &serial, target, false).await {
        // The container has ended meanwhile.
        Err(AgentError::Refused {
            code: ttrpc::Code::NOT_FOUND | ttrpc::Code::FAILED_PRECONDITION,
            ..
        }) => Ok(()),
        done => Ok(done?),
    }
}

fn is_named(container: &Container, wanted: &str) -> bool {
    container.name.as_deref() == Some(wanted) || container.init.id.container == wanted
}

fn name_of(container: &Container) -> String {
    let name = container.name.clone();
    name.unwrap_or_else(|| container.init.id.container.clone())
}

fn missing(what: &'static str, wanted: &SkillRef) -> Error {
    Error::NotFound {
        what,
        id: wanted.to_string(),
    }
}
