//! Tests what the containers of a pod share.

use caisson_protocol::agent::{CreateContainerRequest, Memory, Owner, PidNamespace};
use serde_json::json;

use crate::guest::*;

/// Returns the plan of a container in the pod's pid namespace.
fn sharing_pids(args: &[&str]) -> CreateContainerRequest {
    sharing_pids_of("", args)
}

/// Returns the plan of a container in the pid namespace of another one.
fn sharing_pids_of(other: &str, args: &[&str]) -> CreateContainerRequest {
    let pids = PidNamespace {
        container_id: other.to_owned(),
        ..Default::default()
    };
    CreateContainerRequest {
        pid_namespace: Some(pids).into(),
        ..planned("", &spec(args), &outputs())
    }
}

#[tokio::test]
async fn containers_that_share_pids_see_each_other_below_pause() {
    let guest = Guest::start().await;
    let first = guest
        .idle_planned(CreateContainerRequest {
            streams: None.into(),
            ..sharing_pids(&["sleep", "1234"])
        })
        .await;
    let second = sharing_pids(&sh(
        "tr '\\0' ' ' </proc/1/cmdline; echo; ps | grep '[s]leep 1234' | wc -l",
    ));
    assert_eq!(
        guest.run_planned(second).await,
        (0, "/pause \n1\n".to_string(), String::new())
    );
    // The namespace outlives its first container.
    guest.kill(&first, "", libc::SIGKILL).await.unwrap();
    guest.wait(&first, "").await.unwrap();
    guest.delete(&first).await.unwrap();
    let third = sharing_pids(&sh(
        "ps | grep '[s]leep 1234' | wc -l; ls /proc/1/root/ 2>&1 | grep -c denied",
    ));
    assert_eq!(guest.run_planned(third).await.1, "0\n1\n");
}

#[tokio::test]
async fn container_that_shares_pids_ends_with_its_init() {
    let guest = Guest::start().await;
    let script = "(sleep 4321 </dev/null >/dev/null 2>&1 &); sleep 0.5";
    let id = format!("c{}", number());
    let request = CreateContainerRequest {
        container_id: id.clone(),
        streams: None.into(),
        ..sharing_pids(&sh(script))
    };
    let pid = guest.create_planned(&request).await.unwrap();
    assert!(pid > 1);
    guest.start_container(&id).await.unwrap();
    guest.wait(&id, "").await.unwrap();
    let other = sharing_pids(&sh(
        "for i in 1 2 3 4 5 6 7 8 9 10; do ps | grep -q '[s]leep 4321' || exit 0; sleep 0.2; done; exit 1",
    ));
    assert_eq!(guest.run_planned(other).await.0, 0);
    guest.delete(&id).await.unwrap();
}

#[tokio::test]
async fn pause_reaps_what_is_orphaned() {
    let guest = Guest::start().await;
    let script = "(sleep 0.2 &); sleep 1; ps -o stat,comm | grep -c '^Z'";
    assert_eq!(guest.run_planned(sharing_pids(&sh(script))).await.1, "0\n");
}

#[tokio::test]
async fn pod_without_shared_pids_has_no_pause() {
    let guest = Guest::start().await;
    guest.run(&spec(&["true"])).await;
    assert!(!guest.log().contains("namespaces of the pod made"));
}

#[tokio::test]
async fn container_in_the_pids_of_another_sees_its_processes() {
    let guest = Guest::start().await;
    let target = guest.idle(&spec(&["sleep", "2345"])).await;
    let script = sh("tr '\\0' ' ' </proc/1/cmdline");
    let first = sharing_pids_of(&target, &script);
    assert_eq!(guest.run_planned(first).await.1, "sleep 2345 ");
    guest.kill(&target, "", libc::SIGKILL).await.unwrap();
    guest.wait(&target, "").await.unwrap();
    guest.delete(&target).await.unwrap();
}

#[tokio::test]
async fn container_in_the_pids_of_one_that_shares_the_pods_is_below_pause() {
    let guest = Guest::start().await;
    let target = guest.idle_planned(sharing_pids(&["sleep", "3456"])).await;
    let script = sh("tr '\\0' ' ' </proc/1/cmdline; ps | grep '[s]leep 3456' | wc -l");
    let second = sharing_pids_of(&target, &script);
    assert_eq!(guest.run_planned(second).await.1, "/pause 1\n");
    guest.kill(&target, "", libc::SIGKILL).await.unwrap();
    guest.wait(&target, "").await.unwrap();
    guest.delete(&target).await.unwrap();
}

#[tokio::test]
async fn container_in_the_pids_of_one_that_is_not_there_is_refused_by_its_name() {
    let guest = Guest::start().await;
    let request = CreateContainerRequest {
        container_id: format!("c{}", number()),
        ..sharing_pids_of("nosuch", &["true"])
    };
    let failed = guest.create_planned(&request).await;
    assert_eq!(refused(failed.unwrap_err()).1, "container nosuch not found");
}

/// Runs a script with the pod's memory `work` at /work.
async fn run_with_memory(guest: &Guest, script: &str) -> String {
    let mut spec = spec(&sh(script));
    let mount = json!({"destination": "/work", "type": "bind",
        "source": "/run/caisson/memory/work", "options": ["rbind", "rw"]});
    spec["mounts"].as_array_mut().unwrap().push(mount);
    let (id, streams) = (format!("c{}", number()), outputs());
    let request = CreateContainerRequest {
        container_id: id.clone(),
        spec_json: spec.to_string().into_bytes(),
        streams: Some(streams.clone()).into(),
        memory: vec![Memory {
            name: "work".to_string(),
            size_bytes: 1 << 20,
            owner: Some(Owner {
                mode: 0o2770,
                gid: 2000,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    guest
        .client
        .create_container(ctx(), &request)
        .await
        .unwrap();
    let (_, stdout, stderr) = guest.started(&id, &streams).await;
    guest.delete(&id).await.unwrap();
    stdout + &stderr
}

#[tokio::test]
async fn memory_of_the_pod_has_its_size_and_owner_and_outlives_a_container() {
    let guest = Guest::start().await;
    let script = "stat -c '%a %g' /work; echo kept >/work/x; df -k /work | awk 'END {print $2}'";
    assert_eq!(run_with_memory(&guest, script).await, "2770 2000\n1024\n");
    assert_eq!(run_with_memory(&guest, "cat /work/x").await, "kept\n");
}
