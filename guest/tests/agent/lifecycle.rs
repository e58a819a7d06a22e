//! Tests containers from create to delete.

use caisson_protocol::agent::*;
use serde_json::json;
use ttrpc::Code;

use crate::guest::*;

#[tokio::test]
async fn configure_answers_with_version_and_kernel() {
    let guest = Guest::start().await;
    let answer = guest
        .client
        .configure(ctx(), &ConfigureRequest::new())
        .await
        .unwrap();
    assert!(!answer.kernel_release.is_empty());
    assert!(!answer.agent_version.is_empty());
}

#[tokio::test]
async fn container_runs_to_its_exit_status_with_its_output() {
    let guest = Guest::start().await;
    let ended = guest
        .run(&spec(&sh("echo out; echo err >&2; exit 42")))
        .await;
    assert_eq!(ended, (42, "out\n".to_string(), "err\n".to_string()));
}

#[tokio::test]
async fn container_killed_has_128_and_the_signal() {
    let guest = Guest::start().await;
    for (signal, status) in [(libc::SIGKILL, 137), (libc::SIGTERM, 143)] {
        let spec = spec(&sh(
            "trap 'trap - TERM; exit 143' TERM; while :; do sleep 0.1; done",
        ));
        let id = guest.idle(&spec).await;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        guest.kill(&id, "", signal).await.unwrap();
        assert_eq!(guest.wait(&id, "").await.unwrap(), status);
        let (code, text) = refused(guest.kill(&id, "", signal).await.unwrap_err());
        assert_eq!(code, Code::NOT_FOUND);
        assert!(text.contains("already finished"), "{text}");
        guest.delete(&id).await.unwrap();
    }
}

#[tokio::test]
async fn container_deleted_before_its_start_is_gone() {
    let guest = Guest::start().await;
    let id = format!("c{}", number());
    let spec = spec(&["true"]);
    guest.create(&id, &spec, &Streams::new()).await.unwrap();
    let (code, _) = refused(guest.create(&id, &spec, &Streams::new()).await.unwrap_err());
    assert_eq!(code, Code::ALREADY_EXISTS);
    guest.delete(&id).await.unwrap();
    let (code, _) = refused(guest.delete(&id).await.unwrap_err());
    assert_eq!(code, Code::NOT_FOUND);
    guest.create(&id, &spec, &Streams::new()).await.unwrap();
    guest.delete(&id).await.unwrap();
}

#[tokio::test]
async fn container_running_is_not_deleted() {
    let guest = Guest::start().await;
    let id = guest.idle(&spec(&["sleep", "100"])).await;
    let (code, _) = refused(guest.delete(&id).await.unwrap_err());
    assert_eq!(code, Code::FAILED_PRECONDITION);
    guest.kill(&id, "", libc::SIGKILL).await.unwrap();
    assert_eq!(guest.wait(&id, "").await.unwrap(), 137);
    guest.delete(&id).await.unwrap();
}

#[tokio::test]
async fn container_with_a_program_that_is_not_there_fails_as_with_runc_and_leaves_nothing() {
    let guest = Guest::start().await;
    for (program, message) in [
        (
            "nosuch",
            "exec: \"nosuch\": executable file not found in $PATH",
        ),
        (
            "/nosuch",
            "exec: \"/nosuch\": stat /nosuch: no such file or directory",
        ),
        (
            "/bin/no-right",
            "exec: \"/bin/no-right\": permission denied",
        ),
    ] {
        let id = format!("c{}", number());
        let failed = guest.create(&id, &spec(&[program]), &Streams::new()).await;
        let (code, text) = refused(failed.unwrap_err());
        assert_eq!((code, text.as_str()), (Code::INTERNAL, message));
        // The id is free again.
        guest
            .create(&id, &spec(&["true"]), &Streams::new())
            .await
            .unwrap();
        guest.delete(&id).await.unwrap();
    }
}

#[tokio::test]
async fn container_with_a_bad_spec_names_the_field() {
    let guest = Guest::start().await;
    for (field, spec) in [
        (
            "process",
            json!({"ociVersion": "1.0.2", "root": {"path": "/run/caisson/shares/pod/rootfs"}, "linux": {}}),
        ),
        ("linux", {
            let mut spec = spec(&["true"]);
            spec.as_object_mut().unwrap().remove("linux");
            spec
        }),
        ("root", {
            let mut spec = spec(&["true"]);
            spec.as_object_mut().unwrap().remove("root");
            spec
        }),
    ] {
        let id = format!("c{}", number());
        let (_, text) = refused(guest.create(&id, &spec, &Streams::new()).await.unwrap_err());
        assert!(text.contains(field), "{text}");
    }
    for id in ["", "a/b", "..", &"x".repeat(4096)] {
        let (code, text) = refused(
            guest
                .create(id, &spec(&["true"]), &Streams::new())
                .await
                .unwrap_err(),
        );
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(text.starts_with("container_id"), "{text}");
    }
}

#[tokio::test]
async fn container_has_what_its_spec_says() {
    let guest = Guest::start().await;
    let mut spec = spec(&sh(
        "id -u; id -g; id -G; pwd; echo $HOME $FOO; hostname; ulimit -n; ulimit -H -n; umask; \
         grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status | tr -s '\\t ' ' '; \
         cat /proc/sys/kernel/msgmax; wc -c </proc/interrupts; \
         echo 1 2>/dev/null >/proc/sys/kernel/msgmax || echo read-only; cat /mnt/deep/file; \
         touch /mnt/deep/new 2>/dev/null || echo no write",
    ));
    let data = guest.share.join("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("file"), "from the host\n").unwrap();
    spec["process"]["user"] =
        json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 7], "umask": 0o27});
    spec["process"]["cwd"] = json!("/home/app/made/here");
    spec["linux"]["sysctl"] = json!({"kernel.msgmax": "4321"});
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]});
    spec["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/mnt/deep", "type": "bind",
        "source": "/run/caisson/shares/pod/data", "options": ["rbind", "ro"]}));
    let (status, stdout, stderr) = guest.run(&spec).await;
    assert_eq!(
        stdout,
        "1000\n1001\n1001 5 7\n/home/app/made/here\n/home/app bar\nbox\n256\n512\n0027\n\
         CapEff: 0000000000000000\nCapBnd: 00000000000004e1\nNoNewPrivs: 1\nSeccomp: 2\n4321\n0\nread-only\n\
         from the host\nno write\n",
        "{stderr}"
    );
    assert_eq!(status, 0);
}

#[tokio::test]
async fn container_paused_stands_still_until_resumed() {
    let guest = Guest::start().await;
    let id = guest
        .idle(&spec(&sh(
            "n=0; while :; do n=$((n+1)); echo $n >/tmp/now; sleep 0.05; done",
        )))
        .await;
    let now = || std::fs::read_to_string(guest.share.join("rootfs/tmp/now")).unwrap_or_default();
    while now().is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    guest.client.pause(ctx(), &container(&id)).await.unwrap();
    let before = now();
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    assert_eq!(now(), before);
    let (code, _) = refused(
        guest
            .client
            .pause(ctx(), &container(&id))
            .await
            .unwrap_err(),
    );
    assert_eq!(code, Code::FAILED_PRECONDITION);
    guest.client.resume(ctx(), &container(&id)).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    assert_ne!(now(), before);
    // Frozen processes can also be killed.
    guest.client.pause(ctx(), &container(&id)).await.unwrap();
    guest.kill(&id, "", libc::SIGKILL).await.unwrap();
    assert_eq!(guest.wait(&id, "").await.unwrap(), 137);
    guest.delete(&id).await.unwrap();
}

#[tokio::test]
async fn processes_of_a_container_are_listed_and_killed_together() {
    let guest = Guest::start().await;
    let id = guest.idle(&spec(&sh("sleep 100 & sleep 100 & wait"))).await;
    let pids = loop {
        let answer = guest
            .client
            .list_processes(ctx(), &container(&id))
            .await
            .unwrap();
        if answer.pids.len() == 3 {
            break answer.pids;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(pids.iter().all(|pid| *pid > 1));
    let request = KillRequest {
        container_id: id.clone(),
        signal: libc::SIGKILL as u32,
        all: true,
        ..Default::default()
    };
    guest.client.kill(ctx(), &request).await.unwrap();
    assert_eq!(guest.wait(&id, "").await.unwrap(), 137);
    guest.delete(&id).await.unwrap();
}

#[tokio::test]
async fn limits_are_set_updated_and_seen_in_the_stats() {
    let guest = Guest::start().await;
    if guest.is_fake() {
        // The host's cgroup v2 tree has no controllers.
        return;
    }
    let mut spec = spec(&["sleep", "100"]);
    spec["linux"]["resources"] = json!({"memory": {"limit": 33554432}, "pids": {"limit": 10},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000}});
    let id = guest.idle(&spec).await;
    let stats = guest.client.stats(ctx(), &container(&id)).await.unwrap();
    assert_eq!((stats.memory_max, stats.pids_max), (33554432, 10));
    assert!(stats.memory_current > 0 && stats.pids_current == 1);
    assert!(stats.cpu_stat.contains_key("usage_usec"));
    let request = UpdateRequest {
        container_id: id.clone(),
        resources_json: json!({"memory": {"limit": 67108864}, "pids": {"limit": 20}})
            .to_string()
            .into_bytes(),
        ..Default::default()
    };
    guest.client.update(ctx(), &request).await.unwrap();
    let stats = guest.client.stats(ctx(), &container(&id)).await.unwrap();
    assert_eq!((stats.memory_max, stats.pids_max), (67108864, 20));
    guest.kill(&id, "", libc::SIGKILL).await.unwrap();
    guest.wait(&id, "").await.unwrap();
    guest.delete(&id).await.unwrap();
}

#[tokio::test]
async fn devices_of_the_spec_are_there_and_others_are_not_opened() {
    let guest = Guest::start().await;
    let mut spec = spec(&sh(
        "stat -c '%F %t:%T %a' /dev/special; mknod /tmp/raw-$$ b 7 0 && echo made; \
         cat /tmp/raw-$$ 2>&1 | sed 's/.*: //'; rm /tmp/raw-$$; echo x >/dev/null && echo written",
    ));
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(["CAP_MKNOD"]);
    }
    spec["linux"]["devices"] = json!([{"path": "/dev/special", "type": "c", "major": 10,
        "minor": 229, "fileMode": 0o640, "uid": 0, "gid": 0}]);
    spec["linux"]["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
    let (_, stdout, stderr) = guest.run(&spec).await;
    let opened = match guest.is_fake() {
        // There are no limits on a host whose cgroup v2 tree has no controllers.
        true => stdout.lines().nth(2).unwrap_or_default(),
        false => "Operation not permitted",
    };
    assert_eq!(
        stdout,
        format!("character special file a:e5 640\nmade\n{opened}\nwritten\n"),
        "{stderr}"
    );
}

#[tokio::test]
async fn container_out_of_memory_is_an_event() {
    let guest = Guest::start().await;
    if guest.is_fake() {
        // The host's cgroup v2 tree has no controllers.
        return;
    }
    let mut spec = spec(&sh("x=0123456789abcdef; while :; do x=$x$x; done"));
    spec["linux"]["resources"] = json!({"memory": {"limit": 8388608, "swap": 8388608}});
    let id = guest.idle(&spec).await;
    assert_eq!(guest.wait(&id, "").await.unwrap(), 137);
    let event = guest.client.next_event(ctx(), &Empty::new()).await.unwrap();
    assert_eq!(event.oom().container_id, id);
    guest.delete(&id).await.unwrap();
}

#[tokio::test]
async fn containers_many_leave_nothing_behind() {
    let guest = Guest::start().await;
    for round in 0..5 {
        let (status, ..) = guest.run(&spec(&sh(&format!("exit {round}")))).await;
        assert_eq!(status, round);
    }
    let specs: Vec<_> = (0..5).map(|n| spec(&sh(&format!("exit {n}")))).collect();
    let (a, b, c) = tokio::join!(
        guest.run(&specs[1]),
        guest.run(&specs[2]),
        guest.run(&specs[3])
    );
    assert_eq!((a.0, b.0, c.0), (1, 2, 3));
    assert!(!guest.log().contains(" ERROR "), "{}", guest.log());
}
