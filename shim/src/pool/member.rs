//! Lives as a member of the pool, until a pod claims it.

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use caisson_node::{
    accelerator, config,
    control::{self, Answer, Claim, Request},
    host::error::OnFile,
    pool,
    state::PodDir,
    templates,
};
use caisson_oci::NodeConfig;
use caisson_vmm::Vmm;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::birth::{is_full, leave};
use crate::{
    error::{Error, Result},
    machine::{Bare, Site},
    rehearsal::rehearse,
    share::Share,
};

/// How often a member looks whether the node still wants it.
const LOOK: Duration = Duration::from_secs(30);

/// The time limit for a birth. A guest that boots has `vm.boot_timeout_secs` of it.
const BIRTH: Duration = Duration::from_secs(120);
/// How long no pod may have come or gone when a VM is made.
const QUIET: Duration = Duration::from_secs(1);
/// How long that is waited for.
const NOT_QUIET: Duration = Duration::from_secs(10);
/// How long the agent of a machine that has nothing to do may take to answer.
const ANSWER: Duration = Duration::from_millis(500);

/// A member that was claimed.
pub struct Claimed {
    pub claim: Claim,
    pub site: Site,
    /// Takes the answer for the process that asked.
    pub answer: oneshot::Sender<Answer>,
}

/// Makes a VM for a pod to come and waits for the pod. `None` if the VM has ended or the node does
/// not want it any more; nothing is left of it then.
pub async fn member(id: &str, born: impl FnOnce() -> Result<()>) -> Result<Option<Claimed>> {
    let config = config::load()?;
    let build = pool::build(&config);
    let Some(birth) = pool::begin_birth(&config.state_dir)? else {
        return Ok(None);
    };
    pool::remove_dead(&config.state_dir);
    if is_full(&config) {
        return Ok(None);
    }
    let vmm = accelerator::qemu(&config);
    let site = match timeout(BIRTH, site(&config, id, &vmm)).await {
        Ok(site) => site?,
        Err(_) => {
            let late = io::ErrorKind::TimedOut.into();
            return Err(Error::file("make a VM for", "the pool")(late));
        }
    };
    let listener = control::listen(site.dir.path())?;
    drop(birth);
    born()?;
    leave(&config);
    let (claims, mut claimed) = mpsc::channel::<Ask>(1);
    let mut look = tokio::time::interval(LOOK);
    loop {
        let mut ended = site.bare.as_ref().map(Bare::vm);
        let ended = async {
            match &mut ended {
                Some(vm) => drop(vm.ended().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            connection = listener.accept() => {
                let (stream, _) = connection.map_err(Error::file("listen on", control::SOCKET))?;
                let claims = claims.clone();
                tokio::spawn(control::answer(stream, |request| handle(claims, request)));
            }
            Some((claim, answer)) = claimed.recv() => {
                if claim.build == build && claim.fits != build {
                    let why = "the pod's preset needs another VM".to_owned();
                    let _ = answer.send(Answer::Failed(why));
                    continue;
                }
                if let Some(reason) = unfit(&site, &claim, &build).await {
                    let _ = answer.send(Answer::Failed(reason.to_owned()));
                    return Ok(None);
                }
                remove_socket(site.dir.path())?;
                return Ok(Some(Claimed { claim, site, answer }));
            }
            _ = look.tick() => if !is_wanted(id, &build) {
                return Ok(None);
            },
            () = ended => return Ok(None),
        }
    }
}

/// Returns why the member can't serve a pod, nor any other.
async fn unfit(site: &Site, claim: &Claim, build: &str) -> Option<&'static str> {
    if claim.build != build {
        return Some("this member is stale");
    }
    match &site.bare {
        Some(bare) if bare.answers(ANSWER).await => None,
        _ => Some("the agent does not answer"),
    }
}

/// Waits until no pod has come or gone for a while: pods often start many at once, and a VM that is
/// made beside them takes the cpus that they need.
async fn quiet(config: &NodeConfig) {
    let started = Instant::now();
    while started.elapsed() < NOT_QUIET {
        // The folder has an entry for each pod.
        let changed = std::fs::metadata(&config.state_dir).and_then(|folder| folder.modified());
        let age = changed.map_or(QUIET, |at| at.elapsed().unwrap_or_default());
        match QUIET.checked_sub(age) {
            Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
            _ => return,
        }
    }
}

/// Makes the place of a VM on the host, and the VM.
async fn site(config: &NodeConfig, id: &str, vmm: &dyn Vmm) -> Result<Site> {
    quiet(config).await;
    let mut dir = PodDir::create(config, id)?;
    dir.use_birthplace(&Path::new(pool::CGROUP).join(id), pool::MEMBER_LIMIT)?;
    let share = Share::create(dir.path())?;
    let mut bare = Bare::start(vmm, config, id, &dir, &share, templates::SIZE).await?;
    dir.record(&bare.vm().pids().await?)?;
    let agent = bare.greet().await?;
    bare.plug_the_rest(&agent).await;
    rehearse(config, dir.path(), &share, &bare.vm(), &agent).await?;
    bare.is_proven();
    Ok(Site {
        dir,
        share,
        bare: Some(bare),
    })
}

type Ask = (Claim, oneshot::Sender<Answer>);

async fn handle(claims: mpsc::Sender<Ask>, request: Request) -> Answer {
    let refused = |why: &str| Answer::Failed(why.to_owned());
    let Request::Claim(claim) = request else {
        return refused("this is a member of the pool and has no pod yet");
    };
    let (answer, answered) = oneshot::channel();
    match claims.send((claim, answer)).await {
        Ok(()) => answered
            .await
            .unwrap_or_else(|_| refused("another pod has it")),
        Err(_) => refused("another pod has it"),
    }
}

/// Whether the node still wants a member with this build.
fn is_wanted(id: &str, build: &str) -> bool {
    let Ok(config) = config::load() else {
        // Somebody is just changing it.
        return true;
    };
    let members = pool::members(&config.state_dir);
    let rank = members.iter().position(|member| member == id);
    rank.is_some_and(|rank| rank < config.pool.size as usize) && pool::build(&config) == build
}

fn remove_socket(dir: &Path) -> Result<()> {
    let path = dir.join(control::SOCKET);
    std::fs::remove_file(&path).map_err(Error::file("remove", path))
}
