//! Late binding: what a pod whose containers already run gets when it is claimed.
//!
//! A pod can be started before anybody knows whom it is for. `caisson claim` then gives it, once,
//! what its annotations would have given it (skills, a home), variables and secrets. A claim is
//! held to the node's policy as an annotation of that pod is.
//!
//! | what | where a process of a container finds it |
//! |---|---|
//! | skills | `/opt/skills/NAME` |
//! | home | the home of the container's user, or `caisson.dev/home-path` |
//! | variables | [`FOLDER`]`/env`, lines for a shell; the environment of a process that starts later |
//! | secrets | [`FOLDER`]`/secrets/NAME` |
//! | secrets by descriptor | the open descriptor whose number its variable has, of a process that starts later |
//!
//! [`FOLDER`]`/`[`READY`] appears last, in all containers at once.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
};

use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};

use crate::{
    annotations::{Annotations, SkillWish, HOME, HOME_PATH, HOME_SIZE, SKILLS},
    claim_annotation::KEY,
    error::shorten,
    home::Home,
    secrets::{self, Descriptor},
    Error, Policy, Result,
};

/// The folder in the containers with the files of the claim.
pub const FOLDER: &str = "/run/caisson/claim";
/// The file in [`FOLDER`] that says that everything is there.
pub const READY: &str = "ready";
/// The name of the files that containers see.
pub const FILES: &str = "claim";
/// The name of the files of which processes get open descriptors, and which no container sees.
pub const DESCRIPTORS: &str = "claim-descriptors";

/// The most that a claim's variables and secrets have together, in bytes. A Secret of Kubernetes
/// has as much (`MaxSecretSize`).
pub const MAX_BYTES: usize = 1 << 20;
/// The longest `NAME=VALUE` that a program can be executed with, in bytes with its end (execve(2),
/// `MAX_ARG_STRLEN`).
const MAX_VARIABLE: usize = 128 << 10;
/// The annotations that a claim can have.
const ANNOTATIONS: [&str; 4] = [SKILLS, HOME, HOME_SIZE, HOME_PATH];

/// What a claim asks for, not checked yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Claim {
    /// Some of `caisson.dev/skills`, `home`, `home-size` and `home-path`.
    pub annotations: BTreeMap<String, String>,
    /// Variables by their names.
    pub env: BTreeMap<String, String>,
    /// Secrets by the names of their files.
    pub secrets: BTreeMap<String, Secret>,
    /// Secrets that processes get open, by the variables that have the descriptors' numbers.
    pub secret_fds: BTreeMap<String, Secret>,
    /// Names the request, for who may have to ask again: the same one a second time is a success.
    pub token: Option<String>,
}

/// The bytes of a secret, which no log shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(#[serde(with = "hex::serde")] pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What a pod has been given by a claim, for the containers and processes that it gets later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claimed {
    pub skills: Vec<SkillWish>,
    pub home: Option<Home>,
    pub env: BTreeMap<String, String>,
    /// Files that every later process has open.
    pub descriptors: Vec<Descriptor>,
    /// The request's name, if it has one.
    pub token: Option<String>,
}

/// A file that the guest makes for a claim.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// A relative path of plain names.
    pub path: String,
    pub content: Vec<u8>,
}

impl Claim {
    /// Checks everything against the policy for the pod's namespace. `memory` is the guest's folder
    /// of file systems in memory.
    ///
    /// # Errors
    /// The namespace may not use something, or a name or a value can't be.
    pub fn check(&self, policy: &Policy, namespace: &str, memory: &Path) -> Result<Claimed> {
        let given = self.annotations.clone().into_iter();
        let given: HashMap<_, _> = given.collect();
        let claimable = |key: &&String| !ANNOTATIONS.contains(&key.as_str());
        if let Some(key) = self.annotations.keys().find(claimable) {
            return Err(Error::Annotation {
                key: shorten(key),
                reason: format!(
                    "can't be claimed; what can be is {}",
                    ANNOTATIONS.join(", ")
                ),
            });
        }
        let itself = HashMap::from([(KEY.to_owned(), String::new())]);
        policy.check_annotations(&itself, namespace)?;
        policy.check_annotations(&given, namespace)?;
        let annotations = Annotations::parse(&given)?;
        self.check_env()?;
        self.check_secrets()?;
        let descriptors = self.secret_fds.keys().map(|variable| Descriptor {
            directory: memory.join(DESCRIPTORS),
            name: variable.clone(),
            origin: format!("claim/{variable}"),
            variable: variable.clone(),
        });
        Ok(Claimed {
            skills: annotations.skills,
            home: annotations.home,
            env: self.env.clone(),
            descriptors: descriptors.collect(),
            token: self.token.clone(),
        })
    }

    fn check_env(&self) -> Result<()> {
        for (name, value) in &self.env {
            let reason = match name {
                _ if !secrets::is_variable(name) => "is not the name of a variable",
                _ if value.contains('\0') => "has a NUL, which no variable can have",
                _ if name.len() + value.len() + 2 > MAX_VARIABLE => {
                    "is longer than a variable can be (128 KiB)"
                }
                _ => continue,
            };
            return Err(refuse(&format!("variable {:?}", shorten(name)), reason));
        }
        Ok(())
    }

    fn check_secrets(&self) -> Result<()> {
        if let Some(name) = self.secrets.keys().find(|name| !secrets::is_key(name)) {
            let what = format!("secret {:?}", shorten(name));
            return Err(refuse(&what, "is not the name of a secret's key"));
        }
        for name in self.secret_fds.keys() {
            let what = format!("secret {:?}", shorten(name));
            if !secrets::is_variable(name) {
                return Err(refuse(&what, "is not the name of a variable"));
            }
            if self.env.contains_key(name) {
                return Err(refuse(&what, "is a variable of the claim, too"));
            }
        }
        let secrets = self.secrets.values().chain(self.secret_fds.values());
        let secrets: usize = secrets.map(|secret| secret.0.len()).sum();
        let env: usize = self.env.iter().map(|(k, v)| k.len() + v.len()).sum();
        match secrets + env {
            0..=MAX_BYTES => Ok(()),
            bytes => {
                let reason = format!("have {bytes} bytes, at most {MAX_BYTES} are possible");
                Err(refuse("the variables and secrets together", &reason))
            }
        }
    }

    /// Returns the files that containers see below [`FOLDER`], without [`READY`].
    pub fn files(&self) -> Vec<File> {
        let secrets = self.secrets.iter().map(|(name, secret)| File {
            path: format!("secrets/{name}"),
            content: secret.0.clone(),
        });
        let env = self.env.iter().map(|(name, value)| {
            // A quote ends the quoted text, is given by itself, and begins the text again.
            format!("{name}='{}'\n", value.replace('\'', r"'\''"))
        });
        let env = File {
            path: "env".to_owned(),
            content: env.collect::<String>().into_bytes(),
        };
        [env].into_iter().chain(secrets).collect()
    }

    /// Returns the files that no container sees.
    pub fn hidden_files(&self) -> Vec<File> {
        let files = self.secret_fds.iter().map(|(name, secret)| File {
            path: name.clone(),
            content: secret.0.clone(),
        });
        files.collect()
    }
}

impl Claimed {
    /// Returns the guest's place of the files that containers see.
    pub fn place(memory: &Path) -> PathBuf {
        memory.join(FILES)
    }

    /// Adds what the annotations of a container that is created later would have.
    pub(crate) fn add_to(&self, annotations: &mut Annotations) {
        for wish in &self.skills {
            if !annotations.skills.iter().any(|own| own.skill == wish.skill) {
                annotations.skills.push(wish.clone());
            }
        }
        if self.home.is_some() {
            annotations.home.clone_from(&self.home);
        }
    }
}

/// Sets variables of a process, in place of those that it has of the same names.
pub(crate) fn set_environment(process: &mut Process, variables: &BTreeMap<String, String>) {
    if variables.is_empty() {
        return;
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.retain(|entry| !variables.contains_key(entry.split('=').next().unwrap_or_default()));
    env.extend(
        variables
            .iter()
            .map(|(name, value)| format!("{name}={value}")),
    );
    process.set_env(Some(env));
}

fn refuse(what: &str, reason: &str) -> Error {
    Error::Claim {
        what: what.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeConfig;
    use serde_json::json;

    fn with_env(name: &str, value: &str) -> Claim {
        Claim {
            env: [(name.to_owned(), value.to_owned())].into(),
            ..Claim::default()
        }
    }

    fn check(claim: &Claim) -> Result<Claimed> {
        claim.check(&Policy::default(), "default", Path::new("/m"))
    }

    fn refusal(claim: &Claim) -> String {
        check(claim).unwrap_err().to_string()
    }

    fn secret(text: &str) -> Secret {
        Secret(text.as_bytes().to_vec())
    }

    #[test]
    fn claim_has_what_annotations_would_have() {
        let annotations = [(SKILLS, "pdf@1"), (HOME, "persistent/anna")];
        let claim = Claim {
            annotations: annotations
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..Claim::default()
        };
        let claimed = check(&claim).unwrap();
        assert_eq!(claimed.skills[0].skill.to_string(), "pdf@1");
        assert_eq!(claimed.home.unwrap().kind.to_string(), "persistent/anna");
    }

    #[test]
    fn annotation_that_makes_a_vm_can_not_be_claimed() {
        for key in ["caisson.dev/devices", "caisson.dev/egress", "x"] {
            let claim = Claim {
                annotations: [(key.to_owned(), "fuse".to_owned())].into(),
                ..Claim::default()
            };
            let error = refusal(&claim);
            assert!(
                error.contains(key) && error.contains("can't be claimed"),
                "{error}"
            );
        }
    }

    #[test]
    fn policy_holds_for_claims_and_for_what_they_ask() {
        for key in [KEY, HOME] {
            let text = format!("[policy.annotations]\n{key:?} = ['team']");
            let node = NodeConfig::parse(&[("c".to_owned(), text)]).unwrap();
            let claim = Claim {
                annotations: [(HOME.to_owned(), "ephemeral".to_owned())].into(),
                ..Claim::default()
            };
            claim.check(&node.policy, "team", Path::new("/m")).unwrap();
            let error = claim.check(&node.policy, "other", Path::new("/m"));
            let error = error.unwrap_err().to_string();
            let expected = format!("annotation {key}: is not allowed in the namespace other");
            assert!(error.contains(&expected), "{error}");
        }
    }

    #[test]
    fn variable_that_cannot_be_is_refused_by_its_name() {
        for name in ["", "1A", "A-B", "A=B", "A\n"] {
            let error = refusal(&with_env(name, "x"));
            assert!(error.contains("is not the name of a variable"), "{error}");
        }
        assert!(refusal(&with_env("A", "x\0y")).contains("NUL"));
        let long = "x".repeat(MAX_VARIABLE - 3);
        check(&with_env("A", &long)).unwrap();
        assert!(refusal(&with_env("AB", &long)).contains("128 KiB"));
    }

    #[test]
    fn secret_that_could_leave_its_folder_is_refused() {
        for name in ["", "..", "../x", "a/b", "..data"] {
            let claim = Claim {
                secrets: [(name.to_owned(), secret("s"))].into(),
                ..Claim::default()
            };
            assert!(refusal(&claim).contains("secret's key"), "{name}");
        }
    }

    #[test]
    fn more_than_a_secret_of_kubernetes_has_is_refused() {
        let half = secret(&"x".repeat(MAX_BYTES / 2));
        let mut claim = Claim {
            secrets: [("a".to_owned(), half.clone())].into(),
            secret_fds: [("B".to_owned(), half)].into(),
            ..Claim::default()
        };
        check(&claim).unwrap();
        claim.env.insert("C".to_owned(), String::new());
        assert!(refusal(&claim).contains("at most 1048576"));
    }

    #[test]
    fn variable_with_quotes_and_lines_is_read_by_a_shell_as_it_is() {
        let value = "it's\n$HOME `x`";
        let [env] = &with_env("A", value).files()[..] else {
            panic!("one file")
        };
        let script = format!("{}printf %s \"$A\"", String::from_utf8_lossy(&env.content));
        let shell = std::process::Command::new("sh")
            .args(["-c", &script])
            .output();
        assert_eq!(String::from_utf8_lossy(&shell.unwrap().stdout), value);
    }

    #[test]
    fn variable_of_a_claim_takes_the_place_of_the_containers() {
        let process = json!({"cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["A=1", "AB=2"]});
        let mut process: Process = serde_json::from_value(process).unwrap();
        set_environment(&mut process, &with_env("A", "3").env);
        assert_eq!(process.env().clone().unwrap(), ["AB=2", "A=3"]);
    }

    #[test]
    fn secret_is_not_shown_and_comes_back_from_json() {
        let claim = Claim {
            secrets: [("a".to_owned(), secret("hunter2"))].into(),
            ..Claim::default()
        };
        assert!(!format!("{claim:?}").contains("hunter2"));
        let json = serde_json::to_string(&claim).unwrap();
        assert_eq!(serde_json::from_str::<Claim>(&json).unwrap(), claim);
    }
}
