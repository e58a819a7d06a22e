//! Processes in a running container.

use caisson_protocol::agent::Streams;
use serde_json::json;

use crate::guest::*;

#[tokio::test]
async fn exec_has_its_own_user_rights_environment_and_directory() {
    let guest = Guest::start().await;
    let mut init = spec(&["sleep", "100"]);
    init["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    init["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]});
    let id = guest.idle(&init).await;
    let mut process = process(&sh(
        "id -u; id -g; id -G; pwd; echo $HOME $ONLY $FOO; ulimit -n; hostname; tr '\\0' ' ' </proc/1/cmdline; echo; \
         grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status | tr -s '\\t ' ' '; mkdir /tmp/x 2>/dev/null || echo no mkdir",
    ));
    process["user"] = json!({"uid": 0, "gid": 3, "additionalGids": [8, 9]});
    process["env"] = json!(["PATH=/bin", "ONLY=here"]);
    process["cwd"] = json!("/etc");
    process["noNewPrivileges"] = json!(false);
    let caps = json!(["CAP_SYS_ADMIN", "CAP_KILL"]);
    process["capabilities"] = json!({"bounding": caps, "effective": caps, "permitted": caps});
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 100, "soft": 99}]);
    let (status, stdout, stderr) = guest.run_in(&id, &process).await;
    assert_eq!(
        stdout,
        "0\n3\n3 8 9\n/etc\n/root here\n99\nbox\nsleep 100 \n\
         CapEff: 0000000000200020\nNoNewPrivs: 0\nSeccomp: 2\nno mkdir\n",
        "{stderr}"
    );
    assert_eq!(status, 0);
    let (_, stdout, _) = guest
        .run_in(&id, &crate::guest::process(&["cat", "/proc/self/cgroup"]))
        .await;
    let (_, init, _) = guest
        .run_in(&id, &crate::guest::process(&["cat", "/proc/1/cgroup"]))
        .await;
    assert_eq!(stdout, init);
    guest.kill(&id, "", libc::SIGKILL).await.unwrap();
    guest.wait(&id, "").await.unwrap();
    guest.delete(&id).await.unwrap();
}

#[tokio::test]
async fn exec_that_cannot_start_fails_as_with_runc() {
    let guest = Guest::start().await;
    let id = guest.idle(&spec(&["sleep", "100"])).await;
    let mut lost = process(&["true"]);
    lost["cwd"] = json!("/x");
    for (process, message) in [
        (
            process(&["nosuch"]),
            "exec: \"nosuch\": executable file not found in $PATH",
        ),
        (
            process(&["/bin/no-right"]),
            "exec: \"/bin/no-right\": permission denied",
        ),
        (
            lost,
            "chdir to cwd (\"/x\") set in config.json failed: no such file or directory",
        ),
    ] {
        let failed = guest.exec(&id, "e", &process, &Streams::new()).await;
        assert_eq!(refused(failed.unwrap_err()).1, message);
    }
    let (status, ..) = guest.run_in(&id, &process(&sh("exit 7"))).await;
    assert_eq!(status, 7);
    guest.kill(&id, "", libc::SIGKILL).await.unwrap();
    guest.wait(&id, "").await.unwrap();
    let late = guest
        .exec(&id, "late", &process(&["true"]), &Streams::new())
        .await;
    assert!(late.unwrap_err().to_string().contains("stopped"));
    guest.delete(&id).await.unwrap();
}

#[tokio::test]
async fn execs_side_by_side_all_end_as_they_should() {
    let guest = Guest::start().await;
    let id = guest.idle(&spec(&["sleep", "100"])).await;
    let count = if guest.is_fake() { 100 } else { 30 };
    let runs = (0..count).map(|n| {
        let (guest, id) = (&guest, &id);
        async move {
            let script = format!("echo {n}; exit {n}");
            guest.run_in(id, &process(&sh(&script))).await
        }
    });
    let ended = futures_util::future::join_all(runs).await;
    for (n, (status, stdout, _)) in ended.into_iter().enumerate() {
        assert_eq!((status, stdout), (n as u32, format!("{n}\n")));
    }
    guest.kill(&id, "", libc::SIGKILL).await.unwrap();
    guest.wait(&id, "").await.unwrap();
    guest.delete(&id).await.unwrap();
}

#[tokio::test]
async fn exec_killed_has_128_and_the_signal() {
    let guest = Guest::start().await;
    let id = guest.idle(&spec(&["sleep", "100"])).await;
    guest
        .exec(&id, "e", &process(&["sleep", "100"]), &Streams::new())
        .await
        .unwrap();
    guest.kill(&id, "e", libc::SIGTERM).await.unwrap();
    assert_eq!(guest.wait(&id, "e").await.unwrap(), 143);
    // An id whose process has ended is free again.
    guest
        .exec(&id, "e", &process(&["sleep", "100"]), &Streams::new())
        .await
        .unwrap();
    let taken = guest
        .exec(&id, "e", &process(&["true"]), &Streams::new())
        .await;
    assert!(taken.unwrap_err().to_string().contains("exists already"));
    guest.kill(&id, "", libc::SIGKILL).await.unwrap();
    assert_eq!(guest.wait(&id, "e").await.unwrap(), 137);
    guest.wait(&id, "").await.unwrap();
    guest.delete(&id).await.unwrap();
}
