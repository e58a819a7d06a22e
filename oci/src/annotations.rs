//! The annotations with which a pod or container asks Caisson for something.
//!
//! Any other key under `caisson.dev/` is refused.
//!
//! - `caisson.dev/skills`: skills for every container, each as `[NAME=]sha256:HEX` or
//!   `[NAME=]SKILL@VERSION`, separated by commas.
//! - `caisson.dev/skills.CONTAINER`: further skills for the container of that name alone.
//! - `caisson.dev/devices`: devices of the guest, separated by commas; see
//!   [`crate::guest_devices`].
//! - `caisson.dev/secret-fd`: `VOLUME/KEY=ENV_NAME`, separated by commas; see [`crate::secrets`].
//! - `caisson.dev/secret-fd.CONTAINER`: further ones for the container of that name alone.
//! - `caisson.dev/home`: `ephemeral` or `persistent/NAME`, a file system of the node that is
//!   mounted at the container user's home; see [`crate::home`].
//! - `caisson.dev/home-size`: how much the home holds, as a Kubernetes quantity.
//! - `caisson.dev/home-path`: where in the container the home is mounted instead.
//! - `caisson.dev/scratch`: `disk` or `shared`, where root and emptyDirs are kept; see
//!   [`crate::scratch`].
//! - `caisson.dev/egress`: `open`, `deny` or `allow: ENTRY, …`, what the pod may open connections
//!   to; see [`crate::egress`].
//! - `caisson.dev/claim`: what the pod gets while it runs; see [`crate::claim_annotation`]. A
//!   container that is created gets nothing by it.
//!
//! The node's configuration decides which namespace may use which of them: [`crate::policy`].

use std::{collections::HashMap, fmt, str::FromStr};

pub use crate::{
    home::{HOME, HOME_PATH, HOME_SIZE},
    names::{is_plain_name, is_sha256, is_version},
    scratch::SCRATCH,
};

use crate::{
    claim_annotation::{self, Asked},
    egress::{self, Egress},
    error::shorten,
    guest_devices::GuestDevice,
    home::{Home, Wish},
    scratch::Scratch,
    secrets::{self, SecretFd},
    Error, Result,
};

/// The prefix of all of Caisson's annotations.
pub const PREFIX: &str = "caisson.dev/";
/// See the module documentation.
pub const SKILLS: &str = "caisson.dev/skills";
/// Followed by a container's name. See the module documentation.
pub const SKILLS_OF: &str = "caisson.dev/skills.";
/// See the module documentation.
pub const DEVICES: &str = "caisson.dev/devices";

/// All keys, without the `.CONTAINER` suffix.
pub const KEYS: &[&str] = &[
    SKILLS,
    DEVICES,
    secrets::KEY,
    HOME,
    HOME_SIZE,
    HOME_PATH,
    SCRATCH,
    egress::KEY,
    claim_annotation::KEY,
];

/// Returns the entry of [`KEYS`] that a key belongs to, whichever container it is for, or `None` if
/// the key is unknown.
pub fn base(key: &str) -> Option<&'static str> {
    let of_one = [(SKILLS_OF, SKILLS), (secrets::KEY_OF, secrets::KEY)];
    let mut of_one = of_one.into_iter();
    let of_one = of_one.find(|(prefix, _)| key.starts_with(prefix));
    let known = || KEYS.iter().copied().find(|known| *known == key);
    of_one.map(|(_, all)| all).or_else(known)
}

/// The most skills that one container can have: a VM has this many slots for them.
pub const MAX_SKILLS: usize = 16;

/// The annotation in which containerd gives a container's name in its pod.
pub const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";

/// The annotations of a container, parsed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// In the order given; no name and no skill appears twice.
    pub skills: Vec<SkillWish>,
    /// Devices of the guest; none appears twice.
    pub devices: Vec<GuestDevice>,
    /// In the order given; no variable appears twice.
    pub secret_fds: Vec<SecretFd>,
    /// The home to plug in.
    pub home: Option<Home>,
    /// Where the root and the emptyDirs are kept, if the pod says.
    pub scratch: Option<Scratch>,
    /// What the pod may open connections to, if it says so.
    pub egress: Option<Egress>,
}

/// A skill that a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkillWish {
    /// The name under which the skill is mounted, if it is not left to the skill's manifest.
    pub name: Option<String>,
    pub skill: SkillRef,
}

/// How a skill is identified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SkillRef {
    /// The sha256 of the file, as 64 lower-case hex digits.
    Digest(String),
    /// Name and version as in the manifest; a source of skills knows the digest.
    Version { name: String, version: String },
}

impl fmt::Display for SkillRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest(digest) => write!(f, "sha256:{digest}"),
            Self::Version { name, version } => write!(f, "{name}@{version}"),
        }
    }
}

impl SkillRef {
    /// Parses `sha256:HEX` or `SKILL@VERSION`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(hex) = text.strip_prefix("sha256:") {
            return is_sha256(hex).then(|| Self::Digest(hex.to_owned()));
        }
        let (name, version) = text.split_once('@')?;
        (is_plain_name(name) && is_version(version)).then(|| Self::Version {
            name: name.to_owned(),
            version: version.to_owned(),
        })
    }
}

impl FromStr for SkillRef {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Self::parse(text)
            .ok_or("is not of the form sha256:<64 lower-case hex digits> or NAME@VERSION")
    }
}

impl Annotations {
    /// Parses the keys under `caisson.dev/` and ignores all others.
    pub fn parse(annotations: &HashMap<String, String>) -> Result<Self> {
        let mut parsed = Self::default();
        let mut ours: Vec<_> = annotations
            .iter()
            .filter(|(key, _)| key.starts_with(PREFIX))
            .collect();
        // Annotations for every container sort before those for one.
        ours.sort();
        let container = annotations.get(CONTAINER_NAME);
        let mut home = Wish::default();
        for (key, value) in ours {
            let skills = |skills: &mut _| parse_skills(key, value, skills);
            let secret_fds = |secret_fds: &mut _| secrets::parse(key, value, secret_fds);
            let named = |prefix| key.strip_prefix(prefix).filter(|name| is_plain_name(name));
            let is_own = |name: &str| container.is_some_and(|container| container == name);
            match key.as_str() {
                SKILLS => skills(&mut parsed.skills)?,
                secrets::KEY => secret_fds(&mut parsed.secret_fds)?,
                DEVICES => parsed.devices = parse_devices(value)?,
                HOME => home.home = Some(value),
                HOME_SIZE => home.size = Some(value),
                HOME_PATH => home.path = Some(value),
                SCRATCH => parsed.scratch = Some(Scratch::parse(value)?),
                egress::KEY => parsed.egress = Some(Egress::parse(value)?),
                claim_annotation::KEY => drop(Asked::parse(value)?),
                _ => match (named(SKILLS_OF), named(secrets::KEY_OF)) {
                    (Some(name), _) => add_of_one(&mut parsed.skills, is_own(name), skills)?,
                    (_, Some(name)) => {
                        add_of_one(&mut parsed.secret_fds, is_own(name), secret_fds)?
                    }
                    _ => return Err(unknown(key)),
                },
            }
        }
        parsed.home = home.parse()?;
        Ok(parsed)
    }
}

/// Adds what an annotation gives to one container. Annotations for other containers are checked
/// too, so that a mistake is already reported by the pod's first container.
fn add_of_one<T: Clone>(
    wanted: &mut Vec<T>,
    is_own: bool,
    parse: impl FnOnce(&mut Vec<T>) -> Result<()>,
) -> Result<()> {
    let mut with = wanted.clone();
    parse(&mut with)?;
    if is_own {
        *wanted = with;
    }
    Ok(())
}

fn unknown(key: &str) -> Error {
    let known = KEYS.iter().flat_map(|&key| {
        let of_one = [SKILLS, secrets::KEY].contains(&key);
        let of_one = of_one.then(|| format!("{key}.CONTAINER"));
        [key.to_owned()].into_iter().chain(of_one)
    });
    let mut known: Vec<_> = known.collect();
    known.sort();
    Error::Annotation {
        key: shorten(key),
        reason: format!("is not known; known are {}", known.join(", ")),
    }
}

fn parse_skills(key: &str, value: &str, skills: &mut Vec<SkillWish>) -> Result<()> {
    let refuse = |reason: String| {
        Err(Error::Annotation {
            key: shorten(key),
            reason,
        })
    };
    for entry in value.split(',').map(str::trim) {
        let (name, skill) = match entry.split_once('=') {
            Some((name, skill)) => (Some(name), skill),
            None => (None, entry),
        };
        if let Some(name) = name {
            if !is_plain_name(name) {
                return refuse(format!(
                    "skill name {:?} must be 1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit",
                    shorten(name)
                ));
            }
        }
        let Some(skill) = SkillRef::parse(skill) else {
            return refuse(format!(
                "{:?} is not of the form [NAME=]sha256:<64 lower-case hex digits> or [NAME=]SKILL@VERSION",
                shorten(entry)
            ));
        };
        let twice = skills
            .iter()
            .any(|s| s.skill == skill || (name.is_some() && s.name.as_deref() == name));
        if twice {
            return refuse(format!("{:?} is named twice", shorten(entry)));
        }
        skills.push(SkillWish {
            name: name.map(str::to_owned),
            skill,
        });
    }
    if skills.len() > MAX_SKILLS {
        return refuse(format!(
            "{} skills, at most {MAX_SKILLS} are possible",
            skills.len()
        ));
    }
    Ok(())
}

fn parse_devices(value: &str) -> Result<Vec<GuestDevice>> {
    let mut devices = Vec::new();
    for name in value.split(',').map(str::trim) {
        let Some(device) = GuestDevice::parse(name) else {
            return Err(Error::Annotation {
                key: DEVICES.to_owned(),
                reason: format!("{:?} is none of {}", shorten(name), GuestDevice::NAMES),
            });
        };
        if !devices.contains(&device) {
            devices.push(device);
        }
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(key: &str, value: &str) -> Result<Annotations> {
        Annotations::parse(&HashMap::from([(key.to_owned(), value.to_owned())]))
    }

    fn digest(n: usize) -> String {
        format!("sha256:{n:064x}")
    }

    #[test]
    fn skills_with_and_without_name_are_parsed() {
        let value = format!("pptx={}, {}", digest(1), digest(2));
        let parsed = parse(SKILLS, &value).unwrap();
        assert_eq!(parsed.skills[0].name.as_deref(), Some("pptx"));
        assert_eq!(parsed.skills[1].name, None);
        let second = SkillRef::Digest(format!("{:064x}", 2));
        assert_eq!(parsed.skills[1].skill, second);
    }

    #[test]
    fn skill_by_version_is_parsed() {
        let parsed = parse(SKILLS, "docx@1.4, d=docx@latest").unwrap();
        assert_eq!(parsed.skills[0].skill.to_string(), "docx@1.4");
        assert_eq!(parsed.skills[1].name.as_deref(), Some("d"));
        for bad in [
            "docx", "docx@", "@1", "a/b@1", "docx@1/2", "docx@.1", "docx@1 2",
        ] {
            parse(SKILLS, bad).unwrap_err();
        }
    }

    #[test]
    fn skills_of_a_container_are_for_that_one_alone() {
        let of = |container: &str| {
            let annotations = [
                (SKILLS, "a@1"),
                ("caisson.dev/skills.web", "b@1,c@1"),
                (CONTAINER_NAME, container),
            ];
            let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
            let parsed = Annotations::parse(&HashMap::from(annotations)).unwrap();
            let names = parsed.skills.iter().map(|wish| wish.skill.to_string());
            names.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of("web"), "a@1 b@1 c@1");
        assert_eq!(of("db"), "a@1");
        parse("caisson.dev/skills.", "a@1").unwrap_err();
        parse("caisson.dev/skills.web", "nonsense").unwrap_err();
    }

    #[test]
    fn secrets_of_a_container_are_for_that_one_alone() {
        let of = |container: &str| {
            let annotations = [
                (secrets::KEY, "db/user=USER"),
                ("caisson.dev/secret-fd.web", "db/password=PASSWORD"),
                (CONTAINER_NAME, container),
            ];
            let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
            let parsed = Annotations::parse(&HashMap::from(annotations)).unwrap();
            let variables = parsed.secret_fds.into_iter().map(|secret| secret.variable);
            variables.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of("web"), "USER PASSWORD");
        assert_eq!(of("db"), "USER");
        parse("caisson.dev/secret-fd.", "db/user=USER").unwrap_err();
        parse("caisson.dev/secret-fd.web", "nonsense").unwrap_err();
    }

    #[test]
    fn skill_names_that_could_leave_their_folder_are_refused() {
        for name in ["", "..", ".x", "a/b", "a b", "a\nb", &"x".repeat(300)] {
            parse(SKILLS, &format!("{name}={}", digest(1))).unwrap_err();
        }
    }

    #[test]
    fn skill_named_twice_is_refused() {
        parse(SKILLS, &format!("{},{}", digest(1), digest(1))).unwrap_err();
        parse(SKILLS, &format!("a={},a={}", digest(1), digest(2))).unwrap_err();
    }

    #[test]
    fn devices_are_those_that_the_guest_has() {
        let parsed = parse(DEVICES, "fuse, tun,fuse").unwrap();
        assert_eq!(parsed.devices, [GuestDevice::Fuse, GuestDevice::Tun]);
        let error = parse(DEVICES, "kvm").unwrap_err().to_string();
        assert!(error.contains("\"kvm\" is none of fuse, tun"), "{error}");
    }

    #[test]
    fn seventeen_skills_are_refused_saying_the_limit() {
        let value: Vec<_> = (0..17).map(digest).collect();
        let error = parse(SKILLS, &value.join(",")).unwrap_err().to_string();
        assert!(error.contains("at most 16"), "{error}");
    }

    #[test]
    fn unknown_annotation_of_ours_is_refused_by_name() {
        let error = parse("caisson.dev/skill", "x").unwrap_err().to_string();
        assert!(error.contains("caisson.dev/skill: is not known"), "{error}");
    }

    #[test]
    fn annotation_of_others_is_ignored() {
        let parsed = parse("example.com/skills", "x").unwrap();
        assert_eq!(parsed, Annotations::default());
    }
}
