//! Does what the node's operator asks the shim for, such as `caisson claim` and `caisson skill
//! attach`, by way of [`caisson_node::control`].

use caisson_node::control::{Answer, Request};
use caisson_oci::annotations::{is_plain_name, SkillRef, SkillWish};

use super::base::Pod;
use crate::{
    error::{Error, Result},
    trace,
};

impl Pod {
    /// Does what the operator asks for.
    pub(super) async fn answer(&self, request: Request) -> Answer {
        let answer = self.handle(request).await;
        answer.unwrap_or_else(|error| Answer::Failed(error.chain()))
    }

    async fn handle(&self, request: Request) -> Result<Answer> {
        let shown = match request {
            Request::AttachSkill {
                skill,
                name,
                container,
            } => {
                if name.as_ref().is_some_and(|name| !is_plain_name(name)) {
                    return Err(Error::Request {
                        field: "name",
                        reason: "is no plain name".to_owned(),
                    });
                }
                let wish = SkillWish {
                    name,
                    skill: parse(&skill)?,
                };
                log::info!(skill, container:?; "attach skill");
                self.attach_skill(&wish, container.as_deref()).await?
            }
            Request::DetachSkill { skill, container } => {
                log::info!(skill, container:?; "detach skill");
                self.detach_skill(&parse(&skill)?, container.as_deref())
                    .await?
            }
            Request::ClaimPod(claim) => {
                log::info!("claim the pod");
                self.claim(&claim).await?
            }
            Request::Claim(_) => {
                return Err(Error::Request {
                    field: "claim",
                    reason: "this shim has a pod".to_owned(),
                })
            }
            Request::Egress => {
                let egress = self.machine(&self.id)?.egress()?;
                let (allows, denied) = egress.unwrap_or_default();
                return Ok(Answer::Egress {
                    allows: allows.to_string(),
                    denied,
                });
            }
            Request::Trace => return Ok(Answer::Trace(trace::stages())),
        };
        Ok(Answer::Done {
            target: shown.target,
            containers: shown.containers,
        })
    }
}

fn parse(skill: &str) -> Result<SkillRef> {
    SkillRef::parse(skill).ok_or_else(|| Error::Request {
        field: "skill",
        reason: "is not of the form sha256:HEX or SKILL@VERSION".to_owned(),
    })
}
