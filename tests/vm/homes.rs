//! Tests homes: file systems of the node that are plugged into containers.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use caisson_tests::{
    command::{self, Output},
    leftovers::{self, Leftovers},
    node::{caisson, LIMIT},
    proc, Container, ContainerBuilder, Node, Runtime,
};

const HOME: &str = "caisson.dev/home";
const SIZE: &str = "caisson.dev/home-size";
const MIB: u64 = 1 << 20;

#[test]
fn home_is_kept_between_containers() -> Result<()> {
    let node = Node::shared();
    let write = "test $HOME = /root && cd && pwd && echo first > note && ln note second && chown 1000:2000 note";
    let first = node
        .container("busybox")
        .annotation(HOME, "persistent/kept")
        .sh(write)
        .run()?
        .ok()?;
    assert_eq!(first.line(), "/root");
    let read = "stat -c '%n %u %g %h' /root/note; cat /root/second; ls /root";
    let second = node
        .container("busybox")
        .annotation(HOME, "persistent/kept")
        .sh(read)
        .run()?
        .ok()?;
    assert_eq!(second.line(), "/root/note 1000 2000 2\nfirst\nnote\nsecond");
    Ok(())
}

#[test]
fn home_belongs_to_the_containers_user() -> Result<()> {
    let node = Node::shared();
    let container = node
        .container("busybox-app")
        .annotation(HOME, "persistent/apps");
    let line = "id -u; echo mine > /home/app/note && stat -c '%u %g %a' /home/app /home/app/note";
    let output = container.sh(line).run()?.ok()?;
    assert_eq!(output.line(), "1000\n1000 1000 700\n1000 1000 644");
    Ok(())
}

#[test]
fn homes_of_other_names_are_apart() -> Result<()> {
    let node = Node::shared();
    node.container("busybox")
        .annotation(HOME, "persistent/annas")
        .sh("echo hers > /root/note")
        .run()?
        .ok()?;
    let other = node
        .container("busybox")
        .annotation(HOME, "persistent/berts");
    let output = other
        .sh("ls -A /root; ls -A /root/..; cat /root/../annas/note")
        .run()?;
    assert!(
        !output.text().contains("note") && !output.text().contains("annas"),
        "{}",
        output.text()
    );
    Ok(())
}

#[test]
fn home_is_kept_after_the_vm_was_killed() -> Result<()> {
    let node = Node::shared();
    let container = node
        .container("busybox")
        .annotation(HOME, "persistent/killed")
        .args(["sleep", "1000"])
        .start()?;
    container.sh("echo before the end | dd of=/root/note conv=fsync")?;
    proc::kill(container.vmm()?, libc::SIGKILL);
    container.wait()?;
    container.delete()?;
    let next = node
        .container("busybox")
        .annotation(HOME, "persistent/killed");
    assert_eq!(
        next.args(["cat", "/root/note"]).run()?.ok()?.line(),
        "before the end"
    );
    Ok(())
}

#[test]
fn home_of_a_killed_shim_is_free_for_the_next() -> Result<()> {
    // The test has its own node, since it counts what is left on it.
    let node = &Node::start()?;
    node.image("busybox")?;
    let before = Leftovers::count(node);
    let container = with_home(node, "orphan").args(["sleep", "1000"]).start()?;
    container.sh("echo before the end | dd of=/root/note conv=fsync")?;
    let shim = container.shim()?;
    proc::kill(shim, libc::SIGKILL);
    command::poll("the shim's end", LIMIT, || {
        (!proc::is_running(shim)).then_some(())
    })?;
    let next = with_home(node, "orphan").args(["cat", "/root/note"]);
    assert_eq!(next.run()?.ok()?.line(), "before the end");
    container.delete()?;
    Leftovers::none_since(node, &before)
}

#[test]
fn home_in_use_is_refused_naming_who_has_it() -> Result<()> {
    let node = Node::shared();
    let first = with_home(node, "single").args(["sleep", "1000"]).start()?;
    first.sh("echo mine > /root/note")?;
    let second = with_home(node, "single").args(["true"]).run()?;
    assert_ne!(second.code, 0);
    let expected = format!(
        "home {0}/single is in use by {0}/{1}",
        node.tag(),
        first.id()
    );
    assert!(second.errors().contains(&expected), "{}", second.errors());
    assert_eq!(first.sh("cat /root/note")?, "mine");
    end(&first)
}

#[test]
fn home_that_is_full_gives_enospc_and_takes_no_more_of_the_host() -> Result<()> {
    let node = Node::shared();
    let container = with_home(node, "full")
        .annotation(SIZE, "32Mi")
        .args(["sleep", "1000"])
        .start()?;
    let fill = "dd if=/dev/urandom of=/root/fill bs=1M count=64 2>&1; sync; ls /root";
    let output = container.sh(fill)?;
    assert!(output.contains("No space left on device"), "{output}");
    let image = fs::metadata(image(node, "full"))?;
    let used = image.blocks() * 512;
    assert_eq!(image.len(), 32 * MIB);
    assert!(
        (20 * MIB..=32 * MIB).contains(&used),
        "{used} bytes on the host"
    );
    container.sh("rm /root/fill && echo fits > /root/note")?;
    end(&container)?;
    // The removed file's space went back to the host.
    let used = fs::metadata(self::image(node, "full"))?.blocks() * 512;
    assert!(used < 20 * MIB, "{used} bytes on the host");
    Ok(())
}

#[test]
fn home_without_inodes_gives_enospc() -> Result<()> {
    let container = with_home(Node::shared(), "many").annotation(SIZE, "16Mi");
    let line =
        "cd /root && i=0; while [ $i -lt 6000 ]; do : > f$i || break; i=$((i+1)); done; ls | wc -l";
    let output = container.sh(line).run()?;
    assert!(
        output.errors().contains("No space left on device"),
        "{} files",
        output.line()
    );
    Ok(())
}

#[test]
fn home_grows_where_more_is_asked_for_and_keeps_what_is_in_it() -> Result<()> {
    let node = Node::shared();
    let of = |size: &str, line: &str| -> Result<String> {
        let container = with_home(node, "growing").annotation(SIZE, size);
        Ok(container.sh(line).run()?.ok()?.line())
    };
    of("32Mi", "echo kept > /root/note")?;
    let kept = of(
        "128Mi",
        "dd if=/dev/zero of=/root/fill bs=1M count=80 2>/dev/null && cat /root/note",
    )?;
    assert_eq!(kept, "kept");
    assert_eq!(of("32Mi", "ls /root")?, "fill\nnote");
    assert_eq!(fs::metadata(image(node, "growing"))?.len(), 128 * MIB);
    Ok(())
}

#[test]
fn ephemeral_home_is_gone_with_its_pod() -> Result<()> {
    // The test has its own node, since it counts what is left on it.
    let node = &Node::start()?;
    node.image("busybox")?;
    let before = Leftovers::count(node);
    for _ in 0..2 {
        let container = node
            .container("busybox")
            .annotation(HOME, "ephemeral")
            .annotation(SIZE, "64Mi");
        let line = "ls -A /root; echo here > /root/note && cat /root/note";
        assert_eq!(container.sh(line).run()?.ok()?.line(), "here");
    }
    Leftovers::none_since(node, &before)
}

#[test]
fn ephemeral_home_of_a_killed_shim_is_gone() -> Result<()> {
    // The test has its own node, since it counts what is left on it.
    let node = &Node::start()?;
    node.image("busybox")?;
    let before = Leftovers::count(node);
    let container = node.container("busybox").annotation(HOME, "ephemeral");
    let container = container.args(["sleep", "1000"]).start()?;
    container.sh("echo here > /root/note")?;
    assert_eq!(leftovers::loop_devices(node.tag()).len(), 1);
    proc::kill(container.shim()?, libc::SIGKILL);
    container.delete()?;
    Leftovers::none_since(node, &before)
}

#[test]
fn home_is_where_its_annotation_says() -> Result<()> {
    let container = with_home(Node::shared(), "placed");
    let container = container.annotation("caisson.dev/home-path", "/srv/work");
    let line = "echo here > /srv/work/note; ls /root; grep -c ' /srv/work ' /proc/mounts";
    assert_eq!(container.sh(line).run()?.ok()?.line(), "1");
    Ok(())
}

#[test]
fn annotation_of_a_home_that_cannot_be_is_refused_by_its_key() -> Result<()> {
    for (key, value) in [
        (HOME, "persistent/../x"),
        (SIZE, "1Mi"),
        ("caisson.dev/home-path", "/a/../b"),
    ] {
        let mut container = Node::shared().container("busybox");
        if key != HOME {
            container = container.annotation(HOME, "ephemeral");
        }
        let output = container.annotation(key, value).args(["true"]).run()?;
        assert!(output.errors().contains(key), "{}", output.errors());
    }
    Ok(())
}

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

#[test]
fn home_behaves_as_a_file_system_of_posix() -> Result<()> {
    let output = with_home(Node::shared(), "posix")
        .args(["probe", "posix", "/root"])
        .run()?
        .ok()?;
    assert_eq!(
        output.line(),
        "lock flock rename mmap direct xattr fsync unlinked append"
    );
    Ok(())
}

#[test]
fn home_is_listed_archived_and_removed() -> Result<()> {
    let node = Node::shared();
    let make = "cd /root && echo text > note && chown 1000:2000 note && chmod 640 note && ln -s note link \
                && probe setxattr note user.colour blue";
    with_home(node, "archived")
        .annotation(SIZE, "48Mi")
        .sh(make)
        .run()?
        .ok()?;
    let name = format!("{}/archived", node.tag());
    let line = |list: Output| -> Result<String> {
        let text = list.ok()?.text();
        let line = text.lines().find(|line| line.contains(&name));
        Ok(line.context("the home is listed")?.trim().to_owned())
    };
    let listed = line(home(node, &["list"])?)?;
    assert!(
        listed.starts_with("48 ") && listed.ends_with(&name),
        "{listed}"
    );
    let file = node.dir().join("archived.tar");
    home(node, &["archive", &name, &file.display().to_string()])?.ok()?;
    let unpacked = node.dir().join("unpacked");
    fs::create_dir_all(&unpacked)?;
    let mut tar = std::process::Command::new("tar");
    tar.args([
        "--extract",
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
    ]);
    tar.arg("--directory")
        .arg(&unpacked)
        .arg("--file")
        .arg(&file);
    command::run(&mut tar, None, LIMIT)?.ok()?;
    let note = fs::metadata(unpacked.join("note"))?;
    assert_eq!(
        (note.uid(), note.gid(), note.mode() & 0o7777),
        (1000, 2000, 0o640)
    );
    assert_eq!(fs::read_link(unpacked.join("link"))?, Path::new("note"));
    let mut xattr = std::process::Command::new("getfattr");
    xattr
        .args(["--only-values", "-n", "user.colour"])
        .arg(unpacked.join("note"));
    assert_eq!(command::run(&mut xattr, None, LIMIT)?.ok()?.line(), "blue");
    home(node, &["remove", &name])?.ok()?;
    assert!(!image(node, "archived").exists());
    let next = with_home(node, "archived").args(["ls", "-A", "/root"]);
    assert_eq!(next.run()?.ok()?.text(), "");
    Ok(())
}

#[test]
fn home_in_use_is_neither_archived_nor_removed() -> Result<()> {
    let node = Node::shared();
    let container = with_home(node, "busy").args(["sleep", "1000"]).start()?;
    let name = format!("{}/busy", node.tag());
    let used = format!("{name} is in use by {}/{}", node.tag(), container.id());
    let file = node.dir().join("busy.tar");
    for arguments in [
        &["archive", &name, &file.display().to_string()][..],
        &["remove", &name][..],
    ] {
        let refused = home(node, arguments)?;
        assert_ne!(refused.code, 0);
        assert!(refused.errors().contains(&used), "{}", refused.errors());
    }
    assert!(!file.exists());
    let list = home(node, &["list"])?.text();
    assert!(
        list.contains(&format!("{name} {}/{}", node.tag(), container.id())),
        "{list}"
    );
    container.sh("echo still > /root/note")?;
    end(&container)
}

#[test]
fn home_that_is_not_there_is_named() -> Result<()> {
    let node = Node::shared();
    let name = format!("{}/nobody", node.tag());
    let file = node.dir().join("nobody.tar").display().to_string();
    for arguments in [&["archive", &name, &file][..], &["remove", &name][..]] {
        let refused = home(node, arguments)?;
        assert_ne!(refused.code, 0);
        let expected = format!("there is no home {name}");
        assert!(refused.errors().contains(&expected), "{}", refused.errors());
    }
    Ok(())
}

/// Puts everything into a home that a program on the host could trip over.
#[test]
fn home_with_odd_files_is_archived_as_it_is() -> Result<()> {
    let node = Node::shared();
    let secret = node.dir().join("odd-secret");
    fs::write(&secret, "the host's")?;
    let line = format!(
        "cd /root && ln -s {0} link && ln -s / root && mkfifo fifo && truncate -s 1099511627776 sparse && mkdir -p a/b && ln -s ../.. a/b/up \
         && printf x > \"$(printf 'a\\033[31m\\nb')\" && probe socket /root/socket",
        secret.display()
    );
    let container = with_home(node, "odd").annotation(SIZE, "32Mi");
    container.sh(&line).run()?.ok()?;
    let name = format!("{}/odd", node.tag());
    let file = node.dir().join("odd.tar");
    home(node, &["archive", &name, &file.display().to_string()])?.ok()?;
    let size = fs::metadata(&file)?.len();
    assert!(size < MIB, "{size} bytes");
    let mut tar = std::process::Command::new("tar");
    tar.args(["--list", "--verbose", "--file"]).arg(&file);
    let listed = command::run(&mut tar, None, LIMIT)?.ok()?.text();
    for kind in ["prw", "lrwxrwxrwx", "./link -> ", "./root -> /"] {
        assert!(listed.contains(kind), "{kind} in {listed}");
    }
    let text = String::from_utf8_lossy(&fs::read(&file)?).into_owned();
    assert!(!text.contains("the host's"));
    Ok(())
}

#[test]
fn home_over_a_limit_is_refused_with_the_limit_and_what_is_used() -> Result<()> {
    let node = &Node::start_with(|config| {
        config["homes"] = serde_json::json!({
            "size_mib": 32, "max_size_mib": 64, "namespace_budget_mib": 96, "node_budget_mib": 200
        });
    })?;
    node.image("busybox")?;
    let refused = |container: ContainerBuilder<'_>| -> Result<String> {
        let output = container.args(["true"]).run()?;
        assert_ne!(output.code, 0);
        Ok(output.errors())
    };
    let error = refused(with_home(node, "large").annotation(SIZE, "65Mi"))?;
    let expected = format!(
        "the home {}/large of 65 MiB is larger than a home may be on this node (64 MiB, max_size_mib of [homes]",
        node.tag()
    );
    assert!(error.contains(&expected), "{error}");
    with_home(node, "first")
        .annotation(SIZE, "60Mi")
        .args(["true"])
        .run()?
        .ok()?;
    let ephemeral = node.container("busybox").annotation(HOME, "ephemeral");
    let ephemeral = ephemeral.args(["sleep", "1000"]).start()?;
    let error = refused(with_home(node, "second"))?;
    let expected = format!(
        "the home {0}/second of 32 MiB is over the budget of the namespace {0} for homes: 92 MiB of 96 MiB are used (namespace_budget_mib of \
         [homes]",
        node.tag()
    );
    assert!(error.contains(&expected), "{error}");
    let listed = home(node, &["list"])?.ok()?.text();
    for line in [
        format!("namespace {}: 92 MiB of 96 MiB\n", node.tag()),
        "node: 92 MiB of 200 MiB, 32 MiB of them ephemeral\n".to_owned(),
    ] {
        assert!(listed.contains(&line), "{listed}");
    }
    // An existing home may be used, but must not grow beyond the budget.
    with_home(node, "first").args(["true"]).run()?.ok()?;
    let error = refused(with_home(node, "first").annotation(SIZE, "65Mi"))?;
    assert!(error.contains("max_size_mib"), "{error}");
    end(&ephemeral)?;
    command::poll("the ephemeral home to be gone", LIMIT, || {
        let listed = home(node, &["list"]).ok()?.text();
        (!listed.contains("ephemeral")).then_some(())
    })?;
    with_home(node, "second").args(["true"]).run()?.ok()?;
    assert_eq!(
        fs::read_dir(node.store_dir().join("homes/.claims"))?.count(),
        1
    );
    Ok(())
}

#[test]
fn containers_that_ask_at_once_have_no_more_than_the_budget() -> Result<()> {
    let node = &Node::start_with(|config| {
        config["homes"] = serde_json::json!({ "size_mib": 32, "node_budget_mib": 64 });
    })?;
    node.image("busybox")?;
    let asked: Vec<_> = (0..4)
        .map(|n| {
            let home = with_home(node, &format!("at-once-{n}"));
            home.args(["true"]).spawn()
        })
        .collect::<Result<_>>()?;
    let mut granted = 0;
    for container in asked {
        let output = container.finish(LIMIT)?;
        match output.code {
            0 => granted += 1,
            _ => assert!(
                output.errors().contains("node_budget_mib"),
                "{}",
                output.errors()
            ),
        }
    }
    assert_eq!(granted, 2);
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

fn with_home<'n>(node: &'n Node, name: &str) -> ContainerBuilder<'n> {
    node.container("busybox")
        .annotation(HOME, &format!("persistent/{name}"))
}

fn end(container: &Container) -> Result<()> {
    container.kill("SIGKILL")?;
    container.wait()?;
    container.delete()
}

/// Runs `caisson home …`.
fn home(node: &Node, arguments: &[&str]) -> Result<Output> {
    let mut command = caisson(node)?;
    command.arg("home").args(arguments);
    command::run(&mut command, None, LIMIT)
}

/// Returns the file system of a home on the host.
fn image(node: &Node, name: &str) -> PathBuf {
    let homes = node.store_dir().join("homes");
    homes.join(node.tag()).join(name).join("image")
}
