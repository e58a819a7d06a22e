//! Tests what the guest sees of mounts that the host makes below a share.

use std::{fs, process::Command};

use serde_json::json;

use crate::guest::*;

#[tokio::test]
async fn mount_below_a_share_is_the_root_and_let_go_after_delete() {
    let guest = Guest::start_on_shared_mount().await;
    let root = guest.share.join(format!("r{}", number()));
    fs::create_dir(&root).unwrap();
    let mounted = Command::new("mount")
        .args([
            "--bind".as_ref(),
            guest.share.join("rootfs").as_os_str(),
            root.as_os_str(),
        ])
        .status()
        .unwrap();
    assert!(mounted.success());
    let mut spec = spec(&sh("echo from $(cat /etc/group | head -1)"));
    let name = root.file_name().unwrap().to_str().unwrap();
    let place = format!("/run/caisson/shares/pod/{name}");
    spec["root"]["path"] = json!(place);
    let mut request = planned("", &spec, &outputs());
    request.shared = vec![place];
    let ended = guest.run_planned(request).await;
    let unmounted = Command::new("umount").arg(&root).output().unwrap();
    let told = String::from_utf8_lossy(&unmounted.stderr).into_owned();
    if !unmounted.status.success() {
        Command::new("umount")
            .arg("-l")
            .arg(&root)
            .status()
            .unwrap();
    }
    assert_eq!(ended, (0, "from root:x:0:\n".to_string(), String::new()));
    assert!(unmounted.status.success(), "the host can't unmount: {told}");
}
