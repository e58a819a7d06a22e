//! Tests the homes of pods, which runc does not have.

use anyhow::Result;
use caisson_tests::cri::{ContainerBuilder, CriNode, Pod, PodBuilder};

const HOME: &str = "caisson.dev/home";
const SIZE: &str = "caisson.dev/home-size";

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
    // The pod stays in the kubelet's list of pods.
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

#[test]
fn home_over_a_budget_is_refused_with_the_limit_and_what_is_used() -> Result<()> {
    let node = CriNode::start_with(|config| {
        config["homes"] = serde_json::json!({
            "size_mib": 32, "node_budget_mib": 112, "namespace_budgets_mib": { "tests": 64 }
        });
    })?;
    let pod = |namespace: &'static str, home: &str, size: &str| {
        let pod = node.pod().annotation(HOME, home).annotation(SIZE, size);
        let pod = pod.configure(|config| {
            config.metadata.get_or_insert_default().namespace = namespace.into();
        });
        pod.start()
    };
    let refused = |pod: &Pod<'_>| {
        let container = sleeping(pod.container("busybox")).start();
        format!("{:#}", container.err().expect("it is over the budget"))
    };
    let first = pod("tests", "persistent/first", "64Mi")?;
    let _first = sleeping(first.container("busybox")).start()?;
    let error = refused(&pod("tests", "ephemeral", "32Mi")?);
    let expected = "the home ephemeral in tests of 32 MiB is over the budget of the namespace tests for homes: 64 MiB of 64 MiB are used \
                    (namespace_budgets_mib.tests of [homes]";
    assert!(error.contains(expected), "{error}");
    let other = pod("others", "ephemeral", "32Mi")?;
    let _other = sleeping(other.container("busybox")).start()?;
    let third = pod("others", "persistent/third", "32Mi")?;
    let error = refused(&third);
    let expected = "the home others/third of 32 MiB is over the budget of this node for homes: 96 MiB of 112 MiB are used (node_budget_mib of";
    assert!(error.contains(expected), "{error}");
    // An ephemeral home no longer counts when its pod is gone.
    other.stop()?;
    sleeping(third.container("busybox")).start()?;
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
