//! Tests Deployments: what the RuntimeClass changes in one, and a rolling update.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use caisson_tests::{
    command,
    k8s::{set_class, Namespace, TestCluster, LIMIT},
    Runtime,
};
use rstest::rstest;
use serde_json::{json, Value};

/// A script that prints what a program can see of its surroundings, one fact a line. It leaves out
/// the limits that depend on the size of the machine, those of the daemon that made the container,
/// and `/dev/kcore`, whose existence depends on the kernel's build options. Names and addresses of
/// the pod are replaced by fixed ones.
const INVENTORY: &str = r#"
cd /
echo "id $(id)"; echo "pwd $(pwd)"; echo "umask $(umask)"; echo "host $(hostname | sed "s/$POD/POD/")"
env | grep -v -E '^(HOSTNAME|POD|IP|SHLVL|_|PWD|OLDPWD)=' | sort | sed 's/^/env /'
sed "s/$POD/POD/; s/$IP/IP/" /etc/hosts | sed 's/^/hosts /'
sed 's/^/resolv /' /etc/resolv.conf
grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Gid|Groups)' /proc/self/status | sed 's/^/status /'
ulimit -a | grep -v -E "processes|signals|open files" | sed "s/^/ulimit /"
find /config /secret /scratch /info -follow -type f | sort | while read f; do echo "file $(echo $f | sed 's#/[.][.][0-9_.]*/#/DATE/#') $(stat -L -c '%a %u %g' $f) $(md5sum < $f)"; done
for d in /config /secret /scratch /info /tmp /dev/shm /proc /sys /; do echo "dir $d $(stat -L -c '%a %u %g' $d)"; done
ls /dev | sort | grep -v kcore | sed 's/^/dev /'
awk '{ print "mount", $2 }' /proc/mounts | grep -v -E '^mount /(sys|proc|dev)' | sort
awk 'NR == 1 { print "namespace", $1 }' /proc/self/uid_map
cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null | sed 's/^/memory /'
echo "write $(touch /etc/new 2>&1 && echo yes)"; echo "ip $(ip -o -4 addr show eth0 | sed "s/$IP/IP/; s/^[0-9]*: //; s/valid_lft.*//")"
echo "route $(ip route | sed "s/$IP/IP/")"
echo "kernel $(uname -r)"
"#;

#[test]
fn deployment_with_the_class_differs_in_nothing_but_the_kernel() -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    namespace.cluster().image("busybox-app")?;
    namespace.apply(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "settings" },
        "data": { "colour": "blue", "nested.conf": "a=1\nb=2\n" },
    }))?;
    namespace.apply(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "keys" }, "stringData": { "token": "s3cret" },
    }))?;
    let runc = inventory(&namespace, Runtime::Runc)?;
    let caisson = inventory(&namespace, Runtime::Caisson)?;
    assert!(runc.len() > 60, "{runc:#?}");
    let kind = |line: &&String| line.starts_with("kernel ");
    let differing: Vec<_> = runc
        .symmetric_difference(&caisson)
        .filter(|line| !kind(line))
        .collect();
    assert!(differing.is_empty(), "{differing:#?}");
    assert_ne!(runc.iter().find(kind), caisson.iter().find(kind));
    Ok(())
}

fn inventory(namespace: &Namespace<'_>, runtime: Runtime) -> Result<BTreeSet<String>> {
    let name = runtime.handler();
    let mut spec = json!({
        "terminationGracePeriodSeconds": 1,
        "securityContext": { "fsGroup": 2000, "supplementalGroups": [3000] },
        "containers": [{
            "name": "main",
            "image": "localhost/busybox-app:test",
            "command": ["sh", "-c", format!("{INVENTORY}echo done; sleep 1000")],
            "workingDir": "/tmp",
            "env": [
                { "name": "PLAIN", "value": "value" },
                { "name": "COLOUR", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "colour" } } },
                { "name": "TOKEN", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "token" } } },
                { "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
                { "name": "CPUS", "valueFrom": { "resourceFieldRef": { "resource": "limits.cpu" } } },
            ],
            "resources": { "limits": { "cpu": "1", "memory": "128Mi" }, "requests": { "cpu": "10m", "memory": "16Mi" } },
            "securityContext": { "allowPrivilegeEscalation": false, "runAsNonRoot": true, "runAsUser": 1000,
                "seccompProfile": { "type": "RuntimeDefault" }, "capabilities": { "drop": ["NET_RAW"] } },
            "volumeMounts": [
                { "name": "config", "mountPath": "/config" },
                { "name": "secret", "mountPath": "/secret", "readOnly": true },
                { "name": "scratch", "mountPath": "/scratch" },
                { "name": "info", "mountPath": "/info" },
            ],
        }],
        "volumes": [
            { "name": "config", "configMap": { "name": "settings" } },
            { "name": "secret", "secret": { "secretName": "keys", "defaultMode": 0o440 } },
            { "name": "scratch", "emptyDir": {} },
            { "name": "info", "downwardAPI": { "items": [{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels['kind']" } }] } },
        ],
    });
    set_class(&mut spec, runtime);
    namespace.apply(&deployment(
        name,
        1,
        json!({ "app": name, "kind": "same" }),
        spec,
    ))?;
    namespace.rolled_out(&format!("deployment/{name}"))?;
    let pods = namespace.pods(&format!("app={name}"))?;
    let pod = namespace.existing(&pods[0]);
    pod.wait_for_log("done")?;
    Ok(pod.logs()?.lines().map(str::to_owned).collect())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn rolling_update_under_load_fails_no_request(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    namespace.cluster().image("busybox")?;
    let client = namespace.pod("client").runtime(Runtime::Runc);
    let client = client.sh(
        "until timeout 5 wget -q -O /dev/null http://web/version; do sleep 0.2; done; \
         while :; do timeout 20 wget -q -O - http://web/version || echo failed; sleep 0.05; done",
    );
    namespace.apply(&versioned("one", runtime))?;
    namespace.service("web", "web")?;
    namespace.rolled_out("deployment/web")?;
    let client = client.start()?;
    client.wait_for_log("one")?;
    namespace.apply(&versioned("two", runtime))?;
    namespace.rolled_out("deployment/web")?;
    // Once both old pods are gone, they have answered all their requests.
    command::poll("the old pods' end", LIMIT, || {
        let pods = namespace.get("pods", "{.items[*].metadata.name}").ok()?;
        (pods
            .split(' ')
            .filter(|name| name.starts_with("web-"))
            .count()
            == 2)
            .then_some(())
    })?;
    std::thread::sleep(Duration::from_secs(2));
    let log = client.logs()?;
    let count = |word: &str| log.lines().filter(|line| *line == word).count();
    assert_eq!(count("failed"), 0, "{log}");
    assert!(count("one") > 10 && count("two") > 10, "{log}");
    assert_eq!(log.lines().last(), Some("two"));
    Ok(())
}

/// Returns a Deployment of two pods that serve a version. New pods are ready before the old ones
/// go, and old ones keep answering until they are out of the Service.
fn versioned(version: &str, runtime: Runtime) -> Value {
    let server =
        format!("mkdir -p /www; echo {version} > /www/version; exec httpd -f -h /www -p 8080");
    let mut spec = json!({
        "terminationGracePeriodSeconds": 8,
        "containers": [{
            "name": "main",
            "image": "localhost/busybox:test",
            "command": ["sh", "-c", server],
            "readinessProbe": { "httpGet": { "path": "/version", "port": 8080 }, "periodSeconds": 1 },
            "lifecycle": { "preStop": { "sleep": { "seconds": 5 } } },
        }],
    });
    set_class(&mut spec, runtime);
    let mut deployment = deployment("web", 2, json!({ "app": "web" }), spec);
    deployment["spec"]["strategy"] =
        json!({ "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } });
    deployment
}

fn deployment(name: &str, replicas: u32, labels: Value, spec: Value) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": labels }, "spec": spec },
        },
    })
}
