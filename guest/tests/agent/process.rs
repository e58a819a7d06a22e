//! Tests processes in a running container.

use caisson_protocol::agent::{CreateContainerRequest, Descriptor, ExecRequest, Streams};
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
    process["capabilities"] = json!({"bounding": caps, "effective": caps, "permitted": caps,
        "inheritable": [], "ambient": []});
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
    // The id of a process that has ended is free again.
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

/// Writes a volume of secrets into the share, as the kubelet does. Returns the folder's path in the
/// guest.
fn secrets(guest: &Guest) -> String {
    use std::os::unix::fs::{symlink, PermissionsExt};
    let folder = guest.share.join("secrets");
    std::fs::create_dir_all(folder.join("..1")).unwrap();
    symlink("..1", folder.join("..data")).unwrap();
    for (name, text) in [("user", "anna\n"), ("password", "hunter2\n")] {
        let file = folder.join("..1").join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o400)).unwrap();
        symlink(format!("..data/{name}"), folder.join(name)).unwrap();
    }
    symlink("/etc/passwd", folder.join("link")).unwrap();
    "/run/caisson/shares/pod/secrets".to_owned()
}

fn descriptors(folder: &str, names: &[&str]) -> Vec<Descriptor> {
    let descriptor = |name: &&str| Descriptor {
        directory: folder.to_owned(),
        name: (*name).to_owned(),
        origin: format!("db/{name}"),
        ..Default::default()
    };
    names.iter().map(descriptor).collect()
}

#[tokio::test]
async fn descriptors_are_open_for_init_and_exec_which_could_not_open_the_files() {
    let guest = Guest::start().await;
    let folder = secrets(&guest);
    let wanted = descriptors(&folder, &["password", "user"]);
    let read =
        "cat <&3; cat <&4; ls /proc/self/fd | wc -l; echo x 2>/dev/null >&3 || echo only to read;";
    let by_init = format!("{read} touch /dev/shm/read; sleep 100");
    let by_exec = format!("until test -e /dev/shm/read; do sleep 0.01; done; {read}");
    let mut init = spec(&[]);
    init["process"] = process(&sh(&by_init));
    init["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let (id, streams) = (format!("c{}", number()), outputs());
    let request = CreateContainerRequest {
        container_id: id.clone(),
        spec_json: init.to_string().into_bytes(),
        streams: Some(streams.clone()).into(),
        descriptors: wanted.clone(),
        ..Default::default()
    };
    guest
        .client
        .create_container(ctx(), &request)
        .await
        .unwrap();
    guest.start_container(&id).await.unwrap();
    // Six descriptors are open, with that of the folder that `ls` reads. The exec reads from the
    // start, although the init has read its own descriptors to the end.
    let expected = "hunter2\nanna\n6\nonly to read\n";
    let exec_streams = outputs();
    let mut exec = process(&sh(&by_exec));
    exec["user"] = init["process"]["user"].clone();
    let request = ExecRequest {
        container_id: id.clone(),
        exec_id: "e".to_owned(),
        process_json: exec.to_string().into_bytes(),
        streams: Some(exec_streams.clone()).into(),
        descriptors: wanted,
        ..Default::default()
    };
    guest.client.exec(ctx(), &request).await.unwrap();
    let (_, stdout, stderr) = guest.ended(&id, "e", &exec_streams).await;
    assert_eq!(stdout, expected, "{stderr}");
    guest.kill(&id, "", libc::SIGKILL).await.unwrap();
    let (_, stdout, stderr) = guest.ended(&id, "", &streams).await;
    assert_eq!(stdout, expected, "{stderr}");
    guest.delete(&id).await.unwrap();
}

#[tokio::test]
async fn descriptor_that_cannot_be_is_refused_by_its_origin() {
    let guest = Guest::start().await;
    let folder = secrets(&guest);
    for (name, message) in [
        ("nosuch", "open secret db/nosuch: No such file or directory"),
        ("..data", "open secret db/..data: it is not a file"),
        ("link", "open secret db/link: No such file or directory"),
    ] {
        let request = CreateContainerRequest {
            container_id: format!("c{}", number()),
            spec_json: spec(&["true"]).to_string().into_bytes(),
            descriptors: descriptors(&folder, &[name]),
            ..Default::default()
        };
        let failed = guest.client.create_container(ctx(), &request).await;
        let (_, said) = refused(failed.unwrap_err());
        assert!(said.contains(message), "{said}");
    }
}
