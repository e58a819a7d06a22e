//! Reads the host's spec and fills in what only the guest knows. Everything else about it is the
//! host's decision.

use std::{fs, path::Path};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxNamespaceType, LinuxResources, Process, Spec};

use super::{
    error::{Error, Result},
    nodes,
    task::DiskNode,
};

/// What the guest fills in.
pub struct Known<'a> {
    /// The container's cgroup.
    pub cgroup: &'a Path,
    /// The paths of the namespaces that the container joins.
    pub pid_namespace: Option<&'a Path>,
    pub user_namespace: Option<&'a Path>,
    pub disks: &'a [DiskNode],
    /// Whether the container gets all device nodes of the guest.
    pub guest_devices: bool,
}

/// A spec that is complete.
pub struct Filled {
    /// The spec for libcontainer.
    pub spec: Spec,
    /// The process as the host wants it.
    pub process: Process,
    /// The device rules that the nodes of disks need. libcontainer sets none.
    pub rules: Vec<LinuxDeviceCgroup>,
}

/// Reads a JSON file.
pub fn read<T: serde::de::DeserializeOwned>(path: &Path, name: &'static str) -> Result<T> {
    let text = fs::read(path).map_err(Error::file("read", path))?;
    serde_json::from_slice(&text).map_err(|source| Error::Parse { path: name, source })
}

/// Completes a spec.
pub fn fill(mut spec: Spec, known: &Known<'_>) -> Result<Filled> {
    let rules = nodes::add(&mut spec, known.disks, known.guest_devices)?;
    let process = spec.process_mut().as_mut();
    let process = process.ok_or(Error::Missing { field: "process" })?;
    let given = process.clone();
    hide_from_libcontainer(process);
    let linux = spec.linux_mut().as_mut();
    let linux = linux.ok_or(Error::Missing { field: "linux" })?;
    linux.set_cgroups_path(Some(known.cgroup.to_path_buf()));
    if !has_controllers() {
        linux.set_resources(None::<LinuxResources>);
    }
    for namespace in linux.namespaces_mut().iter_mut().flatten() {
        let path = match namespace.typ() {
            LinuxNamespaceType::Pid => known.pid_namespace,
            LinuxNamespaceType::User => known.user_namespace,
            _ => continue,
        };
        namespace.set_path(path.map(Path::to_path_buf));
    }
    Ok(Filled {
        spec,
        process: given,
        rules,
    })
}

/// Whether the cgroup tree has controllers. The guest has all of them; the host of a test may have
/// them elsewhere, and nothing is limited there.
fn has_controllers() -> bool {
    fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
        .is_ok_and(|controllers| !controllers.trim().is_empty())
}

/// Changes a process so that libcontainer leaves to the agent what the agent does itself.
///
/// Without a `HOME`, libcontainer would look it up with the container's own NSS modules; the
/// program gets its environment from [`super::executor`]. [`oom_score_adj`] sets the score once for
/// all processes of the container.
fn hide_from_libcontainer(process: &mut Process) {
    let mut env = process.env().clone().unwrap_or_default();
    env.retain(|entry| entry != "HOME=");
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push("HOME=/".to_string());
    }
    process.set_env(Some(env));
    process.set_oom_score_adj(None);
}

/// Sets the score of this process, which the processes that it starts inherit. Lowering it needs a
/// right that the host of a test may not grant.
pub fn oom_score_adj(adj: Option<i32>) -> Result<()> {
    let path = "/proc/self/oom_score_adj";
    let Some(adj) = adj else {
        return Ok(());
    };
    match fs::write(path, adj.to_string()) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Ok(()),
        result => result.map_err(Error::file("write", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> Known<'static> {
        Known {
            cgroup: Path::new("/c"),
            pid_namespace: None,
            user_namespace: None,
            disks: &[],
            guest_devices: false,
        }
    }

    fn filled(text: &str, known: &Known<'_>) -> Result<Filled> {
        fill(serde_json::from_str(text).unwrap(), known)
    }

    const SMALL: &str = r#"{"ociVersion":"1.0.2","process":{"cwd":"/","args":["true"],
        "user":{"uid":1000,"gid":1000},"oomScoreAdj":5},
        "linux":{"namespaces":[{"type":"pid"},{"type":"mount"}]}}"#;

    #[test]
    fn spec_without_home_gets_one_that_its_process_does_not_see() {
        let Filled { spec, process, .. } = filled(SMALL, &nothing()).unwrap();
        let given = spec.process().clone().unwrap();
        assert_eq!(given.env().clone().unwrap(), ["HOME=/"]);
        assert!(!process
            .env()
            .iter()
            .flatten()
            .any(|entry| entry.starts_with("HOME=")));
    }

    #[test]
    fn score_is_the_processs_and_not_libcontainers() {
        let Filled { spec, process, .. } = filled(SMALL, &nothing()).unwrap();
        let given = spec.process().clone().unwrap();
        assert_eq!(
            (process.oom_score_adj(), given.oom_score_adj()),
            (Some(5), None)
        );
    }

    #[test]
    fn namespaces_that_are_joined_get_their_paths() {
        let known = Known {
            pid_namespace: Some(Path::new("/proc/7/ns/pid")),
            ..nothing()
        };
        let spec = filled(SMALL, &known).unwrap().spec;
        let namespaces = spec.linux().clone().unwrap().namespaces().clone().unwrap();
        let paths: Vec<_> = namespaces.iter().map(|ns| ns.path().clone()).collect();
        assert_eq!(paths, [Some("/proc/7/ns/pid".into()), None]);
    }

    #[test]
    fn spec_without_a_process_names_the_field() {
        let error = filled(r#"{"ociVersion":"1.0.2","linux":{}}"#, &nothing());
        let text = error.err().map(|error| error.to_string()).unwrap();
        assert_eq!(text, "config.json: process is missing");
    }
}
