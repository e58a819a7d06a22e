//! Every annotation that a pod or container can carry for Caisson; any other key under `caisson.dev/` is refused.
//!
//! | key | value |
//! |---|---|
//! | `caisson.dev/skills` | skills to plug in: `[NAME=]sha256:HEX`, separated by commas |
//! | `caisson.dev/home` | `persistent/NAME`: a directory of the node, at the container user's home |

use std::collections::HashMap;

use crate::{error::shorten, Error, Result};

/// Where Caisson's annotations live.
pub const PREFIX: &str = "caisson.dev/";
/// See the module's table.
pub const SKILLS: &str = "caisson.dev/skills";
/// See the module's table.
pub const HOME: &str = "caisson.dev/home";

/// The most skills of one container: a VM has this many slots for them.
pub const MAX_SKILLS: usize = 16;

/// The annotations of a container, parsed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// In the order given, no name and no digest twice.
    pub skills: Vec<SkillRef>,
    /// The home to plug in.
    pub home: Option<Home>,
}

/// A skill that a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkillRef {
    /// Under which it is mounted, where it differs from the skill's own name.
    pub name: Option<String>,
    /// sha256 of the file, 64 lower-case hex digits.
    pub digest: String,
}

/// A home that a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Home {
    /// A directory of the node that outlives the container.
    Persistent {
        /// A plain file name.
        name: String,
    },
}

impl Annotations {
    /// Parses what is under `caisson.dev/`; everything else is somebody else's.
    pub fn parse(annotations: &HashMap<String, String>) -> Result<Self> {
        let mut parsed = Self::default();
        let mut ours: Vec<_> = annotations
            .iter()
            .filter(|(key, _)| key.starts_with(PREFIX))
            .collect();
        ours.sort();
        for (key, value) in ours {
            match key.as_str() {
                SKILLS => parsed.skills = parse_skills(value)?,
                HOME => parsed.home = Some(parse_home(value)?),
                _ => {
                    return Err(Error::Annotation {
                        key: shorten(key),
                        reason: format!("is not known; known are {SKILLS}, {HOME}"),
                    })
                }
            }
        }
        Ok(parsed)
    }
}

fn parse_skills(value: &str) -> Result<Vec<SkillRef>> {
    let refuse = |reason: String| {
        Err(Error::Annotation {
            key: SKILLS.to_owned(),
            reason,
        })
    };
    let mut skills: Vec<SkillRef> = Vec::new();
    for entry in value.split(',').map(str::trim) {
        let (name, digest) = match entry.split_once('=') {
            Some((name, digest)) => (Some(name), digest),
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
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        if !is_sha256(hex) {
            return refuse(format!(
                "{:?} is not of the form [NAME=]sha256:<64 lower-case hex digits>",
                shorten(entry)
            ));
        }
        let twice = skills
            .iter()
            .any(|s| s.digest == hex || (name.is_some() && s.name.as_deref() == name));
        if twice {
            return refuse(format!("{:?} is named twice", shorten(entry)));
        }
        skills.push(SkillRef {
            name: name.map(str::to_owned),
            digest: hex.to_owned(),
        });
    }
    if skills.len() > MAX_SKILLS {
        return refuse(format!(
            "{} skills, at most {MAX_SKILLS} are possible",
            skills.len()
        ));
    }
    Ok(skills)
}

fn parse_home(value: &str) -> Result<Home> {
    match value.split_once('/') {
        Some(("persistent", name)) if is_plain_name(name) => Ok(Home::Persistent {
            name: name.to_owned(),
        }),
        _ => Err(Error::Annotation {
            key: HOME.to_owned(),
            reason: format!(
                "{:?} is not of the form persistent/NAME (NAME: 1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit)",
                shorten(value)
            ),
        }),
    }
}

/// Whether `hex` is 64 lower-case hex digits.
pub fn is_sha256(hex: &str) -> bool {
    hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether `name` can safely name a file and a mount point: 1 to 63 letters, digits, `.`, `_`, `-`, the first a letter or digit.
pub fn is_plain_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && name.as_bytes()[0].is_ascii_alphanumeric()
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
        assert_eq!(parsed.skills[1].digest, format!("{:064x}", 2));
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

    #[test]
    fn home_that_is_not_a_plain_name_is_refused() {
        for value in [
            "",
            "persistent",
            "persistent/",
            "persistent/../x",
            "ephemeral/x",
        ] {
            parse(HOME, value).unwrap_err();
        }
        assert!(parse(HOME, "persistent/anna").unwrap().home.is_some());
    }
}
