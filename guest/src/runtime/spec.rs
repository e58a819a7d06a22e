//! Turns the host's spec into what libcontainer accepts, and keeps its meaning.

use std::{fs, path::Path};

use caisson_protocol::path::{POD_PID_NAMESPACE, POD_USER_NAMESPACE};
use oci_spec::runtime::{
    Capabilities, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxNamespaceType, LinuxResources,
    Process, Spec,
};

use super::error::{Error, Result};

/// Reads a JSON file.
pub fn read<T: serde::de::DeserializeOwned>(path: &Path, name: &'static str) -> Result<T> {
    let text = fs::read(path).map_err(Error::file("read", path))?;
    serde_json::from_slice(&text).map_err(|source| Error::Parse { path: name, source })
}

/// Returns the spec for libcontainer, and the process as the host wants it.
pub fn adapt(mut spec: Spec, cgroup: &Path, limits: bool) -> Result<(Spec, Process)> {
    let mut process = spec
        .process()
        .clone()
        .ok_or(Error::Missing { field: "process" })?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::Missing {
            field: "process.args",
        });
    }
    let mut linux = spec
        .linux()
        .clone()
        .ok_or(Error::Missing { field: "linux" })?;
    // Hooks belong to the host.
    spec.set_hooks(None);
    linux.set_cgroups_path(Some(cgroup.to_path_buf()));
    if !limits {
        linux.set_resources(None::<LinuxResources>);
    }
    process.set_capabilities(Some(whole(process.capabilities().as_ref())?));
    // libcontainer treats an explicit `false` as `true` when it decides when to load the seccomp
    // filter.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    if process.terminal() == Some(true) {
        own_terminals(&mut spec, process.user().uid());
    }
    let mut given = process.clone();
    let mut env = process.env().clone().unwrap_or_default();
    env.retain(|entry| entry != "HOME=");
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push("HOME=/".to_string());
    }
    given.set_env(Some(env));
    // `oom_score_adj` sets it once for all processes of the container.
    given.set_oom_score_adj(None);
    spec.set_process(Some(given));
    spec.set_linux(Some(linux));
    Ok((spec, process))
}

/// Puts the container into those of the pod's namespaces that its spec names. `process` is in them.
pub fn join_pod(spec: &mut Spec, process: i32) {
    let namespaces = spec.linux_mut().as_mut();
    for namespace in namespaces
        .and_then(|linux| linux.namespaces_mut().as_mut())
        .into_iter()
        .flatten()
    {
        let (place, name) = match namespace.typ() {
            LinuxNamespaceType::Pid => (POD_PID_NAMESPACE, "pid"),
            LinuxNamespaceType::User => (POD_USER_NAMESPACE, "user"),
            _ => continue,
        };
        if namespace.path().as_deref() == Some(Path::new(place)) {
            namespace.set_path(Some(format!("/proc/{process}/ns/{name}").into()));
        }
    }
}

/// Returns capabilities in which every set is present. A missing set counts as empty, as in runc.
pub fn whole(capabilities: Option<&LinuxCapabilities>) -> Result<LinuxCapabilities> {
    let set = |get: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        capabilities
            .and_then(|capabilities| get(capabilities).clone())
            .unwrap_or_default()
    };
    LinuxCapabilitiesBuilder::default()
        .bounding(set(|sets| sets.bounding()))
        .effective(set(|sets| sets.effective()))
        .permitted(set(|sets| sets.permitted()))
        .inheritable(set(|sets| sets.inheritable()))
        .ambient(set(|sets| sets.ambient()))
        .build()
        .map_err(|_| Error::Missing {
            field: "process.capabilities",
        })
}

/// Makes new terminals belong to the container's user, who may want to open them by name.
fn own_terminals(spec: &mut Spec, uid: u32) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        let mut options = mount.options().clone().unwrap_or_default();
        let owned = options.iter().any(|option| option.starts_with("uid="));
        if mount.typ().as_deref() == Some("devpts") && uid != 0 && !owned {
            options.push(format!("uid={uid}"));
            mount.set_options(Some(options));
        }
    }
    spec.set_mounts(Some(mounts));
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

    fn spec(text: &str) -> Spec {
        serde_json::from_str(text).unwrap()
    }

    const SMALL: &str = r#"{"ociVersion":"1.0.2","process":{"cwd":"/","args":["true"],
        "user":{"uid":1000,"gid":1000},"terminal":true,"noNewPrivileges":false,"oomScoreAdj":5},
        "mounts":[{"destination":"/dev/pts","type":"devpts","source":"devpts","options":["nosuid"]}],
        "linux":{},"hooks":{}}"#;

    #[test]
    fn spec_without_home_gets_one_that_its_process_does_not_see() {
        let (spec, process) = adapt(spec(SMALL), Path::new("/c"), true).unwrap();
        let given = spec.process().clone().unwrap();
        assert_eq!(given.env().clone().unwrap(), ["HOME=/"]);
        assert!(!process
            .env()
            .iter()
            .flatten()
            .any(|entry| entry.starts_with("HOME=")));
    }

    #[test]
    fn spec_with_explicit_false_privileges_is_cleared() {
        let (spec, _) = adapt(spec(SMALL), Path::new("/c"), true).unwrap();
        let given = spec.process().clone().unwrap();
        assert_eq!(given.no_new_privileges(), None);
        assert!(spec.hooks().is_none());
        let bounding = given.capabilities().clone().unwrap().bounding().clone();
        assert_eq!(bounding, Some(Capabilities::new()));
    }

    #[test]
    fn spec_with_a_terminal_makes_it_the_users() {
        let (spec, _) = adapt(spec(SMALL), Path::new("/c"), true).unwrap();
        let options = spec.mounts().clone().unwrap()[0].options().clone().unwrap();
        assert_eq!(options, ["nosuid", "uid=1000"]);
    }

    #[test]
    fn spec_without_a_process_names_the_field() {
        let error = adapt(
            spec(r#"{"ociVersion":"1.0.2","linux":{}}"#),
            Path::new("/c"),
            true,
        );
        let text = error.err().map(|error| error.to_string()).unwrap();
        assert_eq!(text, "config.json: process is missing");
    }
}
