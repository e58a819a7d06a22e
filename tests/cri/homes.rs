//! Homes of pods. runc has none.

use anyhow::Result;
use caisson_tests::cri::{ContainerBuilder, CriNode, PodBuilder};

const HOME: &str = "caisson.dev/home";

#[test]
fn containers_of_a_pod_share_its_home() -> Result<()> {
    let pod = with_home("shared").start()?;
    let line = "echo first > /root/note; exec probe lock /root/lock";
    let first = pod.container("busybox").sh(line).start()?;
    first.wait_for_output("locked")?;
    let second = sleeping(pod.container("busybox")).start()?;
    let line = "cat /root/note; probe try-lock /root/lock; probe try-lock /root/other";
    assert_eq!(second.sh(line)?, "first\ntaken\nfree");
    let daemons = pod.vm_processes()?.into_iter();
    let daemons = daemons.filter(|(role, _)| role == "virtiofsd-home");
    assert_eq!(daemons.count(), 1);
    Ok(())
}

#[test]
fn home_is_read_by_the_next_pod_once_the_first_has_stopped() -> Result<()> {
    let first = with_home("handed").start()?;
    let container = sleeping(first.container("busybox")).start()?;
    container.sh("echo first > /root/note")?;
    // It stays in the kubelet's list of pods.
    first.stop()?;
    let second = with_home("handed").start()?;
    let output = second.container("busybox").args(["cat", "/root/note"]);
    assert_eq!(output.run()?.text(), "first\n");
    Ok(())
}

#[test]
fn home_in_use_is_refused_naming_the_pod_that_has_it() -> Result<()> {
    let first = with_home("single").start()?;
    let _container = sleeping(first.container("busybox")).start()?;
    let second = with_home("single").start()?;
    let refused = sleeping(second.container("busybox")).start();
    let error = format!("{:#}", refused.err().expect("it has another's home"));
    let expected = format!("home tests/single is in use by tests/{}", first.hostname());
    assert!(error.contains(&expected), "{error}");
    Ok(())
}

#[test]
fn home_of_another_namespace_is_another() -> Result<()> {
    let first = with_home("named").start()?;
    let container = sleeping(first.container("busybox")).start()?;
    container.sh("echo first > /root/note")?;
    let other = with_home("named").configure(|config| {
        config.metadata.get_or_insert_default().namespace = "others".into();
    });
    let other = other.start()?;
    let output = other
        .container("busybox")
        .args(["ls", "-A", "/root"])
        .run()?;
    assert_eq!(output.text(), "");
    Ok(())
}

#[test]
fn home_in_a_pod_with_users_of_its_own_is_refused_with_a_reason() -> Result<()> {
    let pod = with_home("mapped").own_users().start()?;
    let refused = sleeping(pod.container("busybox")).start();
    let error = format!("{:#}", refused.err().expect("its owners can't be kept"));
    assert!(error.contains("leave hostUsers out"), "{error}");
    Ok(())
}

fn with_home(name: &str) -> PodBuilder<'static> {
    CriNode::shared()
        .pod()
        .annotation(HOME, &format!("persistent/{name}"))
}

fn sleeping(container: ContainerBuilder<'_>) -> ContainerBuilder<'_> {
    container.args(["sleep", "1000"])
}
