//! Tests the local cluster itself: what its supervisor keeps running, and that nothing is left of
//! it.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};
use caisson_local::{remove, secrets, Cluster, Layout, Programs};
use caisson_tests::{
    command, fixture,
    k8s::{program, TestCluster, LIMIT},
    paths, proc,
};
use rstest::rstest;

#[rstest]
#[case::containerd("containerd", "a")]
#[case::kubelet("kubelet", "c")]
fn program_that_ends_is_started_again_and_pods_go_on(
    #[case] name: &str,
    #[case] letter: &str,
) -> Result<()> {
    let own = Own::start(letter)?;
    own.run("runc", None)?;
    own.run("vm", Some("sandbox"))?;
    let before = program(&own.cluster, name)?;
    proc::kill(before, libc::SIGTERM);
    command::poll("another one", LIMIT, || {
        program(&own.cluster, name)
            .ok()
            .filter(|pid| *pid != before)
    })?;
    for pod in ["runc", "vm"] {
        let exec = ["exec", pod, "--", "cat", "/proc/uptime"];
        command::poll("an exec", LIMIT, || own.cluster.kubectl(&exec).ok())
            .with_context(|| pod.to_owned())?;
        let restarts = "jsonpath={.status.containerStatuses[0].restartCount}";
        assert_eq!(
            own.cluster
                .kubectl(&["get", "pod", pod, "--output", restarts])?,
            "0"
        );
    }
    Ok(())
}

#[test]
fn nothing_is_left_of_a_cluster_whose_supervisor_was_killed() -> Result<()> {
    let settings =
        ["vm/overcommit_memory", "kernel/panic"].map(|name| Path::new("/proc/sys").join(name));
    let own = Own::start("b")?;
    let layout = own.cluster.layout().clone();
    own.run("runc", None)?;
    own.run("vm", Some("sandbox"))?;
    assert!(remove::processes(&layout).len() > 10);
    assert!(!remove::mounts(&layout).is_empty() && !remove::cgroups(&layout).is_empty());
    let supervisor = proc::all().into_iter().find(|p| {
        p.command
            .ends_with(&format!("supervise {}", layout.dir().display()))
    });
    let supervisor = supervisor.context("the supervisor")?.pid;
    let kept: serde_json::Value = serde_json::from_slice(&fs::read(layout.path("sysctl.json"))?)?;
    proc::kill(supervisor, libc::SIGKILL);
    caisson_local::down(&layout)?;
    assert_eq!(traces(&layout), BTreeSet::new());
    if !proc::all().iter().any(|p| p.command.contains("/kubelet ")) {
        for path in settings {
            let name = path.strip_prefix("/proc/sys")?.display().to_string();
            assert_eq!(
                fs::read_to_string(&path)?,
                kept[&name].as_str().unwrap_or_default(),
                "{name}"
            );
        }
    }
    // The second time there is nothing to do.
    caisson_local::down(&layout)
}

#[test]
fn env_files_become_secrets_of_the_namespace() -> Result<()> {
    let shared = TestCluster::shared();
    let dir = tempfile::tempdir()?;
    let (own, further) = (dir.path().join(".env"), dir.path().join("store.env"));
    let namespace = format!("env-{}", std::process::id());
    let kubectl = || shared.kubectl_command();
    fs::write(&further, "# keys\nKEY=a=b c\n")?;
    for value in ["first", "second"] {
        fs::write(&own, format!("TOKEN={value}\n"))?;
        secrets::apply(kubectl, &namespace, &[&own, &further])?;
    }
    let get = |secret: &str, key: &str| {
        let template = format!("go-template={{{{.data.{key}|base64decode}}}}");
        let get = [
            "get",
            "secret",
            secret,
            "--namespace",
            &namespace,
            "--output",
            &template,
        ];
        anyhow::Ok(shared.kubectl(&get)?.ok()?.text())
    };
    assert_eq!(get("env", "TOKEN")?, "second");
    assert_eq!(get("store", "KEY")?, "a=b c");
    fs::write(&own, "no variable's line\n")?;
    let refused = secrets::apply(kubectl, &namespace, &[&own]).unwrap_err();
    assert!(format!("{refused:#}").contains(".env"), "{refused:#}");
    shared.kubectl(&["delete", "namespace", &namespace])?.ok()?;
    Ok(())
}

/// Returns everything that names the cluster. The search does not use the code that removes the
/// cluster.
fn traces(layout: &Layout) -> BTreeSet<String> {
    let names = |dir: &str| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path().display().to_string())
            .collect::<Vec<_>>()
    };
    let dir = layout.dir().display().to_string();
    let mut found: BTreeSet<String> = names("/var/tmp")
        .into_iter()
        .filter(|path| *path == dir)
        .collect();
    found.extend(
        proc::all()
            .into_iter()
            .map(|p| p.command)
            .filter(|c| c.contains(&dir) || c.contains(layout.mark())),
    );
    for place in [
        "/run/netns",
        "/var/lib/cni/results",
        "/var/log/containers",
        "/var/log/pods",
    ] {
        let ours = |path: &String| {
            let target = fs::read_link(path)
                .unwrap_or_default()
                .display()
                .to_string();
            let text = fs::read_to_string(path).unwrap_or_default();
            [path.as_str(), &target, &text]
                .iter()
                .any(|t| t.contains(&dir) || t.contains(layout.mark()))
        };
        found.extend(names(place).into_iter().filter(ours));
    }
    for table in ["/proc/self/mountinfo", "/proc/net/unix"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        found.extend(
            text.lines()
                .filter(|line| line.contains(&format!("{dir}/")))
                .map(str::to_owned),
        );
    }
    for hierarchy in names("/sys/fs/cgroup") {
        found.extend(
            names(&hierarchy)
                .into_iter()
                .filter(|path| path.ends_with(layout.mark())),
        );
    }
    found
}

/// A cluster for one test, removed at the test's end.
struct Own {
    cluster: Cluster,
}

impl Own {
    fn start(name: &str) -> Result<Self> {
        let layout = Layout::new(Path::new(&format!(
            "/var/tmp/csl{}{name}",
            std::process::id()
        )))?;
        let programs = Programs::find(&paths::target())?;
        let up = caisson_local::up(
            &layout,
            &programs,
            &paths::program("k8s-cluster")?,
            &mut |_| {},
        );
        let own = Self {
            cluster: up.inspect_err(|_| drop(caisson_local::down(&layout)))?,
        };
        let dir = tempfile::tempdir_in(layout.dir())?;
        own.cluster
            .import(&fixture::archive("busybox", dir.path())?)?;
        Ok(own)
    }

    /// Starts a sleeping pod and waits until it is ready.
    fn run(&self, name: &str, class: Option<&str>) -> Result<()> {
        let mut pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": { "containers": [{ "name": "main", "image": fixture::full_name("busybox"), "command": ["sleep", "1000"] }] },
        });
        if let Some(class) = class {
            pod["spec"]["runtimeClassName"] = class.into();
        }
        // The default ServiceAccount may take a moment.
        command::poll("the pod to be taken", LIMIT, || {
            self.cluster.apply(&pod.to_string()).ok()
        })?;
        let wait = [
            "wait",
            "--for=condition=Ready",
            "pod",
            name,
            "--timeout=110s",
        ];
        self.cluster.kubectl(&wait).map(drop)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Err(error) = caisson_local::down(self.cluster.layout()) {
            eprintln!("{error:#}");
        }
    }
}
