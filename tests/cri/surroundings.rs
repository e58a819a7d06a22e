//! Tests what a container finds around it: names, hosts, DNS, environment, shared memory,
//! termination log.

use std::fs;

use anyhow::Result;
use caisson_tests::{
    cri::{first_namespace, Container, CriNode, Pod},
    Runtime,
};
use rstest::rstest;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn hostname_is_the_pods(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared()
        .pod()
        .runtime(runtime)
        .hostname("web-0")
        .start()?;
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    assert_eq!(container.sh("hostname; cat /etc/hostname")?, "web-0\nweb-0");
    assert_eq!(container.sh("echo $HOSTNAME")?, "web-0");
    Ok(())
}

/// The address of a pod's network card.
const MAC: &str = "cat /sys/class/net/eth0/address";

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn network_cards_of_two_pods_differ(#[case] runtime: Runtime) -> Result<()> {
    let mac = || {
        let pod = CriNode::shared().pod().runtime(runtime).start()?;
        let said = pod.container("busybox").sh(MAC).run()?;
        anyhow::Ok(said.ok()?.line().to_owned())
    };
    assert_ne!(mac()?, mac()?);
    Ok(())
}

/// Prints the machine's address in vsock. The device has a number that the kernel draws.
const VSOCK_ADDRESS: &str = "number=$(cat /sys/class/misc/vsock/dev); \
    mknod /dev/vsock c ${number%:*} ${number#*:}; probe vsock-address /dev/vsock";

#[test]
fn vsock_addresses_of_two_pods_differ() -> Result<()> {
    let address = || {
        let pod = CriNode::shared().pod().privileged().start()?;
        let container = pod.container("busybox").privileged().sh(VSOCK_ADDRESS);
        let said = container.run()?.ok()?.line().parse::<u32>()?;
        anyhow::Ok(said)
    };
    assert_ne!(address()?, address()?);
    Ok(())
}

#[test]
fn machine_ids_of_two_guests_differ() -> Result<()> {
    let id = || {
        let pod = CriNode::shared().pod().privileged().start()?;
        let container = pod.container("busybox").privileged();
        let container = container.args(["sleep", "1000"]).start()?;
        first_namespace::run(&container, "$B cat /etc/machine-id")
    };
    let (one, two) = (id()?, id()?);
    assert_eq!((one.len(), two.len()), (32, 32));
    assert_ne!(one, two);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn hosts_file_is_the_kubelets(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let hosts = pod.folder("etc")?.join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n10.1.2.3 database\n")?;
    let container = pod.container("busybox").mount(&hosts, "/etc/hosts");
    let output = container.args(["cat", "/etc/hosts"]).run()?.ok()?;
    assert_eq!(output.text(), "127.0.0.1 localhost\n10.1.2.3 database\n");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn resolver_has_the_pods_servers_searches_and_options(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    let output = container.args(["cat", "/etc/resolv.conf"]).run()?.ok()?;
    assert_eq!(
        output.text(),
        "search tests.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn environment_is_the_images_and_the_containers(#[case] runtime: Runtime) -> Result<()> {
    let odd = "spaces, \"quotes\", $signs, = and\na line";
    let container = pod(runtime)?
        .container("busybox")
        .env("ODD", odd)
        .env("EMPTY", "")
        .args(["sleep", "1000"])
        .start()?;
    let init = container.sh("tr '\\0' '|' < /proc/1/environ")?;
    for wanted in [
        format!("ODD={odd}|"),
        "EMPTY=|".into(),
        "PATH=/bin:/usr/bin|".into(),
    ] {
        assert!(init.contains(&wanted), "{wanted} in {init}");
    }
    assert_eq!(container.sh("echo \"$ODD\"")?, odd);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn arguments_arrive_as_they_are(#[case] runtime: Runtime) -> Result<()> {
    let args = [
        "printf",
        "%s|",
        "two words",
        "",
        "'\"$(id)`",
        "ünïcode",
        "-n",
    ];
    let output = pod(runtime)?.container("busybox").args(args).run()?.ok()?;
    assert_eq!(output.line(), "two words||'\"$(id)`|ünïcode|-n|");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn command_replaces_the_images_and_takes_the_arguments(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?
        .container("busybox")
        .configure(|config| config.command = vec!["echo".into(), "one".into()]);
    assert_eq!(container.args(["two"]).run()?.ok()?.line(), "one two");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn working_folder_is_made_where_it_is_not(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?
        .container("busybox")
        .configure(|config| config.working_dir = "/srv/app/data".into());
    assert_eq!(container.args(["pwd"]).run()?.ok()?.line(), "/srv/app/data");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn termination_log_reaches_the_kubelet(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let log = pod.folder("termination")?.join("log");
    fs::write(&log, "")?;
    let container = pod.container("busybox").mount(&log, "/dev/termination-log");
    let line = "echo 'database is gone' > /dev/termination-log; exit 1";
    assert_eq!(container.sh(line).run()?.code, 1);
    assert_eq!(fs::read_to_string(log)?, "database is gone\n");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn devices_are_the_usual_ones(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox").args(["sleep", "1000"]);
    let container = container.start()?;
    let devices = container.sh(
        "cd /dev; ls null zero full random urandom tty stdin stdout stderr fd/0 ptmx -d | xargs",
    )?;
    assert_eq!(
        devices,
        "fd/0 full null ptmx random stderr stdin stdout tty urandom zero"
    );
    assert_eq!(
        container.sh("echo lost > /dev/null; head -c 2 /dev/zero | od -An -tx1")?,
        "00 00"
    );
    Ok(())
}

/// systemd gives this limit to containerd, and thereby to runc's containers. In this test,
/// containerd has the limit of this machine's shell.
#[test]
fn limit_of_open_files_can_be_raised_by_a_server() -> Result<()> {
    let container = pod(Runtime::Caisson)?.container("busybox").user(1000, None);
    let output = container.sh("ulimit -Sn; ulimit -n 500000; ulimit -Sn");
    assert_eq!(output.run()?.ok()?.line(), "1024\n500000");
    Ok(())
}

/// The node's memory decides them, or an administrator has raised them for all; none of them is in
/// a namespace.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn kernel_parameter_of_the_node_is_no_lower_in_a_pod(
    #[case] runtime: Runtime,
    #[values(
        "fs/inotify/max_user_watches",
        "fs/inotify/max_user_instances",
        "fs/file-max",
        "fs/aio-max-nr",
        "kernel/pid_max",
        "kernel/threads-max",
        "kernel/keys/maxkeys",
        "user/max_user_namespaces",
        "vm/max_map_count"
    )]
    parameter: &str,
) -> Result<()> {
    let path = format!("/proc/sys/{parameter}");
    let of_the_node: u64 = fs::read_to_string(&path)?.trim().parse()?;
    let container = sleeping(pod(runtime)?)?;
    let of_the_pod: u64 = container.sh(&format!("cat {path}"))?.parse()?;
    assert!(of_the_pod >= of_the_node, "{of_the_pod} < {of_the_node}");
    Ok(())
}

/// A container of runc does not see this parameter in its network namespace, but is bound by it.
#[test]
fn socket_buffer_of_a_pod_may_be_as_large_as_on_the_node() -> Result<()> {
    let path = "/proc/sys/net/core/rmem_max";
    let of_the_node: u64 = fs::read_to_string(path)?.trim().parse()?;
    let container = sleeping(pod(Runtime::Caisson)?)?;
    let of_the_pod: u64 = container.sh(&format!("cat {path}"))?.parse()?;
    assert!(of_the_pod >= of_the_node, "{of_the_pod} < {of_the_node}");
    Ok(())
}

/// As containerd's unit has it. In this test, containerd has the limit of this machine's shell.
#[test]
fn user_may_have_any_number_of_processes() -> Result<()> {
    let container = sleeping(pod(Runtime::Caisson)?)?;
    let most = container.sh("awk '/^Max processes/ { print $3, $4 }' /proc/1/limits")?;
    assert_eq!(most, "unlimited unlimited");
    Ok(())
}

fn sleeping<'p>(pod: &'p Pod<'p>) -> Result<Container<'p>> {
    pod.container("busybox").args(["sleep", "1000"]).start()
}

fn pod(runtime: Runtime) -> Result<&'static Pod<'static>> {
    CriNode::shared().shared_pod(runtime)
}
