//! Tests that nothing that a guest puts into a home reaches the host or holds it up.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use anyhow::Result;
use caisson_tests::{command, node::LIMIT, proc, Node, Runtime};

use super::{with_home, HOME, SIZE};

/// Tries everything that root in the guest can make to lead a path elsewhere.
#[test]
fn host_is_not_reached_by_what_root_makes_in_a_home() -> Result<()> {
    let node = Node::shared();
    let outside = node.dir().join("outside");
    fs::create_dir_all(&outside)?;
    let secret = outside.join("secret");
    fs::write(&secret, "the host's")?;
    let up = "../".repeat(40);
    let line = format!(
        "cd /root
        ln -s {secret} absolute; cat absolute; echo taken > absolute
        ln -s {up}{secret} relative; cat relative; cat {up}{secret}
        ln {secret} hard; ln /etc/passwd hard; ln -s {outside} folder; ls folder; echo taken > folder/new
        ls -A /root/..; ls -d 'lost+found' ../lost+found
        mknod disk b $(cut -d' ' -f1 /proc/self/stat) 0; mknod disk b 254 0; mknod mem c 1 1; cat disk mem
        probe open-by-handle /root
        true",
        secret = secret.display(),
        outside = outside.display(),
    );
    let output = with_home(node, "hostile")
        .flag("--cap-add", "CAP_SYS_ADMIN")
        .flag("--cap-add", "CAP_DAC_READ_SEARCH")
        .sh(&line)
        .run()?;
    let text = output.text();
    assert!(!text.contains("the host's"), "{text}");
    assert!(!text.contains("lost+found"), "{text}");
    assert_eq!(fs::read_to_string(&secret)?, "the host's");
    assert_eq!(fs::read_dir(&outside)?.count(), 1);
    assert!(
        output
            .errors()
            .contains("mknod: disk: Operation not permitted"),
        "{}",
        output.errors()
    );
    Ok(())
}

/// A folder in the home keeps alternating with a symlink to the host's folder while others write
/// into it.
#[test]
fn host_is_not_reached_by_a_rename_race_in_a_home() -> Result<()> {
    let node = Node::shared();
    let outside = node.dir().join("raced");
    fs::create_dir_all(&outside)?;
    fs::write(outside.join("file"), "the host's")?;
    let line = format!(
        "cd /root; mkdir real; echo own > real/file; ln -s {0} link; mkdir -p {0}
        (i=0; while [ $i -lt 150 ]; do mv real now; mv now real; mv link now; mv now link; i=$((i+1)); done; touch done) &
        while [ ! -e done ]; do cat now/file; echo taken > now/file; echo taken > now/new; done 2>/dev/null; wait",
        outside.display()
    );
    let output = with_home(node, "raced").sh(&line).run()?;
    assert!(!output.text().contains("the host's"));
    assert!(output.text().contains("taken"), "the folder was reached");
    assert_eq!(fs::read_to_string(outside.join("file"))?, "the host's");
    assert_eq!(fs::read_dir(&outside)?.count(), 1);
    Ok(())
}

/// The test uses its own program, since no image is known on which e2fsck never ends.
#[test]
fn home_whose_check_does_not_end_is_refused_and_the_check_confined() -> Result<()> {
    let node = &Node::start_with(|config| {
        config["homes"] = serde_json::json!({ "tool_timeout_secs": 4 });
    })?;
    node.image("busybox")?;
    let with_size = |size: &str| with_home(node, "looped").annotation(SIZE, size);
    with_size("32Mi").sh("echo kept > /root/note").run()?.ok()?;
    let program = node.programs().join("e2fsck");
    fs::create_dir_all(node.programs())?;
    fs::write(&program, "#!/bin/sh\nwhile :; do :; done\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let container = with_size("64Mi").args(["true"]);
    let id = container.id().to_owned();
    let running = container.spawn()?;
    let check = command::poll("the check", LIMIT, || {
        let all = proc::all().into_iter();
        let mut ours = all.filter(|process| process.command.contains("/program/e2fsck"));
        ours.next().map(|process| process.pid)
    })?;
    let status = proc::status(check)?;
    assert!(
        !status["Uid"].split_whitespace().any(|id| id == "0"),
        "{}",
        status["Uid"]
    );
    assert!(proc::capabilities(check, "CapBnd")?.is_empty());
    assert!(proc::capabilities(check, "CapEff")?.is_empty());
    assert_eq!(
        (status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()),
        ("1", "2")
    );
    for kind in ["net", "mnt", "ipc"] {
        assert_ne!(
            proc::namespace(check, kind),
            proc::namespace(std::process::id(), kind)
        );
    }
    let root: Vec<_> = fs::read_dir(format!("/proc/{check}/root"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    assert!(
        !root
            .iter()
            .any(|name| ["proc", "root", "var", "run"].contains(&name.as_str())),
        "{root:?}"
    );
    let cgroups = fs::read_to_string(format!("/proc/{check}/cgroup"))?;
    let memory = cgroups
        .lines()
        .find(|line| line.contains(":memory:") || line.starts_with("0::"));
    assert!(memory.is_some_and(|line| line.contains(&id)), "{cgroups}");
    let limits = fs::read_to_string(format!("/proc/{check}/limits"))?;
    assert!(
        limits
            .lines()
            .any(|l| l.starts_with("Max address space") && l.contains("2147483648")),
        "{limits}"
    );
    let output = running.finish(LIMIT)?;
    let expected = "e2fsck: was killed since it took longer than 4 s (tool_timeout_secs of [homes]";
    assert!(output.errors().contains(expected), "{}", output.errors());
    assert!(!proc::is_running(check));
    fs::remove_file(program)?;
    let next = with_size("32Mi").args(["cat", "/root/note"]);
    assert_eq!(next.run()?.ok()?.line(), "kept");
    Ok(())
}

/// A container can leave files in its own root for its next start. The shim reads the user's home
/// from there.
#[test]
fn passwd_that_a_guest_replaced_neither_blocks_the_shim_nor_leads_out() -> Result<()> {
    let node = Node::shared();
    let image = node.image("busybox")?;
    let home_of_host = "root:x:0:0::/of-the-host:/bin/sh\n";
    let outside = node.dir().join("outside-passwd");
    fs::write(&outside, home_of_host)?;
    for plant in [
        "mkfifo /etc/passwd".to_owned(),
        format!("ln -s {} /etc/passwd", outside.display()),
        format!("rm -r /etc; ln -s {} /etc", node.dir().display()),
    ] {
        let id = node.next_id();
        let line = format!("test -e /planted && exit; touch /planted; rm /etc/passwd; {plant}");
        let mut create = vec!["container", "create", "--runtime", Runtime::Caisson.name()];
        let annotation = format!("{HOME}=ephemeral");
        create.extend(["--annotation", &annotation]);
        // containerd 1.6 takes a command's `-c` for its own flag.
        create.extend(["--", &image, &id, "sh", "-c", &line]);
        node.ctr(create)?.ok()?;
        node.ctr(["task", "start", &id])?.ok()?;
        node.ctr(["task", "delete", &id])?;
        let started = Instant::now();
        let again = node.ctr(["task", "start", &id])?;
        assert_ne!(again.code, 0, "{plant}");
        assert!(
            again.errors().contains("/etc/passwd") || again.errors().contains("home of user 0"),
            "{}",
            again.errors()
        );
        assert!(
            !again.errors().contains("of-the-host"),
            "{}",
            again.errors()
        );
        assert!(started.elapsed() < Duration::from_secs(20), "{plant}");
        node.ctr(["container", "delete", &id])?.ok()?;
    }
    Ok(())
}
