//! Tests user data in an object store: rclone in a container that is not privileged, with the
//! guest's `/dev/fuse`. Only with Caisson, since a runc container would need the host's device.

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{Container, ContainerBuilder, CriNode, Pod},
    node::LIMIT,
    s3::S3,
    Runtime,
};

/// The user whose keys reach only what is below the prefix of that name.
const PREFIX: &str = "alice";
const STRANGER: &str = "bob";
/// A user in Debian's /etc/passwd.
const WWW_DATA: i64 = 33;
const MOUNT: &str = "/tmp/data";

#[test]
fn bucket_prefix_is_shared_by_pods_with_its_keys_and_denied_to_others() -> Result<()> {
    let first = pod()?;
    let s3 = server(&first)?;
    let writer = mounted(rclone(&first, &s3, PREFIX)?)?;
    writer.sh(&format!("echo from pod 1 > {MOUNT}/note"))?;

    let second = pod()?;
    let reader = mounted(rclone(&second, &s3, PREFIX)?)?;
    assert_eq!(reader.sh(&format!("cat {MOUNT}/note"))?, "from pod 1");

    let third = pod()?;
    let stranger = mounted(rclone(&third, &s3, STRANGER)?)?;
    for line in [
        "cat note",
        "dd if=/etc/passwd of=note",
        "dd if=/etc/passwd of=other",
    ] {
        let line = format!("cd {MOUNT} && {line}");
        let output = stranger.exec(["sh", "-c", &line])?;
        assert_ne!(output.code, 0, "{line}: {}", output.text());
    }
    assert_eq!(
        reader.sh(&format!("cat {MOUNT}/note; ls {MOUNT}"))?,
        "from pod 1\nnote"
    );
    Ok(())
}

#[test]
fn bucket_prefix_is_mounted_by_a_user_who_is_not_root() -> Result<()> {
    let pod = pod()?;
    let s3 = server(&pod)?;
    // fusermount records the user's mounts in this file. Other images have it.
    let mtab = pod.folder("etc")?.join("mtab");
    std::fs::write(&mtab, "")?;
    let container = rclone(&pod, &s3, PREFIX)?.mount_read_only(&mtab, "/etc/mtab");
    let container = mounted(container.user(WWW_DATA, None))?;
    let line = format!("id -un; echo mine > {MOUNT}/note; cat {MOUNT}/note");
    assert_eq!(container.sh(&line)?, "www-data\nmine");
    Ok(())
}

#[test]
fn exec_has_the_right_to_mount_that_comes_with_fuse() -> Result<()> {
    let pod = pod()?;
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    let line = "mount -t tmpfs none /mnt && grep -c ' /mnt tmpfs' /proc/mounts";
    assert_eq!(container.sh(line)?, "1");
    Ok(())
}

#[test]
fn fuse_that_was_not_asked_for_is_not_there() -> Result<()> {
    let pod = CriNode::shared().pod().runtime(Runtime::Caisson).start()?;
    let container = pod.container("busybox");
    let output = container
        .sh("test -e /dev/fuse && echo there || echo not there")
        .run()?;
    assert_eq!(output.line(), "not there");
    Ok(())
}

fn pod() -> Result<Pod<'static>> {
    CriNode::shared()
        .pod()
        .runtime(Runtime::Caisson)
        .annotation("caisson.dev/devices", "fuse")
        .start()
}

/// Starts a server that pods reach. The bridge of their network has the first address of the
/// subnet.
fn server(pod: &Pod<'_>) -> Result<S3> {
    let address = pod.ipv4()?.to_string();
    let (network, _) = address.rsplit_once('.').context("an IPv4 address")?;
    let users = [PREFIX, STRANGER].map(|user| (user, format!("{user}/")));
    let users = users
        .each_ref()
        .map(|(user, prefix)| (*user, prefix.as_str()));
    S3::start_at(&format!("{network}.1"), &pod.folder("s3")?, &users)
}

/// Builds a container that mounts the prefix with the keys of a user.
fn rclone<'p>(pod: &'p Pod<'static>, s3: &S3, user: &str) -> Result<ContainerBuilder<'p>> {
    let [id, secret] = s3.keys(user)?;
    let line = format!(
        "mkdir -p {MOUNT} && exec rclone mount --config /dev/null store:{}/{PREFIX} {MOUNT}",
        S3::BUCKET
    );
    Ok(pod
        .container("rclone")
        .env("RCLONE_CONFIG_STORE_TYPE", "s3")
        .env("RCLONE_CONFIG_STORE_PROVIDER", "Other")
        .env(
            "RCLONE_CONFIG_STORE_ENDPOINT",
            &format!("http://{}", s3.address()),
        )
        .env("RCLONE_CONFIG_STORE_ACCESS_KEY_ID", id)
        .env("RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY", secret)
        .sh(&line))
}

fn mounted<'p>(container: ContainerBuilder<'p>) -> Result<Container<'p>> {
    let container = container.start()?;
    let line = format!("grep ' {MOUNT} fuse.rclone ' /proc/mounts");
    let mounted = command::poll("rclone to mount", LIMIT, || container.sh(&line).ok());
    mounted.with_context(|| container.stderr().unwrap_or_default())?;
    Ok(container)
}
