//! Tests what `/proc` of the host shows of a pod's processes: they should have as few rights as
//! possible.

use std::{collections::BTreeSet, fs};

use anyhow::{bail, Context, Result};
use caisson_tests::{proc, Container, Node};
use rstest::rstest;

/// The capabilities that virtiofsd needs to keep file owners (capability.h): CHOWN, DAC_OVERRIDE,
/// FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP. DAC_READ_SEARCH is not among them, since it can
/// open every file of a file system.
const VIRTIOFSD_MAY: [u32; 8] = [0, 1, 3, 4, 6, 7, 27, 31];

/// The first user id of pods (`hypervisor.uid_base`).
const UID_BASE: u32 = 1_878_982_656;

#[rstest]
#[case("qemu")]
#[case("vsock")]
fn process_without_rights_runs_as_the_pods_user(#[case] role: &str) -> Result<()> {
    let container = running()?;
    let pid = container.vm_process(role)?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(proc::capabilities(pid, set)?, [0; 0], "{role} has {set}");
    }
    let status = proc::status(pid)?;
    let field = |name: &str| status.get(name).cloned().with_context(|| name.to_owned());
    let uids: BTreeSet<u32> = field("Uid")?
        .split_whitespace()
        .flat_map(str::parse)
        .collect();
    let gids: BTreeSet<u32> = field("Gid")?
        .split_whitespace()
        .flat_map(str::parse)
        .collect();
    assert_eq!(
        (uids.len(), &uids),
        (1, &gids),
        "{role}: real, effective, saved and file ids"
    );
    assert!(
        uids.iter().all(|&uid| uid >= UID_BASE),
        "{role} runs as {uids:?}"
    );
    assert_eq!(field("Groups")?, "", "{role} has further groups");
    assert_eq!(field("Seccomp")?, "2", "{role} has no seccomp filter");
    assert_eq!(field("NoNewPrivs")?, "1", "{role} may gain rights");
    Ok(())
}

#[test]
fn every_virtiofsd_has_the_listed_rights_only() -> Result<()> {
    let node = Node::shared();
    let container = node
        .container("busybox")
        .annotation("caisson.dev/home", "persistent/confined");
    let container = container.args(["sleep", "1000"]).start()?;
    let daemons: Vec<_> = container
        .vm_processes()?
        .into_iter()
        .filter(|(role, _)| role.starts_with("virtiofsd-"))
        .collect();
    assert!(
        daemons.len() >= 2,
        "one for the rootfs, one for the home: {daemons:?}"
    );
    for (role, parent) in daemons {
        // virtiofsd forks once: the parent waits in the namespaces of its sandbox, the child
        // serves.
        let serving = proc::descendants(parent);
        let [serving] = serving[..] else {
            bail!("{role} ({parent}) has the children {serving:?}")
        };
        for pid in [parent, serving] {
            for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
                let more: Vec<_> = proc::capabilities(pid, set)?;
                let more: Vec<_> = more
                    .iter()
                    .filter(|cap| !VIRTIOFSD_MAY.contains(cap))
                    .collect();
                assert!(
                    more.is_empty(),
                    "{role} ({pid}) has {set} {more:?} besides the listed ones"
                );
            }
        }
        assert_eq!(
            proc::status(serving)?.get("Seccomp").map(String::as_str),
            Some("2"),
            "{role}"
        );
    }
    Ok(())
}

/// The owners of a home's files are kept all the same, see `homes`.
#[test]
fn virtiofsd_of_a_home_runs_as_the_pods_user_and_cannot_be_root() -> Result<()> {
    let node = Node::shared();
    let container = node
        .container("busybox")
        .annotation("caisson.dev/home", "ephemeral");
    let container = container.args(["sleep", "1000"]).start()?;
    let uid =
        |pid: u32| -> Result<String> { Ok(proc::status(pid)?.get("Uid").context("Uid")?.clone()) };
    let parent = container.vm_process("virtiofsd-home")?;
    let serving = *proc::descendants(parent).first().context("it serves")?;
    for pid in [parent, serving] {
        assert_eq!(uid(pid)?, uid(container.vmm()?)?);
        // The columns are the id inside, the id outside as seen from here, and the count.
        for line in fs::read_to_string(format!("/proc/{pid}/uid_map"))?.lines() {
            assert_ne!(line.split_whitespace().nth(1), Some("0"), "{line}");
        }
    }
    Ok(())
}

#[test]
fn every_process_of_the_vm_has_a_network_without_anything() -> Result<()> {
    let container = running()?;
    let host = proc::namespace(std::process::id(), "net");
    for (role, pid) in container.vm_processes()? {
        assert_ne!(
            proc::namespace(pid, "net"),
            host,
            "{role} is in the host's network"
        );
        let devices = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
        // Two lines of headings, then one for each device.
        let devices: Vec<_> = devices
            .lines()
            .skip(2)
            .filter_map(|line| line.trim().split(':').next())
            .collect();
        assert_eq!(devices, ["lo"], "{role}");
    }
    Ok(())
}

#[rstest]
#[case("qemu")]
#[case("vsock")]
fn process_without_rights_sees_none_of_the_hosts_files(#[case] role: &str) -> Result<()> {
    let container = running()?;
    let pid = container.vm_process(role)?;
    assert_ne!(
        proc::namespace(pid, "mnt"),
        proc::namespace(std::process::id(), "mnt")
    );
    for path in ["etc/shadow", "root", "home", "tmp", "var/lib"] {
        assert!(
            fs::metadata(format!("/proc/{pid}/root/{path}")).is_err(),
            "{role} sees /{path}"
        );
    }
    Ok(())
}

#[test]
fn virtiofsd_sees_its_one_directory_only() -> Result<()> {
    let container = running()?;
    let parent = container.vm_process("virtiofsd-")?;
    // The last process of the family is the one that serves.
    let pid = proc::descendants(parent).last().copied().unwrap_or(parent);
    for path in ["etc/shadow", "var/lib", "sys", "tmp/caisson-tests.lock"] {
        assert!(
            fs::metadata(format!("/proc/{pid}/root/{path}")).is_err(),
            "virtiofsd sees /{path}"
        );
    }
    Ok(())
}

#[test]
fn pods_run_as_users_of_their_own() -> Result<()> {
    let (one, two) = (running()?, running()?);
    let uid = |container: &Container| -> Result<String> {
        let status = proc::status(container.vmm()?)?;
        Ok(status.get("Uid").context("Uid")?.clone())
    };
    assert_ne!(uid(&one)?, uid(&two)?);
    Ok(())
}

/// The paths of a home and a state folder would become further options if they were ever part of
/// QEMU's command line.
#[test]
fn path_with_comma_equals_and_newline_is_a_path_only() -> Result<()> {
    let odd = "odd,readonly=on\nid=x";
    let node = Node::start_with(|config| {
        for key in ["state_dir", "store_dir"] {
            let path = config[key]
                .as_str()
                .map(|path| path.replace(key.trim_end_matches("_dir"), odd) + key);
            config[key] = path.into();
        }
    })?;
    let container = node
        .container("busybox")
        .annotation("caisson.dev/home", "persistent/odd");
    let output = container
        .sh("echo written > /root/note && cat /root/note")
        .run()?
        .ok()?;
    assert_eq!(output.line(), "written");
    let home = node
        .dir()
        .join(format!("{odd}store_dir/homes"))
        .join(node.tag())
        .join("odd/image");
    assert!(home.exists());
    Ok(())
}

#[test]
fn every_process_of_the_vm_is_in_its_cgroup() -> Result<()> {
    let container = with_home()?;
    for (role, pid) in family(&container)? {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        // The fields are number, controllers and path. A bare version 2 hierarchy beside those of
        // version 1 has no controllers and is not used.
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.splitn(3, ':').collect()).collect();
        let used = lines
            .iter()
            .filter(|line| lines.len() == 1 || line[0] != "0");
        for line in used {
            assert!(line[2].ends_with(container.id()), "{role}: {line:?}");
        }
    }
    Ok(())
}

/// containerd's shim has the score 1 here, and would have -998 under systemd.
#[test]
fn every_process_of_the_vm_has_the_oom_score_of_its_container() -> Result<()> {
    let container = with_home()?;
    for (role, pid) in family(&container)? {
        let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
        assert_eq!(score.trim(), "0", "{role}");
    }
    Ok(())
}

#[rstest]
#[case::core("Max core file size", 0, 0, 0)]
#[case::files("Max open files", 16_384, 16_384, 1_000_000)]
#[case::threads("Max processes", 512, 512, 512)]
#[case::file_size("Max file size", u64::MAX, 0, u64::MAX)]
#[case::locked("Max locked memory", 0, 0, 0)]
#[case::queues("Max msgqueue size", 0, 0, 0)]
#[case::priority("Max realtime priority", 0, 0, 0)]
#[case::nice("Max nice priority", 0, 0, 0)]
fn every_process_of_the_vm_has_its_limit(
    #[case] name: &str,
    #[case] qemu: u64,
    #[case] vsock: u64,
    #[case] virtiofsd: u64,
) -> Result<()> {
    let container = with_home()?;
    let own = limit(std::process::id(), name)?;
    for (role, pid) in family(&container)? {
        let wanted = match role.as_str() {
            "qemu" => qemu,
            "vsock" => vsock,
            _ => virtiofsd,
        };
        // A shim that has the right raises its own limit for the daemons of shared folders.
        let is = limit(pid, name)?;
        assert!((wanted.min(own)..=wanted).contains(&is), "{role}: {is}");
    }
    Ok(())
}

#[test]
fn every_process_of_the_vm_has_a_pid_namespace_of_its_own() -> Result<()> {
    let container = with_home()?;
    let mut seen = BTreeSet::from([proc::namespace(std::process::id(), "pid")]);
    for (role, pid) in family(&container)? {
        assert!(seen.insert(proc::namespace(pid, "pid")), "{role}");
        let status = proc::status(pid)?;
        let numbers = status.get("NSpid").context("NSpid")?;
        assert!(numbers.ends_with("\t1"), "{role} is {numbers:?}");
        assert!(
            !fs::exists(format!("/proc/{pid}/root/proc/1"))?,
            "{role} sees processes"
        );
    }
    Ok(())
}

#[test]
fn every_process_of_the_vm_gains_no_rights() -> Result<()> {
    let container = with_home()?;
    for (role, pid) in family(&container)? {
        let status = proc::status(pid)?;
        assert_eq!(
            status.get("NoNewPrivs").map(String::as_str),
            Some("1"),
            "{role}"
        );
    }
    Ok(())
}

/// QEMU's own filter only denies system calls. The allow list is another filter.
#[test]
fn qemu_has_a_filter_below_its_own() -> Result<()> {
    let container = running()?;
    let status = proc::status(container.vmm()?)?;
    let filters = status.get("Seccomp_filters").context("Seccomp_filters")?;
    assert!(filters.parse::<u32>()? >= 2, "{filters}");
    Ok(())
}

/// Returns the processes of a VM and their descendants, by role.
fn family(container: &Container) -> Result<Vec<(String, u32)>> {
    let mut family = Vec::new();
    for (role, pid) in container.vm_processes()? {
        let children = proc::descendants(pid);
        family.push((role.clone(), pid));
        family.extend(children.into_iter().map(|pid| (role.clone(), pid)));
    }
    Ok(family)
}

/// Returns a limit of a process whose soft and hard values have to be equal.
fn limit(pid: u32, name: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let mut values = line.context("no such limit")?.split_whitespace();
    let mut value = || match values.next() {
        Some("unlimited") => Ok(u64::MAX),
        value => anyhow::Ok(value.context("no value")?.parse()?),
    };
    let (soft, hard) = (value()?, value()?);
    if pid != std::process::id() {
        assert_eq!(soft, hard, "{name} can be raised");
    }
    Ok(hard)
}

/// Starts a container with a home. A home has a daemon that is started while the VM is running.
fn with_home() -> Result<Container<'static>> {
    Node::shared()
        .container("busybox")
        .annotation("caisson.dev/home", "ephemeral")
        .args(["sleep", "1000"])
        .start()
}

fn running() -> Result<Container<'static>> {
    Node::shared()
        .container("busybox")
        .args(["sleep", "1000"])
        .start()
}
