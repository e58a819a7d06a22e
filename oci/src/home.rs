//! Parses the annotations with which a pod asks for a home.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
};

use crate::{error::shorten, names::is_plain_name, quantity, Error, Result};

/// The annotation that asks for a home: `ephemeral` or `persistent/NAME`.
pub const HOME: &str = "caisson.dev/home";
/// How much the home holds.
pub const HOME_SIZE: &str = "caisson.dev/home-size";
/// The path in the container at which the home is mounted instead.
pub const HOME_PATH: &str = "caisson.dev/home-path";

/// The smallest home, in bytes: a smaller file system has no room for its own journal.
pub const MIN_SIZE: u64 = 16 << 20;
/// The largest home, in bytes: the most that ext4 can have with blocks of 4 KiB and without wider
/// block numbers.
pub const MAX_SIZE: u64 = 1 << 44;

/// A home that a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    pub kind: HomeKind,
    /// How much it holds, in bytes; `None` means the size in the node's configuration.
    pub size: Option<u64>,
    /// Its place in the container; `None` means the home of the container's user.
    pub path: Option<PathBuf>,
}

/// How long a home lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HomeKind {
    /// As long as its pod.
    Ephemeral,
    /// Stays on its node until it is removed.
    Persistent {
        /// A plain file name.
        name: String,
    },
}

impl fmt::Display for HomeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ephemeral => f.write_str("ephemeral"),
            Self::Persistent { name } => write!(f, "persistent/{name}"),
        }
    }
}

/// The values of the annotations, not parsed yet.
#[derive(Debug, Default)]
pub(crate) struct Wish<'a> {
    pub home: Option<&'a str>,
    pub size: Option<&'a str>,
    pub path: Option<&'a str>,
}

impl Wish<'_> {
    pub(crate) fn parse(&self) -> Result<Option<Home>> {
        let Some(home) = self.home else {
            let alone = [(HOME_SIZE, self.size), (HOME_PATH, self.path)];
            return match alone.iter().find(|(_, value)| value.is_some()) {
                Some((key, _)) => Err(refused(key, format!("is of no use without {HOME}"))),
                None => Ok(None),
            };
        };
        Ok(Some(Home {
            kind: kind(home)?,
            size: self.size.map(size).transpose()?,
            path: self.path.map(path).transpose()?,
        }))
    }
}

fn kind(value: &str) -> Result<HomeKind> {
    match value.split_once('/') {
        None if value == "ephemeral" => Ok(HomeKind::Ephemeral),
        Some(("persistent", name)) if is_plain_name(name) => Ok(HomeKind::Persistent {
            name: name.to_owned(),
        }),
        _ => Err(refused(
            HOME,
            format!(
                "{:?} is neither ephemeral nor of the form persistent/NAME (NAME: 1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit)",
                shorten(value)
            ),
        )),
    }
}

fn size(value: &str) -> Result<u64> {
    match quantity::bytes(value) {
        Some(bytes) if (MIN_SIZE..=MAX_SIZE).contains(&bytes) => Ok(bytes),
        _ => Err(refused(
            HOME_SIZE,
            format!(
                "{:?} is not a quantity between 16Mi and 16Ti, such as 512Mi or 2G",
                shorten(value)
            ),
        )),
    }
}

fn path(value: &str) -> Result<PathBuf> {
    match is_mount_point(Path::new(value)) {
        true => Ok(value.into()),
        false => Err(refused(
            HOME_PATH,
            format!(
                "{:?} is not an absolute path other than /, without '..'",
                shorten(value)
            ),
        )),
    }
}

/// Returns whether a home can be mounted there: an absolute path other than `/`, without `..`.
pub fn is_mount_point(path: &Path) -> bool {
    let plain = |c: Component| matches!(c, Component::RootDir | Component::Normal(_));
    path.is_absolute() && path.components().all(plain) && path != Path::new("/")
}

fn refused(key: &str, reason: String) -> Error {
    Error::Annotation {
        key: key.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(home: &str, size: Option<&str>, path: Option<&str>) -> Result<Home> {
        let wish = Wish {
            home: Some(home),
            size,
            path,
        };
        wish.parse().map(Option::unwrap)
    }

    #[test]
    fn home_has_its_kind_size_and_path() {
        let home = parse("persistent/anna", Some("512Mi"), Some("/data")).unwrap();
        assert_eq!(home.kind.to_string(), "persistent/anna");
        assert_eq!(home.size, Some(512 << 20));
        assert_eq!(home.path.as_deref(), Some(Path::new("/data")));
        let plain = parse("ephemeral", None, None).unwrap();
        assert_eq!((plain.kind, plain.size), (HomeKind::Ephemeral, None));
    }

    #[test]
    fn home_that_is_not_a_plain_name_is_refused() {
        for value in [
            "",
            "persistent",
            "persistent/",
            "persistent/../x",
            "persistent/.x",
            "persistent/a/b",
            "ephemeral/x",
            "ephemeral/",
        ] {
            parse(value, None, None).unwrap_err();
        }
    }

    #[test]
    fn size_that_no_home_can_have_is_refused() {
        for value in ["", "0", "15Mi", "17Ti", "much", "-1Gi"] {
            let error = parse("ephemeral", Some(value), None).unwrap_err();
            assert!(error.to_string().contains("16Mi and 16Ti"), "{error}");
        }
    }

    #[test]
    fn path_that_is_no_mount_point_is_refused() {
        for value in ["", "/", "home", "/a/../b", "//"] {
            parse("ephemeral", None, Some(value)).unwrap_err();
        }
    }

    #[test]
    fn size_without_a_home_is_refused() {
        let wish = Wish {
            size: Some("1Gi"),
            ..Wish::default()
        };
        let error = wish.parse().unwrap_err().to_string();
        assert!(error.contains("without caisson.dev/home"), "{error}");
    }
}
