//! Puts a spec into the form that the OCI runtime in the guest, libcontainer, needs to do what the
//! spec says and what runc would do.

use oci_spec::runtime::{
    Capabilities, Hooks, LinuxCapabilities, LinuxCapabilitiesBuilder, Mount, Process, Spec,
};

use crate::{Error, IdMap, Result};

/// File systems that show a namespace of the pod, and where the guest has them. Such a namespace
/// belongs to the guest's root, so the root of a user namespace may not mount these file systems
/// anew. They are bind-mounted from the guest instead. Volumes and other mounts below them come
/// later in the list.
///
/// A capability over the network (NET_ADMIN) has no effect in such a container either. This differs
/// from runc, where the pod's network belongs to its users.
const GUESTS: &[(&str, &str)] = &[("sysfs", "/sys"), ("mqueue", "/dev/mqueue")];

/// In µs, if a spec has no other (kernel, cgroup-v2.rst).
const DEFAULT_PERIOD: u64 = 100_000;

/// Adapts a spec whose sources are the guest's.
pub fn adapt(spec: &mut Spec) -> Result<()> {
    keep_hooks_of_the_container(spec);
    let own_users = IdMap::of_namespace(spec).is_some();
    let process = spec.process_mut().as_mut();
    let process = process.ok_or(Error::Missing("process"))?;
    adapt_process(process)?;
    let terminal = process.terminal() == Some(true);
    let uid = process.user().uid();
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if terminal {
            own_terminals(mount, uid);
        }
        if own_users {
            show_guests(mount);
        }
    }
    Ok(())
}

/// Leaves the hooks that run inside the container. The shim runs those of the host.
fn keep_hooks_of_the_container(spec: &mut Spec) {
    let inside = spec.hooks().as_ref();
    let inside = inside.and_then(|hooks| hooks.start_container().clone());
    let inside = inside.filter(|hooks| !hooks.is_empty()).map(|hooks| {
        let mut kept = Hooks::default();
        kept.set_start_container(Some(hooks));
        kept
    });
    spec.set_hooks(inside);
}

/// Takes the limit of cpu time out of a spec. Returns it as `cpu.max` of the container's cgroup has
/// it (kernel, cgroup-v2.rst). It holds from the start of the container's program on: what makes
/// the container is not the container's to pay for.
pub fn take_cpu_limit(spec: &mut Spec) -> Option<String> {
    let resources = spec.linux_mut().as_mut()?.resources_mut().as_mut()?;
    let cpu = resources.cpu_mut().as_mut()?;
    // libcontainer sets a burst together with the quota.
    if cpu.burst().is_some() {
        return None;
    }
    let quota = cpu.quota().filter(|quota| *quota > 0)?;
    let period = cpu.period().filter(|period| *period > 0);
    cpu.set_quota(None).set_period(None);
    Some(format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD)))
}

/// Adapts a process: the container's init or an additional one.
pub fn adapt_process(process: &mut Process) -> Result<()> {
    process.set_capabilities(Some(whole(process.capabilities().as_ref())?));
    // libcontainer treats an explicit `false` as `true` when it decides when to load the seccomp
    // filter.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    Ok(())
}

/// Returns capabilities in which every set is present. A missing set counts as empty, as in runc.
fn whole(capabilities: Option<&LinuxCapabilities>) -> Result<LinuxCapabilities> {
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
        .map_err(|error| Error::Field {
            field: "process.capabilities",
            reason: error.to_string(),
        })
}

/// Makes new terminals belong to the container's user, who may want to open them by name.
fn own_terminals(mount: &mut Mount, uid: u32) {
    if mount.typ().as_deref() != Some("devpts") || uid == 0 {
        return;
    }
    let mut options = mount.options().clone().unwrap_or_default();
    if !options.iter().any(|option| option.starts_with("uid=")) {
        options.push(format!("uid={uid}"));
        mount.set_options(Some(options));
    }
}

fn show_guests(mount: &mut Mount) {
    let mut known = GUESTS.iter();
    let Some((_, place)) = known.find(|(typ, _)| mount.typ().as_deref() == Some(*typ)) else {
        return;
    };
    let mut options = mount.options().clone().unwrap_or_default();
    options.push("rbind".to_owned());
    mount
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(place.into()))
        .set_options(Some(options));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(text: &str) -> Spec {
        let mut spec = serde_json::from_str(text).unwrap();
        adapt(&mut spec).unwrap();
        spec
    }

    #[test]
    fn limit_of_cpu_time_is_taken_out() {
        let mut spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.0.2","linux":{"resources":{"cpu":
                {"quota":1000,"shares":10,"cpus":"0"}}}}"#,
        )
        .unwrap();
        assert_eq!(take_cpu_limit(&mut spec).unwrap(), "1000 100000");
        let resources = spec.linux().as_ref().unwrap().resources().clone().unwrap();
        let cpu = resources.cpu().clone().unwrap();
        assert_eq!((cpu.quota(), cpu.shares()), (None, Some(10)));
        assert_eq!(take_cpu_limit(&mut spec), None);
    }

    const SMALL: &str = r#"{"ociVersion":"1.0.2","process":{"cwd":"/","args":["true"],
        "user":{"uid":1000,"gid":1000},"terminal":true,"noNewPrivileges":false,"oomScoreAdj":5},
        "mounts":[{"destination":"/dev/pts","type":"devpts","source":"devpts","options":["nosuid"]}],
        "linux":{},"hooks":{}}"#;

    #[test]
    fn explicit_false_of_privileges_is_cleared_and_every_set_of_capabilities_is_there() {
        let spec = adapted(SMALL);
        let process = spec.process().clone().unwrap();
        assert_eq!(process.no_new_privileges(), None);
        assert!(spec.hooks().is_none());
        let bounding = process.capabilities().clone().unwrap().bounding().clone();
        assert_eq!(bounding, Some(Capabilities::new()));
    }

    #[test]
    fn only_the_hook_inside_the_container_goes_to_the_guest() {
        let hooks = r#""hooks":{"createRuntime":[{"path":"/host"}],
            "startContainer":[{"path":"/guest"}]}"#;
        let spec = adapted(&SMALL.replace(r#""hooks":{}"#, hooks));
        let hooks = spec.hooks().clone().unwrap();
        assert!(hooks.create_runtime().is_none());
        let inside = hooks.start_container().clone().unwrap();
        assert_eq!(inside[0].path().to_str(), Some("/guest"));
    }

    #[test]
    fn terminals_are_the_users() {
        let spec = adapted(SMALL);
        let mount = &spec.mounts().clone().unwrap()[0];
        assert_eq!(mount.options().clone().unwrap(), ["nosuid", "uid=1000"]);
    }

    fn with_namespaces(namespaces: &str) -> Spec {
        adapted(&format!(
            r#"{{"ociVersion":"1.1.0","process":{{"cwd":"/","user":{{"uid":0,"gid":0}}}},
            "mounts":[{{"destination":"/sys","type":"sysfs","options":["ro"]}}],"linux":{{
            "namespaces":[{namespaces}],"uidMappings":[{{"containerID":0,"hostID":100000,"size":10}}],
            "gidMappings":[{{"containerID":0,"hostID":100000,"size":10}}]}}}}"#
        ))
    }

    #[test]
    fn sysfs_is_the_guests_in_a_user_namespace_only() {
        let mapped = with_namespaces(r#"{"type":"user"}"#);
        let plain = with_namespaces("");
        let mount = &mapped.mounts().as_ref().unwrap()[0];
        assert_eq!(mount.typ().as_deref(), Some("bind"));
        assert_eq!(mount.options().as_ref().unwrap(), &["ro", "rbind"]);
        assert_eq!(
            plain.mounts().as_ref().unwrap()[0].typ().as_deref(),
            Some("sysfs")
        );
    }
}
