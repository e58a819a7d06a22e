//! `caisson.dev/secret-fd`: opens keys of the pod's secrets for every process of a container, and
//! puts the descriptors' numbers into its environment.
//!
//! The container has to mount the volume as a whole: the one that the kubelet makes at
//! `…/volumes/kubernetes.io~secret/<volume>` or `…/kubernetes.io~projected/<volume>`. The
//! container's user need not be allowed to read it. The guest opens the key anew for each process,
//! for reading, and only inside the volume.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Process};

use crate::{error::shorten, rules, Error, Result};

/// The annotation.
pub const KEY: &str = "caisson.dev/secret-fd";
/// The annotation for one container alone; its name follows.
pub const KEY_OF: &str = "caisson.dev/secret-fd.";
/// The most entries of one container.
pub const MAX: usize = 16;

/// The number of the first descriptor; the others follow it.
const FIRST: usize = 3;
/// The kubelet's folders for volumes that have keys (Kubernetes, pkg/volume/secret and
/// pkg/volume/projected).
const KINDS: [&str; 2] = ["kubernetes.io~secret", "kubernetes.io~projected"];
/// The longest name of a volume, a DNS label.
const MAX_VOLUME: usize = 63;
/// The longest key (Kubernetes, `IsConfigMapKey`).
const MAX_KEY: usize = 253;

/// An entry of the annotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFd {
    /// The volume's name in the pod.
    pub volume: String,
    /// A plain file name in it.
    pub key: String,
    /// The variable that gets the number.
    pub variable: String,
}

/// A file that the guest opens for a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The volume's place in the guest.
    pub directory: PathBuf,
    /// A plain file name in it.
    pub name: String,
    /// The entry as the annotation has it.
    pub origin: String,
    /// The variable that gets the descriptor's number.
    pub variable: String,
}

/// Parses the value of the annotation and adds its entries to `parsed`.
pub fn parse(key: &str, value: &str, parsed: &mut Vec<SecretFd>) -> Result<()> {
    let refuse = |reason: String| {
        Err(Error::Annotation {
            key: shorten(key),
            reason,
        })
    };
    for entry in value.split(',').map(str::trim) {
        let Some(secret) = parse_entry(entry) else {
            return refuse(format!(
                "{:?} is not of the form VOLUME/KEY=ENV_NAME (KEY: a key of the secret, no further '/')",
                shorten(entry)
            ));
        };
        if parsed.iter().any(|other| other.variable == secret.variable) {
            return refuse(format!("{:?} is named twice", shorten(&secret.variable)));
        }
        parsed.push(secret);
    }
    match parsed.len() {
        count if count > MAX => refuse(format!("{count} secrets, at most {MAX} are possible")),
        _ => Ok(()),
    }
}

fn parse_entry(entry: &str) -> Option<SecretFd> {
    let (secret, variable) = entry.split_once('=')?;
    let (volume, key) = secret.split_once('/')?;
    let valid = is_label(volume) && is_key(key) && is_variable(variable);
    valid.then(|| SecretFd {
        volume: volume.to_owned(),
        key: key.to_owned(),
        variable: variable.to_owned(),
    })
}

/// Returns whether a text is a DNS label (RFC 1123), as names of volumes are.
fn is_label(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=MAX_VOLUME).contains(&text.len())
        && text.bytes().all(allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Returns whether a text can be a key of a secret. Kubernetes has no keys that begin with two
/// dots; the kubelet uses such names for its own files.
pub(crate) fn is_key(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=MAX_KEY).contains(&text.len())
        && text.bytes().all(allowed)
        && text != "."
        && !text.starts_with("..")
}

/// Returns whether a shell accepts a text as a variable's name.
pub(crate) fn is_variable(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=MAX_VOLUME).contains(&text.len())
        && text.bytes().all(allowed)
        && !text.as_bytes()[0].is_ascii_digit()
}

/// Finds the secrets in the guest. `given` are the mounts of the spec, `translated` the same mounts
/// as the guest has them.
pub fn find(wanted: &[SecretFd], given: &[Mount], translated: &[Mount]) -> Result<Vec<Descriptor>> {
    let find_one = |secret: &SecretFd| {
        let origin = format!("{}/{}", secret.volume, secret.key);
        let mut mounts = given.iter().zip(translated);
        let found = mounts.find(|(given, _)| {
            // The source of another mount is only a word, and no place in the guest.
            let source = given.source().as_deref().filter(|_| rules::is_bind(given));
            source.is_some_and(|source| is_of_volume(source, &secret.volume))
        });
        let place = found.and_then(|(_, translated)| translated.source().clone());
        let directory = place.ok_or_else(|| Error::Annotation {
            key: KEY.to_owned(),
            reason: format!(
                "{origin}: the container mounts no secret or projected volume of the name {:?} (a subPath does not count); mount it, or name the container that does: {KEY_OF}CONTAINER",
                secret.volume
            ),
        })?;
        Ok(Descriptor {
            directory,
            name: secret.key.clone(),
            origin,
            variable: secret.variable.clone(),
        })
    };
    wanted.iter().map(find_one).collect()
}

fn is_of_volume(source: &Path, volume: &str) -> bool {
    KINDS
        .iter()
        .any(|kind| source.ends_with(Path::new("volumes").join(kind).join(volume)))
}

/// Refuses variables that the container sets itself.
pub fn check_environment(process: &Process, descriptors: &[Descriptor]) -> Result<()> {
    for Descriptor { variable, .. } in descriptors {
        let mut names = process.env().iter().flatten();
        if names.any(|entry| entry.split('=').next() == Some(variable)) {
            return Err(Error::Annotation {
                key: KEY.to_owned(),
                reason: format!("the container has a variable {variable:?} already"),
            });
        }
    }
    Ok(())
}

/// Puts the descriptors' numbers into a process's environment.
pub fn set_environment(process: &mut Process, descriptors: &[Descriptor]) {
    if descriptors.is_empty() {
        return;
    }
    let mut env = process.env().clone().unwrap_or_default();
    let numbers = descriptors.iter().zip(FIRST..);
    env.extend(numbers.map(|(descriptor, number)| format!("{}={number}", descriptor.variable)));
    process.set_env(Some(env));
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::MountBuilder;
    use serde_json::json;

    fn parsed(value: &str) -> Result<Vec<SecretFd>> {
        let mut secrets = Vec::new();
        parse(KEY, value, &mut secrets).map(|()| secrets)
    }

    fn mount(source: &str) -> Mount {
        let mount = MountBuilder::default().destination("/secrets").typ("bind");
        mount.source(source).build().unwrap()
    }

    fn refusal(wanted: &str, mounts: &[Mount]) -> String {
        let wanted = parsed(wanted).unwrap();
        find(&wanted, mounts, mounts).unwrap_err().to_string()
    }

    const VOLUME: &str = "/var/lib/kubelet/pods/1-2/volumes/kubernetes.io~secret/db";

    #[test]
    fn entries_are_parsed_in_their_order() {
        let secrets = parsed("db/password=DB_PASSWORD, tls/tls.key=KEY").unwrap();
        assert_eq!(secrets[0].volume, "db");
        assert_eq!(secrets[0].key, "password");
        assert_eq!(secrets[0].variable, "DB_PASSWORD");
        assert_eq!(secrets[1].key, "tls.key");
    }

    #[test]
    fn entries_that_could_leave_their_volume_are_refused() {
        for value in [
            "",
            "db/password",
            "db=X",
            "/password=X",
            "db/=X",
            "db/a/b=X",
            "../password=X",
            "db/..=X",
            "db/..data=X",
            "db/.=X",
            "db/password=",
            "db/password=1X",
            "db/password=X=Y",
            "db/password=A B",
            "db/pass word=X",
            "db/password=X,",
            &format!("{}/password=X", "d".repeat(300)),
            &format!("db/{}=X", "k".repeat(300)),
        ] {
            let error = parsed(value).unwrap_err().to_string();
            assert!(error.contains("VOLUME/KEY=ENV_NAME"), "{value}: {error}");
        }
    }

    #[test]
    fn variable_named_twice_is_refused() {
        let error = parsed("db/a=X,db/b=X").unwrap_err().to_string();
        assert!(error.contains("\"X\" is named twice"), "{error}");
    }

    #[test]
    fn more_than_the_limit_are_refused_saying_it() {
        let entries: Vec<_> = (0..17).map(|n| format!("db/key=K{n}")).collect();
        let error = parsed(&entries.join(",")).unwrap_err().to_string();
        assert!(error.contains("at most 16"), "{error}");
    }

    #[test]
    fn mount_that_only_says_the_volumes_name_is_not_it() {
        let named = MountBuilder::default().destination("/c").typ("cgroup");
        let named = named.source(VOLUME).build().unwrap();
        let error = refusal("db/password=X", &[named]);
        assert!(error.contains("mounts no secret"), "{error}");
    }

    #[test]
    fn secret_is_found_where_the_guest_has_its_volume() {
        let projected = VOLUME.replace("~secret", "~projected");
        for source in [VOLUME, &projected] {
            let (given, guest) = (
                [mount("/other"), mount(source)],
                [mount("/g/1"), mount("/g/2")],
            );
            let found = find(&parsed("db/password=X").unwrap(), &given, &guest).unwrap();
            assert_eq!(found[0].directory, Path::new("/g/2"));
            assert_eq!(found[0].origin, "db/password");
        }
    }

    #[test]
    fn volume_that_is_not_mounted_as_a_whole_is_named() {
        let below = format!("{VOLUME}/..data");
        let config = VOLUME.replace("~secret", "~configmap");
        for source in [&below, &config, "/db", "/kubernetes.io~secret/db"] {
            let error = refusal("db/password=X", &[mount(source)]);
            assert!(
                error.contains("db/password") && error.contains("\"db\""),
                "{error}"
            );
        }
    }

    #[test]
    fn environment_has_the_numbers_and_no_variable_twice() {
        let user = json!({"uid": 0, "gid": 0});
        let process = json!({"cwd": "/", "user": user, "env": ["A=1"]});
        let mut process: Process = serde_json::from_value(process).unwrap();
        let mounts = [mount(VOLUME)];
        let descriptors = find(&parsed("db/a=X,db/b=Y").unwrap(), &mounts, &mounts).unwrap();
        check_environment(&process, &descriptors).unwrap();
        set_environment(&mut process, &descriptors);
        assert_eq!(process.env().clone().unwrap(), ["A=1", "X=3", "Y=4"]);
        let error = check_environment(&process, &descriptors)
            .unwrap_err()
            .to_string();
        assert!(error.contains("variable \"X\" already"), "{error}");
    }
}
