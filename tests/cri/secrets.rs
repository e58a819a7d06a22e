//! Tests `caisson.dev/secret-fd`, which gives a container a key of a secret as an open descriptor,
//! in place of a variable or a file that the user may read. Only with Caisson, since runc has no
//! such thing.

use std::{
    fs,
    os::unix::fs::{symlink, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{Container, CriNode, Pod},
    node::LIMIT,
    Runtime,
};
use rstest::rstest;

const KEY: &str = "caisson.dev/secret-fd";
const SECRET: &str = "hunter2";

#[rstest]
#[case::secret("kubernetes.io~secret")]
#[case::projected("kubernetes.io~projected")]
fn secret_is_read_by_init_and_exec_whose_user_may_not_open_it(#[case] kind: &str) -> Result<()> {
    let pod = pod(KEY, "db/password=DB_PASSWORD")?;
    let volume = volume(&pod, kind)?;
    let container = reading(
        &pod,
        &volume,
        "cat <&$DB_PASSWORD; cat /secrets/password || echo not by name",
    )?;
    container.wait_for_output("not by name")?;
    assert_eq!(container.stdout()?, format!("{SECRET}\nnot by name\n"));
    // Each exec reads the secret from the beginning.
    for _ in 0..2 {
        assert_eq!(container.sh("cat <&$DB_PASSWORD")?, SECRET);
    }
    Ok(())
}

#[test]
fn secret_is_read_in_a_pod_with_users_of_its_own() -> Result<()> {
    let pod = CriNode::shared()
        .pod()
        .runtime(Runtime::Caisson)
        .own_users();
    let pod = pod.annotation(KEY, "db/password=DB_PASSWORD").start()?;
    let volume = volume(&pod, "kubernetes.io~secret")?;
    let container = pod.container("busybox").user(1000, None);
    let container = container.mount_mapped(&volume, "/secrets");
    let container = container
        .sh("cat <&$DB_PASSWORD; exec sleep 1000")
        .start()?;
    container.wait_for_output(SECRET)?;
    assert_eq!(
        container.sh("cat <&$DB_PASSWORD; cat /secrets/password || true")?,
        SECRET
    );
    Ok(())
}

#[test]
fn secret_is_read_by_an_exec_with_a_terminal() -> Result<()> {
    let pod = pod(KEY, "db/password=DB_PASSWORD")?;
    let volume = volume(&pod, "kubernetes.io~secret")?;
    let container = reading(&pod, &volume, "true")?;
    let line = "cat <&$DB_PASSWORD; ls /proc/self/fd | tr '\\n' ' '";
    let session = container.exec_streams(["sh", "-c", line], true)?;
    // The fifth descriptor is that of the folder which `ls` reads.
    assert_eq!(
        session.finish(LIMIT)?.text(),
        format!("{SECRET}\r\n0 1 2 3 4 ")
    );
    Ok(())
}

#[test]
fn environment_has_the_number_only() -> Result<()> {
    let pod = pod(KEY, "db/user=DB_USER, db/password=DB_PASSWORD")?;
    let volume = volume(&pod, "kubernetes.io~secret")?;
    let container = reading(&pod, &volume, "env | grep DB_ | sort; echo done")?;
    container.wait_for_output("done")?;
    assert_eq!(container.stdout()?, "DB_PASSWORD=4\nDB_USER=3\ndone\n");
    assert_eq!(
        container.sh("env | grep DB_ | sort")?,
        "DB_PASSWORD=4\nDB_USER=3"
    );
    assert_eq!(container.sh("cat <&3; cat <&4")?, format!("anna\n{SECRET}"));
    Ok(())
}

#[test]
fn secret_that_has_changed_is_read_by_the_next_exec() -> Result<()> {
    let pod = pod(KEY, "db/password=DB_PASSWORD")?;
    let volume = volume(&pod, "kubernetes.io~secret")?;
    let container = reading(&pod, &volume, "true")?;
    assert_eq!(container.sh("cat <&3")?, SECRET);
    write(&volume, 2, "changed")?;
    command::poll("the change", Duration::from_secs(10), || {
        (container.sh("cat <&3").ok()? == "changed").then_some(())
    })
}

#[test]
fn secret_of_one_container_is_not_given_to_another() -> Result<()> {
    let pod = pod(&format!("{KEY}.app"), "db/password=DB_PASSWORD")?;
    let volume = volume(&pod, "kubernetes.io~secret")?;
    let line = "env | grep DB_; test -e /proc/self/fd/3 || echo none";
    let other = pod
        .container("busybox")
        .mount_read_only(&volume, "/secrets");
    assert_eq!(other.sh(line).run()?.text(), "none\n");
    let app = pod.container("busybox").named("app", 0);
    let app = app.mount_read_only(&volume, "/secrets");
    assert_eq!(app.sh("cat <&$DB_PASSWORD").run()?.line(), SECRET);
    Ok(())
}

#[rstest]
#[case::key("db/nosuch=X", "open secret db/nosuch: No such file or directory")]
#[case::kubelets_own_link("db/..data=X", "is not of the form VOLUME/KEY=ENV_NAME")]
#[case::volume(
    "other/password=X",
    "other/password: the container mounts no secret or projected volume"
)]
#[case::variable("db/password=PATH", "the container has a variable")]
fn secret_that_cannot_be_is_named_by_cri(#[case] value: &str, #[case] message: &str) -> Result<()> {
    let said = |error: anyhow::Error| format!("{error:#}");
    let pod = match pod(KEY, value) {
        Ok(pod) => pod,
        // A value that no container can have is already refused for the pod.
        Err(error) => {
            let text = said(error);
            assert!(text.contains(KEY) && text.contains(message), "{text}");
            return Ok(());
        }
    };
    let volume = volume(&pod, "kubernetes.io~secret")?;
    let created = reading(&pod, &volume, "true");
    let text = said(created.err().context("it was created")?);
    assert!(text.contains(message), "{text}");
    Ok(())
}

fn pod(key: &str, value: &str) -> Result<Pod<'static>> {
    let pod = CriNode::shared().pod().runtime(Runtime::Caisson);
    pod.annotation(key, value).start()
}

/// Creates a volume of secrets as the kubelet makes it for a pod that runs as root.
fn volume(pod: &Pod<'_>, kind: &str) -> Result<PathBuf> {
    let volume = pod.folder(&format!("volumes/{kind}/db"))?;
    write(&volume, 1, SECRET)?;
    for key in ["user", "password"] {
        symlink(Path::new("..data").join(key), volume.join(key))?;
    }
    Ok(volume)
}

/// Writes a version of the secret and makes it the current one.
fn write(volume: &Path, version: u32, password: &str) -> Result<()> {
    let folder = volume.join(format!("..{version}"));
    fs::create_dir(&folder)?;
    for (key, text) in [("user", "anna"), ("password", password)] {
        let file = folder.join(key);
        fs::write(&file, format!("{text}\n"))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400))?;
    }
    let link = volume.join("..data_tmp");
    symlink(format!("..{version}"), &link)?;
    Ok(fs::rename(&link, volume.join("..data"))?)
}

/// Starts a container of an ordinary user that runs a line and then keeps running.
fn reading<'p>(pod: &'p Pod<'static>, volume: &Path, line: &str) -> Result<Container<'p>> {
    let container = pod.container("busybox").user(1000, None);
    container
        .mount_read_only(volume, "/secrets")
        .sh(&format!("{line}; exec sleep 1000"))
        .start()
}
