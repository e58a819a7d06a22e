//! Tests plugging in devices.
//!
//! A VM that was booted outside of the tests must have a squashfs disk `skill1` with a file
//! `hello`, no disk `nosuch`, and for `modules_*` a disk with serial `modules`.

use caisson_protocol::agent::{
    attach_request::Device, detach_request, show_request::Source, DetachRequest, Disk, Share,
    ShowRequest,
};
use serde_json::json;

use crate::guest::*;

fn disk(serial: &str) -> Disk {
    Disk {
        serial: serial.to_string(),
        fs_type: "squashfs".to_string(),
        read_only: true,
        ..Default::default()
    }
}

#[tokio::test]
async fn disk_attached_twice_is_there_read_only_and_detached() {
    let mut guest = Guest::start().await;
    if guest.is_fake() {
        let dir = guest.share.with_file_name("skill1");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hello"), "skill\n").unwrap();
    }
    for _ in 0..2 {
        guest.attach(Device::Disk(disk("skill1"))).await.unwrap();
    }
    let mut spec = spec(&sh(
        "cat /opt/skills/one/hello; touch /opt/skills/one/x || echo no write; sleep 1",
    ));
    spec["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/opt/skills/one", "type": "bind",
        "source": "/run/caisson/disks/skill1", "options": ["bind", "ro"]}));
    let (status, stdout, stderr) = guest.run(&spec).await;
    assert_eq!(
        (status, stdout.as_str()),
        (0, "skill\nno write\n"),
        "{stderr}"
    );
    let request = DetachRequest {
        device: Some(detach_request::Device::Disk(disk("skill1"))),
        ..Default::default()
    };
    for _ in 0..2 {
        guest.client.detach(ctx(), &request).await.unwrap();
    }
    let id = format!("c{}", number());
    let gone = guest.create(&id, &spec, &Default::default()).await;
    assert!(gone.is_err(), "the disk is not mounted any more");
}

#[tokio::test]
async fn device_that_does_not_come_is_told_in_time() {
    let mut guest = Guest::start().await;
    let share = Share {
        tag: "nosuch".to_string(),
        ..Default::default()
    };
    for device in [Device::Disk(disk("nosuch")), Device::Share(share)] {
        let (_, text) = refused(guest.attach(device).await.unwrap_err());
        assert!(text.contains("nosuch"), "{text}");
    }
}

#[tokio::test]
async fn device_with_a_name_that_leads_elsewhere_is_refused() {
    let mut guest = Guest::start().await;
    for name in ["", "..", "../pod", "a/b"] {
        let refused = guest.attach(Device::Disk(disk(name))).await;
        assert!(refused.is_err(), "{name:?}");
    }
}

#[tokio::test]
async fn modules_that_the_initramfs_has_not_come_from_the_disk() {
    let guest = Guest::start().await;
    if guest.is_fake() {
        // The host handles its own modules.
        return;
    }
    // An interface whose type is a module: the kernel calls modprobe for `rtnl-link-dummy`.
    let mut spec = spec(&sh(
        "ip link add d0 type dummy && ip link show d0 | head -1 | cut -d: -f2",
    ));
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(["CAP_NET_ADMIN", "CAP_SYS_MODULE"]);
    }
    let (status, stdout, stderr) = guest.run(&spec).await;
    assert_eq!((status, stdout.as_str()), (0, " d0\n"), "{stderr}");
}

#[tokio::test]
async fn disk_is_shown_in_a_running_container_and_hidden_again() {
    let mut guest = Guest::start().await;
    if guest.is_fake() {
        let dir = guest.share.with_file_name("skill1");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hello"), "skill\n").unwrap();
    }
    guest.attach(Device::Disk(disk("skill1"))).await.unwrap();
    let id = guest.idle(&spec(&["sleep", "100"])).await;
    let request = |shown| ShowRequest {
        container_id: id.clone(),
        source: Some(Source::Disk("skill1".to_owned())),
        target: "/opt/skills/late".to_owned(),
        shown,
        ..Default::default()
    };
    for _ in 0..2 {
        guest.client.show(ctx(), &request(true)).await.unwrap();
    }
    let look = "cat /opt/skills/late/hello; touch /opt/skills/late/x || echo no write; grep -c /opt/skills/late /proc/mounts";
    let (_, stdout, stderr) = guest.run_in(&id, &process(&sh(look))).await;
    assert_eq!(stdout, "skill\nno write\n1\n", "{stderr}");

    // The disk may be hidden again for a moment when the process looks for it.
    let enter = "until cd /opt/skills/late; do sleep 0.01; done; sleep 100";
    let user = process(&sh(enter));
    guest
        .exec(&id, "user", &user, &Default::default())
        .await
        .unwrap();
    let busy = async {
        loop {
            // Retries until the process has started.
            match guest.client.show(ctx(), &request(false)).await {
                Err(error) => break refused(error).1,
                Ok(_) => guest
                    .client
                    .show(ctx(), &request(true))
                    .await
                    .map(drop)
                    .unwrap(),
            }
        }
    };
    let said = tokio::time::timeout(LONG, busy).await.unwrap();
    assert!(
        said.contains("unmount /opt/skills/late: ") && said.contains("busy"),
        "{said}"
    );
    guest.kill(&id, "user", libc::SIGKILL).await.unwrap();
    guest.wait(&id, "user").await.unwrap();
    for _ in 0..2 {
        guest.client.show(ctx(), &request(false)).await.unwrap();
    }
    let (_, stdout, _) = guest.run_in(&id, &process(&["ls", "/opt/skills"])).await;
    assert_eq!(stdout, "");
    guest.kill(&id, "", libc::SIGKILL).await.unwrap();
    guest.wait(&id, "").await.unwrap();
    guest.delete(&id).await.unwrap();
}
