//! Tests security contexts: users, capabilities, seccomp, read-only roots, sysctls, privileged.

use std::fs;

use anyhow::{Context, Result};
use caisson_tests::{
    cri::{
        api::{security_profile::ProfileType, SecurityProfile},
        Container, CriNode, Pod,
    },
    Runtime,
};
use rstest::rstest;

/// The capabilities that containerd grants by default (capability.h): chown, dac_override, fowner,
/// fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod,
/// audit_write, setfcap.
const DEFAULT: u64 = 0xa804_25fb;
const NET_ADMIN: u64 = 1 << 12;
const SYS_ADMIN: u64 = 1 << 21;
const SYS_TIME: u64 = 1 << 25;
const NET_RAW: u64 = 1 << 13;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn capabilities_are_containerds_default_for_init_and_exec(#[case] runtime: Runtime) -> Result<()> {
    let container = sleeping(pod(runtime)?.container("busybox"))?;
    assert_eq!(status_of_init(&container, "CapEff")?, hex(DEFAULT));
    assert_eq!(status_of_exec(&container, "CapEff")?, hex(DEFAULT));
    assert_eq!(status_of_init(&container, "CapBnd")?, hex(DEFAULT));
    assert_eq!(status_of_init(&container, "CapAmb")?, hex(0));
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn capabilities_are_added_and_dropped_for_init_and_exec(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    let container = sleeping(container.capabilities(&["NET_ADMIN", "SYS_TIME"], &["NET_RAW"]))?;
    let wanted = hex((DEFAULT | NET_ADMIN | SYS_TIME) & !NET_RAW);
    assert_eq!(status_of_init(&container, "CapEff")?, wanted);
    assert_eq!(status_of_exec(&container, "CapEff")?, wanted);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn all_capabilities_can_be_dropped(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    let container = sleeping(container.capabilities(&[], &["ALL"]))?;
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(status_of_init(&container, set)?, hex(0), "{set}");
        assert_eq!(status_of_exec(&container, set)?, hex(0), "{set}");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn user_without_root_has_no_capability(#[case] runtime: Runtime) -> Result<()> {
    let container = sleeping(pod(runtime)?.container("busybox").user(1000, Some(1000)))?;
    assert_eq!(status_of_init(&container, "CapEff")?, hex(0));
    assert_eq!(status_of_exec(&container, "CapEff")?, hex(0));
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn user_and_groups_are_those_of_the_security_context(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox").user(1234, Some(2345));
    let container = container.security(|security| security.supplemental_groups = vec![3456, 4567]);
    let container = sleeping(container)?;
    assert_eq!(status_of_init(&container, "Uid")?, "1234 1234 1234 1234");
    assert_eq!(status_of_init(&container, "Gid")?, "2345 2345 2345 2345");
    assert_eq!(
        container.sh("id -u; id -g; id -G")?,
        "1234\n2345\n2345 3456 4567"
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn user_by_name_has_the_groups_that_the_image_says(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    let container = container.security(|security| security.run_as_username = "app".into());
    let output = container.sh("id -un; id -gn; id -Gn").run()?.ok()?;
    assert_eq!(output.line(), "app\napp\napp extra");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn user_is_the_images_when_nothing_is_said(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox-app");
    assert_eq!(container.args(["id", "-un"]).run()?.ok()?.line(), "app");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn no_new_privileges_is_set_for_init_and_exec(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    let container = sleeping(container.security(|security| security.no_new_privs = true))?;
    assert_eq!(status_of_init(&container, "NoNewPrivs")?, "1");
    assert_eq!(status_of_exec(&container, "NoNewPrivs")?, "1");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn default_seccomp_profile_filters_init_and_exec(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    let container = sleeping(container.seccomp(profile(ProfileType::RuntimeDefault, "")))?;
    assert_eq!(status_of_init(&container, "Seccomp")?, "2");
    assert_eq!(status_of_exec(&container, "Seccomp")?, "2");
    // A new user namespace needs no capability, but the profile refuses it.
    assert_ne!(container.exec(["unshare", "-U", "true"])?.code, 0);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn unconfined_seccomp_filters_nothing(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    let container = sleeping(container.seccomp(profile(ProfileType::Unconfined, "")))?;
    assert_eq!(status_of_init(&container, "Seccomp")?, "0");
    assert_eq!(status_of_exec(&container, "Seccomp")?, "0");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn seccomp_profile_of_the_node_is_in_force(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let path = pod.folder("seccomp")?.join("no-folders.json");
    fs::write(
        &path,
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 } ] }"#,
    )?;
    let path = path.display().to_string();
    let container = pod.container("busybox");
    let container = sleeping(container.seccomp(profile(ProfileType::Localhost, &path)))?;
    let output = container.exec(["mkdir", "/tmp/new"])?;
    assert!(
        output.errors().contains("Operation not supported"),
        "{output:?}"
    );
    container.sh("touch /tmp/new")?;
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn read_only_root_can_only_be_written_where_volumes_are(#[case] runtime: Runtime) -> Result<()> {
    let pod = pod(runtime)?;
    let volume = pod.folder("writable")?;
    let container = pod.container("busybox").read_only_root();
    let container = sleeping(container.mount(&volume, "/writable"))?;
    let output = container.exec(["touch", "/etc/new"])?;
    assert!(
        output.errors().contains("Read-only file system"),
        "{output:?}"
    );
    container.sh("touch /writable/new /dev/shm/new")?;
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn sysctls_are_the_pods(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared()
        .pod()
        .runtime(runtime)
        .sysctl("net.ipv4.ip_local_port_range", "20000 20100")
        .sysctl("kernel.shm_rmid_forced", "1")
        .start()?;
    let container = sleeping(pod.container("busybox"))?;
    assert_eq!(container.sh("cat /proc/sys/kernel/shm_rmid_forced")?, "1");
    assert_eq!(
        container.sh("cat /proc/sys/net/ipv4/ip_local_port_range")?,
        "20000\t20100"
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn kernels_files_are_hidden_or_read_only(#[case] runtime: Runtime) -> Result<()> {
    // The kubelet sends this for `procMount: Default`.
    let container = pod(runtime)?.container("busybox").security(|security| {
        security.masked_paths = [
            "/proc/kcore",
            "/proc/keys",
            "/proc/timer_list",
            "/sys/firmware",
        ]
        .map(Into::into)
        .to_vec();
        security.readonly_paths = ["/proc/sys", "/proc/sysrq-trigger"]
            .map(Into::into)
            .to_vec();
    });
    let container = sleeping(container)?;
    assert_eq!(
        container.sh("cat /proc/keys | wc -c; ls /sys/firmware | wc -l")?,
        "0\n0"
    );
    let output = container.exec(["sh", "-c", "echo x > /proc/sys/kernel/domainname"])?;
    assert!(
        output.errors().contains("Read-only file system"),
        "{output:?}"
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn privileged_container_may_mount_and_configure_its_network(
    #[case] runtime: Runtime,
) -> Result<()> {
    let pod = CriNode::shared()
        .pod()
        .runtime(runtime)
        .privileged()
        .start()?;
    let container = sleeping(pod.container("busybox").privileged())?;
    let mask = u64::from_str_radix(&status_of_init(&container, "CapEff")?, 16)?;
    assert_eq!(mask & (NET_ADMIN | SYS_ADMIN), NET_ADMIN | SYS_ADMIN);
    container.sh("mount -t tmpfs none /mnt && echo kept > /mnt/file && umount /mnt")?;
    container.sh("ip link add dummy7 type dummy || ip link set lo mtu 60000")?;
    container.sh("echo 1 > /proc/sys/net/ipv4/ip_forward")?;
    Ok(())
}

/// The guest's kernel may give its disks the same names as the host's, so the sizes tell them
/// apart.
#[test]
fn privileged_container_sees_no_disk_of_the_host() -> Result<()> {
    let pod = CriNode::shared().pod().privileged().start()?;
    let container = sleeping(pod.container("busybox").privileged())?;
    let hosts = disks(&fs::read_to_string("/proc/partitions")?);
    assert!(!hosts.is_empty());
    let guests = disks(&container.sh("cat /proc/partitions")?);
    assert!(
        hosts.iter().all(|disk| !guests.contains(disk)),
        "{guests:?}"
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn oom_score_adjustment_is_the_pods(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    let container = sleeping(container.resources(|resources| resources.oom_score_adj = 987))?;
    assert_eq!(container.sh("cat /proc/1/oom_score_adj")?, "987");
    Ok(())
}

fn pod(runtime: Runtime) -> Result<&'static Pod<'static>> {
    CriNode::shared().shared_pod(runtime)
}

fn sleeping(container: caisson_tests::cri::ContainerBuilder<'_>) -> Result<Container<'_>> {
    container.args(["sleep", "1000"]).start()
}

/// Returns a line of `/proc/<pid>/status`, with its fields separated by one space.
fn status_of_init(container: &Container<'_>, key: &str) -> Result<String> {
    status_of(container, "1", key)
}

fn status_of_exec(container: &Container<'_>, key: &str) -> Result<String> {
    status_of(container, "self", key)
}

fn status_of(container: &Container<'_>, process: &str, key: &str) -> Result<String> {
    let status = container
        .exec(["cat", &format!("/proc/{process}/status")])?
        .ok()?
        .text();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let fields: Vec<_> = line
        .with_context(|| status.clone())?
        .split_whitespace()
        .collect();
    Ok(fields.join(" "))
}

/// Returns the sizes in KiB of the disks of more than 1 GiB in `/proc/partitions`.
fn disks(partitions: &str) -> Vec<u64> {
    let size = |line: &str| line.split_whitespace().nth(2)?.parse().ok();
    let sizes = partitions.lines().filter_map(size);
    sizes.filter(|&kib| kib > 1 << 20).collect()
}

fn hex(mask: u64) -> String {
    format!("{mask:016x}")
}

fn profile(kind: ProfileType, path: &str) -> SecurityProfile {
    SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: path.into(),
    }
}
