//! Attaches skills to a pod whose containers already exist, and detaches them again.
//!
//! The node's operator asks for this, so `[policy]` does not apply. It does for the skills of a
//! claim, which `claim.rs` attaches.
//!
//! A container that comes later does not get these skills. The skills that a pod always has are set
//! by its annotations or its claim.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use caisson_node::{
    host::chain::chain,
    skills::{self, Asker, Skill, SkillError, SkillStore},
};
use caisson_oci::annotations::{SkillRef, SkillWish};
use caisson_protocol::agent::show_request::Source;

use super::{base::Pod, late_skill::LateSkill};
use crate::{
    agent::Agent,
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

/// A skill that was attached just now.
pub(super) struct Attached {
    digest: String,
    pub target: PathBuf,
    /// The ids of the containers that did not have it.
    containers: Vec<String>,
}

impl Pod {
    /// Plugs in a skill and shows it in the pod's containers, or only in the container with this
    /// name or id. Idempotent; a failure leaves nothing of it.
    pub async fn attach_skill(&self, wish: &SkillWish, container: Option<&str>) -> Result<Shown> {
        let mut late = self.late.lock().await;
        let machine = self.machine(&self.id)?;
        let chosen = self.chosen(container)?;
        let wishes = std::slice::from_ref(wish);
        let attached = self
            .attach_to(&mut late, &machine, &chosen, wishes, Asker::Operator)
            .await?;
        let Some(Attached { target, .. }) = attached.into_iter().next() else {
            return Err(missing("skill", &wish.skill));
        };
        Ok(Shown {
            target,
            containers: chosen.iter().map(|chosen| chosen.shown_name()).collect(),
        })
    }

    /// Plugs in skills and shows them in containers. A failure leaves nothing of them.
    pub(super) async fn attach_to(
        &self,
        late: &mut Vec<LateSkill>,
        machine: &Machine,
        chosen: &[Arc<Container>],
        wishes: &[SkillWish],
        asker: Asker<'_>,
    ) -> Result<Vec<Attached>> {
        let store = SkillStore::new(&self.config.store_dir);
        let count = |event| self.tally.count(event);
        let obtained = skills::obtain(&store, &self.config, wishes, asker, count);
        let obtained = obtained.await.map_err(Error::LateSkill)?;
        let mut attached = Vec::new();
        for ((name, skill), wish) in obtained.into_iter().zip(wishes) {
            let target = skill.target(name.as_deref());
            let one = self.attach_one(late, machine, chosen, wish, (target, skill));
            match one.await {
                Ok(one) => attached.push(one),
                Err(error) => {
                    self.detach_from(late, machine, attached).await;
                    return Err(error);
                }
            }
        }
        Ok(attached)
    }

    async fn attach_one(
        &self,
        late: &mut Vec<LateSkill>,
        machine: &Machine,
        chosen: &[Arc<Container>],
        wish: &SkillWish,
        (target, skill): (PathBuf, Skill),
    ) -> Result<Attached> {
        let agent = machine.agent().await?;
        let place = skills::place(&skill);
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
                let store = SkillStore::new(&self.config.store_dir);
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
        let digest = entry.skill.digest.clone();
        let shown = show(agent, &mut entry, chosen).await;
        self.put_back(late, machine, entry).await;
        Ok(Attached {
            containers: shown?,
            digest,
            target,
        })
    }

    /// Undoes what [`Pod::attach_to`] has done. Failures are logged.
    pub(super) async fn detach_from(
        &self,
        late: &mut Vec<LateSkill>,
        machine: &Machine,
        attached: Vec<Attached>,
    ) {
        for one in attached {
            let is_it =
                |entry: &LateSkill| entry.target == one.target && entry.skill.digest == one.digest;
            let Some(index) = late.iter().position(is_it) else {
                continue;
            };
            let mut entry = late.swap_remove(index);
            if let Ok(agent) = machine.agent().await {
                hide_all(agent, &mut entry, &one.containers).await;
            }
            self.put_back(late, machine, entry).await;
        }
    }

    /// Keeps a late skill, or unplugs it if no container has it.
    async fn put_back(&self, late: &mut Vec<LateSkill>, machine: &Machine, entry: LateSkill) {
        if !entry.containers.is_empty() {
            late.push(entry);
        } else if let Err(left) = self.let_go(machine, late, entry).await {
            log::warn!("clean up after a failed attach: {}", left.chain());
        }
        self.record_late(late);
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
        let target = entry.target.clone();
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
            match agent.hide(&id, source(&entry), &target).await {
                Ok(()) => {
                    entry.containers.remove(&id);
                    hidden.push(found.shown_name());
                }
                Err(error) => {
                    late.push(entry);
                    self.record_late(&late);
                    return Err(error.into());
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
    pub(super) fn running(&self) -> Vec<Arc<Container>> {
        let containers = self.lock();
        let running = containers.values().filter(|container| {
            !container.is_sandbox() && !matches!(container.init.state(), State::Stopped(_))
        });
        running.cloned().collect()
    }

    /// All running containers, or the one with this name or id.
    pub(super) fn chosen(&self, wanted: Option<&str>) -> Result<Vec<Arc<Container>>> {
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

/// Shows a skill in all of these containers, and returns the ids of those that did not have it. If
/// that fails, hides it again in those.
async fn show(
    agent: &Agent,
    entry: &mut LateSkill,
    chosen: &[Arc<Container>],
) -> Result<Vec<String>> {
    let place = skills::place(&entry.skill);
    let mut fresh: Vec<String> = Vec::new();
    for container in chosen {
        let id = &container.init.id.container;
        let own = (entry.target.clone(), place.clone());
        if container.skills.contains(&own) || entry.containers.contains(id) {
            continue;
        }
        if let Err(error) = agent.show(id, source(entry), &entry.target).await {
            hide_all(agent, entry, &fresh).await;
            return Err(error.into());
        }
        entry.containers.insert(id.clone());
        fresh.push(id.clone());
    }
    Ok(fresh)
}

/// Hides a skill in the containers with these ids. Failures are logged.
async fn hide_all(agent: &Agent, entry: &mut LateSkill, containers: &[String]) {
    for id in containers {
        match agent.hide(id, source(entry), &entry.target).await {
            Ok(()) => drop(entry.containers.remove(id)),
            Err(left) => {
                log::warn!(container = id; "clean up after a failed attach: {}", chain(&left));
            }
        }
    }
}

fn source(entry: &LateSkill) -> Source {
    Source::Disk(skills::serial(&entry.skill))
}

fn is_named(container: &Container, wanted: &str) -> bool {
    container.name.as_deref() == Some(wanted) || container.init.id.container == wanted
}

fn missing(what: &'static str, wanted: &SkillRef) -> Error {
    Error::NotFound {
        what,
        id: wanted.to_string(),
    }
}
