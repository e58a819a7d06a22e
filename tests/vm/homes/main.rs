//! Tests homes: file systems of the node that are plugged into containers.

mod archive;
mod hostile;

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use anyhow::Result;
use caisson_tests::{
    command::{self, Output},
    leftovers::{self, Leftovers},
    node::{caisson, LIMIT},
    proc, Container, ContainerBuilder, Node,
};

const HOME: &str = "caisson.dev/home";
const SIZE: &str = "caisson.dev/home-size";
const MIB: u64 = 1 << 20;

#[test]
fn home_is_kept_between_containers() -> Result<()> {
    let node = Node::shared();
    let write = "test $HOME = /root && cd && pwd && echo first > note && ln note second && chown 1000:2000 note";
    let first = with_home(node, "kept").sh(write).run()?.ok()?;
    assert_eq!(first.line(), "/root");
    let read = "stat -c '%n %u %g %h' /root/note; cat /root/second; ls /root";
    let second = with_home(node, "kept").sh(read).run()?.ok()?;
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
    with_home(node, "annas")
        .sh("echo hers > /root/note")
        .run()?
        .ok()?;
    let other = with_home(node, "berts");
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
    let container = with_home(node, "killed").args(["sleep", "1000"]).start()?;
    container.sh("echo before the end | dd of=/root/note conv=fsync")?;
    proc::kill(container.vmm()?, libc::SIGKILL);
    container.wait()?;
    container.delete()?;
    let next = with_home(node, "killed");
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
