//! `[policy]`: which namespaces may use an annotation, a skill or a source of skills. The rest is
//! refused.
//!
//! ```toml
//! [policy.annotations]
//! "caisson.dev/devices=fuse" = ["ci", "build-*"]
//!
//! [policy.skills]
//! "internal-*" = ["team-a"]
//!
//! [policy.sources]
//! company = ["team-a", "team-b"]
//! ```
//!
//! | table | names | default |
//! |---|---|---|
//! | `annotations` | [`annotations::KEYS`]; `caisson.dev/devices=NAME` for one device | see below |
//! | `skills` | `NAME`, `NAME@VERSION`, `sha256:DIGEST` | `"*" = ["*"]` |
//! | `sources` | `NAME` of `[skills.sources.NAME]` | `"*" = []` |
//!
//! Two lists of namespaces are for pods as they are:
//!
//! - `namespaces`: those that may have pods at all. It serves a preset ([`crate::presets`]), since
//!   every pod can name every RuntimeClass.
//! - `privileges`: those whose containers may be privileged, or have capabilities that containerd
//!   does not give to every container ([`crate::privileges`]).
//!
//! A container of a pod is in a namespace of Kubernetes, any other in one of containerd's. `*`
//! stands for any text in a namespace and in the name of a skill or source. If several names match,
//! the most specific one decides: a name without `*` before one with it, then the longer. Drop-ins
//! and the defaults are merged name by name.
//!
//! By default every namespace may use all annotations but `caisson.dev/devices`, since a device
//! comes with a capability that Pod Security does not see. Skills that the operator has put into
//! the node's store are for all namespaces. Sources are for none, since they are asked with the
//! node's credentials for what a pod names.

use std::collections::{BTreeMap, HashMap};

use glob::Pattern;
use serde::{Deserialize, Serialize};

use crate::{
    annotations, error::shorten, guest_devices::GuestDevice, names::is_sha256, Error, Result,
};

/// Names, each with the namespaces that may use what it names.
type Table = BTreeMap<String, Vec<String>>;

/// The `[policy]` of a node. See the module's table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "Given")]
pub struct Policy {
    namespaces: Vec<String>,
    privileges: Vec<String>,
    annotations: Table,
    skills: Table,
    sources: Table,
}

/// The policy as the files give it, which is merged over the defaults.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Given {
    namespaces: Option<Vec<String>>,
    privileges: Option<Vec<String>>,
    annotations: Table,
    skills: Table,
    sources: Table,
}

/// The error that names which namespace may not use something, and what would allow it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not allowed in the namespace {namespace}; \
     {entry} of the node's configuration lists the namespaces where it is"
)]
pub struct Denied {
    namespace: String,
    /// The name and its table.
    entry: String,
}

impl Denied {
    fn new(namespace: &str, table: &str, name: &str) -> Self {
        Self {
            namespace: shorten(namespace),
            entry: format!("{name:?} in [{table}]"),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        let every = || vec!["*".to_owned()];
        let annotations = annotations::KEYS.iter().map(|&key| {
            let nobody = key == annotations::DEVICES;
            (key.to_owned(), if nobody { Vec::new() } else { every() })
        });
        Self {
            namespaces: every(),
            privileges: every(),
            annotations: annotations.collect(),
            skills: [("*".to_owned(), every())].into(),
            sources: [("*".to_owned(), Vec::new())].into(),
        }
    }
}

impl From<Given> for Policy {
    fn from(given: Given) -> Self {
        let mut policy = Self::default();
        policy.namespaces = given.namespaces.unwrap_or(policy.namespaces);
        policy.privileges = given.privileges.unwrap_or(policy.privileges);
        policy.annotations.extend(given.annotations);
        policy.skills.extend(given.skills);
        policy.sources.extend(given.sources);
        policy
    }
}

impl Policy {
    /// Refuses names and patterns that can never match.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |key, reason| Err(Error::ConfigValue { key, reason });
        for name in self.annotations.keys() {
            let (key, device) = match name.split_once('=') {
                Some((key, device)) => (key, Some(device)),
                None => (name.as_str(), None),
            };
            if !annotations::KEYS.contains(&key) {
                let known = annotations::KEYS.join(", ");
                let reason = format!("{:?} is none of {known}", shorten(name));
                return refuse("policy.annotations", reason);
            }
            let known =
                |device| key == annotations::DEVICES && GuestDevice::parse(device).is_some();
            if device.is_some_and(|device| !known(device)) {
                let reason = format!(
                    "{:?} is not {}= and one of {}",
                    shorten(name),
                    annotations::DEVICES,
                    GuestDevice::NAMES
                );
                return refuse("policy.annotations", reason);
            }
        }
        for name in self.skills.keys() {
            let digest = name.strip_prefix("sha256:");
            if digest.is_some_and(|digest| !is_sha256(digest)) {
                let reason = format!("{:?} is not a whole digest", shorten(name));
                return refuse("policy.skills", reason);
            }
        }
        for (key, list) in [
            ("policy.namespaces", &self.namespaces),
            ("policy.privileges", &self.privileges),
        ] {
            check_patterns(key, list)?;
        }
        for (key, table, patterns) in [
            ("policy.annotations", &self.annotations, false),
            ("policy.skills", &self.skills, true),
            ("policy.sources", &self.sources, true),
        ] {
            let names = table.keys().filter(|_| patterns);
            check_patterns(key, names.chain(table.values().flatten()))?;
        }
        Ok(())
    }

    /// Whether every namespace may have pods with any privileges.
    pub(crate) fn is_open(&self) -> bool {
        [&self.namespaces, &self.privileges].map(Vec::as_slice) == [["*"]; 2]
    }

    /// Refuses a pod of a namespace that may have none.
    pub(crate) fn check_namespace(&self, namespace: &str) -> Result<()> {
        list("namespaces", &self.namespaces, namespace).map_err(|denied| Error::Denied {
            what: "the pod".to_owned(),
            reason: denied.to_string(),
        })
    }

    /// Refuses privileges beyond the default in a namespace that may not have them.
    pub(crate) fn check_privileges(
        &self,
        (field, value): (&str, String),
        namespace: &str,
    ) -> Result<()> {
        list("privileges", &self.privileges, namespace).map_err(|denied| Error::Denied {
            what: format!("config.json: {field}: {value}"),
            reason: denied.to_string(),
        })
    }

    /// Refuses the first of Caisson's annotations that the namespace may not use. Unknown keys are
    /// left to [`crate::Annotations::parse`].
    pub fn check_annotations(
        &self,
        given: &HashMap<String, String>,
        namespace: &str,
    ) -> Result<()> {
        let mut given: Vec<_> = given.iter().collect();
        given.sort();
        for (key, value) in given {
            let Some(base) = annotations::base(key) else {
                continue;
            };
            let refuse = |item: &str, denied: Denied| Error::Annotation {
                key: shorten(key),
                reason: format!("{item}{denied}"),
            };
            if base != annotations::DEVICES {
                decide("annotations", &self.annotations, &[base], namespace)
                    .map_err(|denied| refuse("", denied))?;
                continue;
            }
            for device in value.split(',').map(str::trim) {
                let one = format!("{base}={device}");
                let names = [one.as_str(), base];
                decide("annotations", &self.annotations, &names, namespace).map_err(|_| {
                    let denied = Denied::new(namespace, "policy.annotations", &one);
                    refuse(&format!("{} ", shorten(device)), denied)
                })?;
            }
        }
        Ok(())
    }

    /// Checks whether a namespace may use a skill, as far as the given names of the skill tell.
    pub fn check_skill(
        &self,
        name: &str,
        version: Option<&str>,
        digest: Option<&str>,
        namespace: &str,
    ) -> std::result::Result<(), Denied> {
        let mut names = vec![name.to_owned()];
        names.extend(version.map(|version| format!("{name}@{version}")));
        names.extend(digest.map(|digest| format!("sha256:{digest}")));
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        decide("skills", &self.skills, &names, namespace)
    }

    /// Checks whether a namespace may use what a source has.
    pub fn check_source(&self, source: &str, namespace: &str) -> std::result::Result<(), Denied> {
        decide("sources", &self.sources, &[source], namespace)
            // Show the source's own name, which is what the operator would write.
            .map_err(|_| Denied::new(namespace, "policy.sources", source))
    }
}

/// Decides by the most specific entry for any of these names whether the namespace is allowed.
fn decide(
    table: &'static str,
    entries: &Table,
    names: &[&str],
    namespace: &str,
) -> std::result::Result<(), Denied> {
    let matching = entries.iter().filter(|(entry, _)| {
        let mut names = names.iter();
        names.any(|name| entry == name || matches(entry, name))
    });
    let specific = |entry: &str| (names.contains(&entry), entry.len());
    let decides = matching.max_by_key(|(entry, _)| specific(entry));
    let allowed = decides.is_some_and(|(_, namespaces)| {
        let mut namespaces = namespaces.iter();
        namespaces.any(|pattern| matches(pattern, namespace))
    });
    if allowed {
        return Ok(());
    }
    let name = decides.map_or(names[0], |(entry, _)| entry);
    Err(Denied::new(namespace, &format!("policy.{table}"), name))
}

/// Decides by a list whether the namespace is allowed.
fn list(key: &str, namespaces: &[String], namespace: &str) -> std::result::Result<(), Denied> {
    let mut patterns = namespaces.iter();
    match patterns.any(|pattern| matches(pattern, namespace)) {
        true => Ok(()),
        false => Err(Denied::new(namespace, "policy", key)),
    }
}

/// Refuses a pattern that can't be read.
fn check_patterns<'p>(
    key: &'static str,
    patterns: impl IntoIterator<Item = &'p String>,
) -> Result<()> {
    for pattern in patterns {
        if let Err(error) = Pattern::new(pattern) {
            let reason = format!("{:?}: {}", shorten(pattern), error.msg);
            return Err(Error::ConfigValue { key, reason });
        }
    }
    Ok(())
}

/// Matches a pattern that [`Policy::check`] has accepted; a pattern that can't be read matches
/// nothing.
fn matches(pattern: &str, text: &str) -> bool {
    Pattern::new(pattern).is_ok_and(|pattern| pattern.matches(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeConfig;

    fn policy(texts: &[&str]) -> Result<Policy> {
        let files = texts.iter().enumerate();
        let files = files.map(|(n, text)| (format!("{n}.toml"), (*text).to_owned()));
        Ok(NodeConfig::parse(&files.collect::<Vec<_>>())?.policy)
    }

    fn annotation(policy: &Policy, key: &str, value: &str, namespace: &str) -> Result<()> {
        let given = HashMap::from([(key.to_owned(), value.to_owned())]);
        policy.check_annotations(&given, namespace)
    }

    const DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000001";

    #[test]
    fn default_allows_every_annotation_but_devices() {
        let policy = Policy::default();
        for &key in annotations::KEYS {
            let allowed = annotation(&policy, key, "fuse", "a").is_ok();
            assert_eq!(allowed, key != annotations::DEVICES, "{key}");
        }
    }

    #[test]
    fn refusal_names_key_namespace_and_what_would_allow_it() {
        let error = annotation(&Policy::default(), annotations::DEVICES, "fuse", "ci");
        let error = error.unwrap_err().to_string();
        for part in [
            "annotation caisson.dev/devices: fuse is not allowed",
            "namespace ci",
            "\"caisson.dev/devices=fuse\" in [policy.annotations]",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn device_is_allowed_alone_and_only_where_it_is_said() {
        let text = "[policy.annotations]\n'caisson.dev/devices=fuse' = ['ci', 'build-*']";
        let policy = policy(&[text]).unwrap();
        let devices =
            |value, namespace| annotation(&policy, annotations::DEVICES, value, namespace);
        devices("fuse", "ci").unwrap();
        devices("fuse", "build-7").unwrap();
        devices("fuse", "cicd").unwrap_err();
        devices("fuse, tun", "ci").unwrap_err();
        devices("tun", "ci").unwrap_err();
    }

    #[test]
    fn device_of_its_own_goes_before_all_devices() {
        let text =
            "[policy.annotations]\n'caisson.dev/devices' = ['*']\n'caisson.dev/devices=tun' = []";
        let policy = policy(&[text]).unwrap();
        annotation(&policy, annotations::DEVICES, "fuse", "a").unwrap();
        annotation(&policy, annotations::DEVICES, "tun", "a").unwrap_err();
    }

    #[test]
    fn annotation_for_one_container_is_allowed_as_that_for_all() {
        let policy = policy(&["[policy.annotations]\n'caisson.dev/skills' = ['a']"]).unwrap();
        annotation(&policy, "caisson.dev/skills.web", "x@1", "a").unwrap();
        let error = annotation(&policy, "caisson.dev/skills.web", "x@1", "b").unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("annotation caisson.dev/skills.web:"),
            "{error}"
        );
        assert!(error.contains("\"caisson.dev/skills\" in"), "{error}");
    }

    #[test]
    fn drop_in_changes_its_names_only() {
        let policy = policy(&[
            "[policy.annotations]\n'caisson.dev/home' = ['a']\n'caisson.dev/devices' = ['a']",
            "[policy.annotations]\n'caisson.dev/home' = []",
        ])
        .unwrap();
        annotation(&policy, annotations::HOME, "ephemeral", "a").unwrap_err();
        annotation(&policy, annotations::DEVICES, "tun", "a").unwrap();
        annotation(&policy, annotations::HOME_SIZE, "1Gi", "a").unwrap();
    }

    #[test]
    fn skill_is_for_the_namespaces_of_its_most_specific_name() {
        let policy = policy(&[&format!(
            "[policy.skills]\n'internal-*' = ['a']\n'internal-docs' = ['b']\n\
             'internal-docs@2' = ['c']\n'sha256:{DIGEST}' = ['d']"
        )])
        .unwrap();
        let check = |name, version, digest, namespace| {
            policy.check_skill(name, version, digest, namespace).is_ok()
        };
        assert!(check("docx", Some("1"), None, "anybody"));
        assert!(check("internal-x", None, None, "a"));
        assert!(!check("internal-x", None, None, "b"));
        assert!(check("internal-docs", Some("1"), None, "b"));
        assert!(!check("internal-docs", Some("1"), None, "a"));
        assert!(check("internal-docs", Some("2"), None, "c"));
        assert!(!check("internal-docs", Some("2"), None, "b"));
        assert!(check("internal-docs", Some("2"), Some(DIGEST), "d"));
        assert!(!check("internal-docs", Some("2"), Some(DIGEST), "c"));
    }

    #[test]
    fn refused_skill_is_told_by_the_name_that_decides() {
        let policy = policy(&["[policy.skills]\n'docx*' = ['a']"]).unwrap();
        let denied = policy.check_skill("docx", Some("1"), None, "b");
        let text = denied.unwrap_err().to_string();
        assert!(
            text.contains("namespace b; \"docx*\" in [policy.skills]"),
            "{text}"
        );
    }

    #[test]
    fn source_is_for_nobody_unless_said() {
        let policy = policy(&["[policy.sources]\ncompany = ['a']"]).unwrap();
        policy.check_source("company", "a").unwrap();
        policy.check_source("company", "b").unwrap_err();
        let text = policy.check_source("shared", "a").unwrap_err().to_string();
        assert!(text.contains("\"shared\" in [policy.sources]"), "{text}");
    }

    #[test]
    fn lists_of_namespaces_are_for_all_unless_said() {
        let policy = Policy::default();
        assert!(policy.is_open());
        policy.check_namespace("a").unwrap();
        let policy = self::policy(&["[policy]\nnamespaces = ['ci-*']\nprivileges = []"]).unwrap();
        assert!(!policy.is_open());
        policy.check_namespace("ci-1").unwrap();
        let error = policy.check_namespace("web").unwrap_err().to_string();
        let text = "the pod is not allowed in the namespace web; \"namespaces\" in [policy]";
        assert!(error.contains(text), "{error}");
        let added = ("process.capabilities", "SYS_ADMIN".to_owned());
        let error = policy
            .check_privileges(added, "ci-1")
            .unwrap_err()
            .to_string();
        let text = "process.capabilities: SYS_ADMIN is not allowed in the namespace ci-1; \
                    \"privileges\" in [policy]";
        assert!(error.contains(text), "{error}");
    }

    #[test]
    fn name_that_can_never_match_is_refused() {
        for (text, part) in [
            (
                "[policy.annotations]\n'caisson.dev/skils' = []",
                "caisson.dev/skils",
            ),
            ("[policy.annotations]\n'caisson.dev/*' = []", "none of"),
            (
                "[policy.annotations]\n'caisson.dev/devices=kvm' = []",
                "one of fuse, tun",
            ),
            (
                "[policy.annotations]\n'caisson.dev/home=x' = []",
                "caisson.dev/home=x",
            ),
            ("[policy.annotations]\n'caisson.dev/home' = ['a[']", "a["),
            ("[policy.skills]\n'sha256:0*' = []", "whole digest"),
            ("[policy.skills]\n'a**b' = []", "a**b"),
            ("[policy]\nnamespaces = ['a[']", "policy.namespaces"),
            ("[policy]\nprivileges = ['a[']", "policy.privileges"),
        ] {
            let error = policy(&[text]).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        for text in ["[policy]\nskill = {}", "[policy.sources]\na = 'b'"] {
            policy(&[text]).unwrap_err();
        }
    }
}
