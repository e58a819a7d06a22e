//! Decides who may read the metrics: whom the API server knows by their token (TokenReview) and
//! allows to get the path (SubjectAccessReview), as for the kubelet's own metrics.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{api::PostParams, Api, Client};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// The path of the metrics.
pub const PATH: &str = "/metrics";
/// How long a verdict holds. Whoever loses the right loses the metrics after this time.
const KEPT: Duration = Duration::from_secs(60);
/// The most verdicts that are kept.
const MOST_KEPT: usize = 256;
/// The longest token that is passed on, in bytes. Those of service accounts have some 1,000.
const LONGEST: usize = 16 << 10;
/// The time limit for both questions.
const LIMIT: Duration = Duration::from_secs(5);

/// Whether somebody may read the metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// The API server does not know the token.
    Unknown,
    /// It knows this user, who may not.
    Denied(String),
}

/// Asks the API server, and remembers the answers for a while.
pub struct Access {
    tokens: Api<TokenReview>,
    rights: Api<SubjectAccessReview>,
    known: Mutex<Known>,
}

impl Access {
    pub fn new(client: Client) -> Self {
        Self {
            tokens: Api::all(client.clone()),
            rights: Api::all(client),
            known: Mutex::default(),
        }
    }

    /// Returns the verdict on the owner of a token.
    ///
    /// # Errors
    /// If the API server does not answer in time, or refuses the questions.
    pub async fn check(&self, token: &str) -> Result<Verdict> {
        if token.len() > LONGEST {
            return Ok(Verdict::Unknown);
        }
        let key = Sha256::digest(token).into();
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verdict) = known().get(&key) {
            return Ok(verdict);
        }
        let asked = tokio::time::timeout(LIMIT, self.ask(token)).await;
        let verdict = asked.with_context(|| format!("no answer within {LIMIT:?}"))??;
        known().keep(key, verdict.clone());
        Ok(verdict)
    }

    async fn ask(&self, token: &str) -> Result<Verdict> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: None,
            },
            ..Default::default()
        };
        let params = PostParams::default();
        let reviewed = self.tokens.create(&params, &review).await;
        let status = reviewed.context("create a TokenReview")?.status;
        let status = status.unwrap_or_default();
        let Some(user) = status.user.filter(|_| status.authenticated == Some(true)) else {
            return Ok(Verdict::Unknown);
        };
        let name = user.username.clone().unwrap_or_default();
        let reviewed = self.rights.create(&params, &question(user)).await;
        let status = reviewed.context("create a SubjectAccessReview")?.status;
        Ok(match status.is_some_and(|status| status.allowed) {
            true => Verdict::Allowed,
            false => Verdict::Denied(name),
        })
    }
}

/// Asks whether a user may get the metrics.
fn question(user: UserInfo) -> SubjectAccessReview {
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: user.username,
            uid: user.uid,
            groups: user.groups,
            extra: user.extra,
            non_resource_attributes: Some(NonResourceAttributes {
                path: Some(PATH.to_owned()),
                verb: Some("get".to_owned()),
            }),
            ..Default::default()
        },
        ..Default::default()
    }
}

/// The verdicts on tokens, by the tokens' hash.
#[derive(Default)]
struct Known(HashMap<[u8; 32], (Instant, Verdict)>);

impl Known {
    fn get(&self, key: &[u8; 32]) -> Option<Verdict> {
        let (since, verdict) = self.0.get(key)?;
        (since.elapsed() < KEPT).then(|| verdict.clone())
    }

    fn keep(&mut self, key: [u8; 32], verdict: Verdict) {
        if self.0.len() >= MOST_KEPT {
            self.0.retain(|_, (since, _)| since.elapsed() < KEPT);
        }
        // Somebody tries one token after the other.
        if self.0.len() >= MOST_KEPT {
            self.0.clear();
        }
        self.0.insert(key, (Instant::now(), verdict));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn verdict_holds_for_a_minute() {
        let mut known = Known::default();
        known.keep([1; 32], Verdict::Allowed);
        tokio::time::advance(KEPT - Duration::from_secs(1)).await;
        assert_eq!(known.get(&[1; 32]), Some(Verdict::Allowed));
        assert_eq!(known.get(&[2; 32]), None);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(known.get(&[1; 32]), None);
    }

    #[tokio::test]
    async fn many_tokens_take_no_more_than_so_much_memory() {
        let mut known = Known::default();
        for number in 0..10_000_u32 {
            let key = Sha256::digest(number.to_le_bytes()).into();
            known.keep(key, Verdict::Unknown);
        }
        assert!(known.0.len() <= MOST_KEPT);
    }

    #[test]
    fn question_is_for_all_that_the_user_is() {
        let user = UserInfo {
            username: Some("prometheus".to_owned()),
            groups: Some(vec!["scrapers".to_owned()]),
            ..Default::default()
        };
        let spec = question(user).spec;
        assert_eq!(spec.user.as_deref(), Some("prometheus"));
        assert_eq!(spec.groups, Some(vec!["scrapers".to_owned()]));
        let asked = spec.non_resource_attributes.unwrap();
        assert_eq!(asked.path.as_deref(), Some("/metrics"));
        assert_eq!(asked.verb.as_deref(), Some("get"));
    }
}
