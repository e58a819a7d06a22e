//! Claims the pod: gives its running containers, once, what they were started without.
//!
//! ```text
//! check ─▶ plug in: home, skills, files ─▶ show in each container ─▶ `ready` appears ─▶ claimed
//!             └────────────── a failure undoes what was done, in reverse ──────────────┘
//! ```
//!
//! [`caisson_oci::claim`] says what a claim can have and where containers find it. A container that
//! is created later, such as one that the kubelet starts again, gets the same by
//! [`caisson_oci::Wishes::add_claim`].

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use caisson_node::{homes::HomeError, record, skills::Asker};
use caisson_oci::{
    claim::{self, Claim, Claimed},
    exec::Grants,
    home::Home,
    Wishes,
};
use caisson_protocol::{
    agent::{attach_request, detach_request, show_request::Source, File as GuestFile, Files},
    path::MEMORY,
};

use super::{
    base::Pod,
    late::{Attached, Shown},
    late_skill::LateSkill,
};
use crate::{
    agent::Agent,
    bundle::read_config,
    container::Container,
    error::{Error, Result},
    home_share,
    logger::stage,
    machine::Machine,
    plug::LateDevice,
};

/// A container that is there already.
struct Member {
    container: Arc<Container>,
    wishes: Wishes,
    /// What its processes will get.
    grants: Grants,
}

impl Member {
    fn id(&self) -> &str {
        &self.container.init.id.container
    }
}

/// What a claim has done so far.
#[derive(Default)]
struct Done {
    /// Whether the home may be mounted on the host.
    home: bool,
    device: Option<LateDevice>,
    skills: Vec<Attached>,
    /// The names of the files in the guest.
    files: Vec<&'static str>,
    /// The container's id, what is shown in it, and where.
    shown: Vec<(String, Source, PathBuf)>,
}

impl Pod {
    /// Gives the pod what the claim has. A failure leaves the pod as it was.
    ///
    /// # Errors
    /// The pod has been claimed, it has no running container, the policy refuses the claim, or
    /// something of it can't be had.
    pub(super) async fn claim(&self, claim: &Claim) -> Result<Shown> {
        let started = Instant::now();
        let _claiming = self.claiming.write().await;
        if let Some(claimed) = self.claimed.get() {
            if claim.token.is_some() && claim.token == claimed.token {
                return Ok(shown(&self.running()));
            }
            return Err(Error::State {
                operation: "claim",
                id: self.id.clone(),
                state: "claimed already",
            });
        }
        let mut late = self.late.lock().await;
        let machine = self.machine(&self.id)?;
        let agent = machine.agent().await?;
        let mut members = self.members()?;
        let [first, ..] = &members[..] else {
            return Err(Error::NotFound {
                what: "running container",
                id: "of the pod".to_owned(),
            });
        };
        let namespace = first.wishes.namespace(&self.namespace)?;
        let claimed = claim.check(&self.config.policy, &namespace, Path::new(MEMORY))?;
        for member in &mut members {
            member.grants.add(&claimed)?;
        }
        let mut done = Done::default();
        let given = async {
            let target = self.plug_home(&machine, &members, &claimed, &mut done);
            let targets = target.await?;
            let containers: Vec<_> = members.iter().map(|m| m.container.clone()).collect();
            let asker = Asker::Namespace(&namespace);
            done.skills = self
                .attach_to(&mut late, &machine, &containers, &claimed.skills, asker)
                .await?;
            put(agent, claim::FILES, claim.files(), &mut done).await?;
            if !claim.secret_fds.is_empty() {
                put(agent, claim::DESCRIPTORS, claim.hidden_files(), &mut done).await?;
            }
            for (member, home) in members.iter().zip(targets) {
                let share = Source::Share(home_share::TAG.to_owned());
                let files = Source::Files(claim::FILES.to_owned());
                let home = home.map(|target| (share, target));
                for (source, target) in home.into_iter().chain([(files, claim::FOLDER.into())]) {
                    // Before it is shown: a guest that does not answer may show it yet.
                    let id = member.id().to_owned();
                    done.shown.push((id, source.clone(), target.clone()));
                    agent.show(member.id(), source, &target).await?;
                }
            }
            let ready = claim::File {
                path: claim::READY.to_owned(),
                content: Vec::new(),
            };
            put(agent, claim::FILES, vec![ready], &mut done).await
        };
        let given = given.await;
        if let Err(error) = given {
            self.undo(&mut late, &machine, agent, done).await;
            return Err(error);
        }
        if let Some(device) = done.device {
            machine.keep(device);
        }
        for member in &mut members {
            member
                .container
                .set_grants(std::mem::take(&mut member.grants));
        }
        self.record(|record| record.claim = Some(recorded(claim, &claimed)));
        // Nobody else sets it while the lock is held.
        let _ = self.claimed.set(claimed);
        stage(&self.id, "claim", started);
        let containers: Vec<_> = members.into_iter().map(|m| m.container).collect();
        Ok(shown(&containers))
    }

    /// The containers that run or are about to.
    fn members(&self) -> Result<Vec<Member>> {
        let containers = self.running().into_iter();
        let members = containers.map(|container| -> Result<Member> {
            let json = read_config(&container.bundle)?;
            Ok(Member {
                wishes: Wishes::parse(&json, &self.config.policy, &self.namespace)?,
                grants: container.grants(),
                container,
            })
        });
        members.collect()
    }

    /// Plugs in the home, if the claim has one. Returns its place in each container.
    async fn plug_home(
        &self,
        machine: &Machine,
        members: &[Member],
        claimed: &Claimed,
        done: &mut Done,
    ) -> Result<Vec<Option<PathBuf>>> {
        let (Some(home), [first, ..]) = (&claimed.home, members) else {
            return Ok(members.iter().map(|_| None).collect());
        };
        let mut targets = Vec::new();
        for member in members {
            targets.push(Some(self.home_target(machine, home, member).await?));
        }
        if let Some(has) = self.home.kind().await {
            return Err(Error::LateHome(HomeError::Other {
                has: has.to_string(),
                asked: home.kind.to_string(),
            }));
        }
        done.home = true;
        let plug = self
            .pods_home()
            .plug(&self.config, home, &first.wishes, first.id());
        let plug = plug.await.map_err(late_home)?;
        done.device = machine.plug_late(plug).await?;
        Ok(targets)
    }

    async fn home_target(
        &self,
        machine: &Machine,
        home: &Home,
        member: &Member,
    ) -> Result<PathBuf> {
        member.wishes.check_home()?;
        let root = machine.share.rootfs(member.id());
        let target = home_share::target(home, &member.wishes, &root);
        target.await.map_err(late_home)
    }

    /// Undoes what a claim has done. Failures are logged.
    async fn undo(&self, late: &mut Vec<LateSkill>, machine: &Machine, agent: &Agent, done: Done) {
        let warn = |error: Error| log::warn!("clean up after a failed claim: {}", error.chain());
        for (id, source, target) in done.shown.into_iter().rev() {
            if let Err(error) = agent.hide(&id, source, &target).await {
                warn(error.into());
            }
        }
        for name in done.files.into_iter().rev() {
            let files = detach_request::Device::Files(Files {
                name: name.to_owned(),
                ..Default::default()
            });
            if let Err(error) = agent.detach(files).await {
                warn(error.into());
            }
        }
        self.detach_from(late, machine, done.skills).await;
        if let Some(device) = &done.device {
            if let Err(error) = machine.unplug(device).await {
                warn(error);
            }
        }
        if done.home {
            let released = self.home.release(&self.config, &self.id);
            if let Err(error) = released.await {
                warn(Error::LateHome(error));
            }
        }
    }
}

/// Adds files to those of this name in the guest.
async fn put(
    agent: &Agent,
    name: &'static str,
    files: Vec<claim::File>,
    done: &mut Done,
) -> Result<()> {
    let files = files.into_iter().map(|file| GuestFile {
        path: file.path,
        content: file.content,
        ..Default::default()
    });
    if !done.files.contains(&name) {
        done.files.push(name);
    }
    let files = attach_request::Device::Files(Files {
        name: name.to_owned(),
        files: files.collect(),
        ..Default::default()
    });
    Ok(agent.attach(files).await?)
}

fn shown(containers: &[Arc<Container>]) -> Shown {
    Shown {
        target: claim::FOLDER.into(),
        containers: containers.iter().map(|c| c.shown_name()).collect(),
    }
}

/// Says of an error of a home that no annotation asked for it.
fn late_home(error: Error) -> Error {
    match error {
        Error::Home(error) => Error::LateHome(error),
        other => other,
    }
}

/// Returns what the pod's record has of a claim: names, and no values.
fn recorded(claim: &Claim, claimed: &Claimed) -> record::Claim {
    let skills = claimed.skills.iter();
    let secrets = claim.secrets.keys().chain(claim.secret_fds.keys());
    record::Claim {
        skills: skills.map(|wish| wish.skill.to_string()).collect(),
        home: claimed.home.as_ref().map(|home| home.kind.to_string()),
        variables: claim.env.keys().cloned().collect(),
        secrets: secrets.cloned().collect(),
    }
}
