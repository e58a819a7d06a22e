//! Tests that the root file system has what the image has, and nothing else of the host.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};
use caisson_tests::{
    command, fixture, image,
    node::{LIMIT, LONG},
    Node, Runtime,
};
use rstest::rstest;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
#[ignore = "takes minutes: make pods"]
fn image_of_50000_files_is_there_to_the_last_byte(#[case] runtime: Runtime) -> Result<()> {
    let line = "find /many -type f | wc -l; for d in /many/*; do cat $d/*; done | sha256sum";
    let container = Node::shared().container("many").runtime(runtime).sh(line);
    let output = container.within(LONG).run()?.ok()?;
    // The shell sorts the results of `*` by bytes.
    let mut dirs: Vec<_> = (0..fixture::MANY_DIRS).map(|n| n.to_string()).collect();
    let mut files: Vec<_> = (0..fixture::MANY_FILES / fixture::MANY_DIRS)
        .map(|n| n.to_string())
        .collect();
    dirs.sort();
    files.sort();
    let mut content = String::new();
    for dir in &dirs {
        files
            .iter()
            .for_each(|file| content.push_str(&format!("many/{dir}/{file}")));
    }
    let digest = image::sha256(content.as_bytes())?;
    assert_eq!(
        output.line(),
        format!("{}\n{digest}  -", fixture::MANY_FILES)
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn kinds_of_files_are_as_in_the_image(#[case] runtime: Runtime) -> Result<()> {
    let line = "cd /zoo; stat -c '%n|%F|%a|%u|%g|%h|%t,%T' file second-name owned nobody setuid sticky fifo null loop; \
                readlink relative; readlink absolute; readlink dangling; cat relative absolute; \
                test file -ef second-name && echo same; echo x > null; probe getxattr attribute user.colour; \
                ls | grep -c '^nnn'; cat 'with space\nand line'";
    let line = line.replace("\\n", "\n");
    let output = Node::shared()
        .container("files")
        .runtime(runtime)
        .sh(&line)
        .run()?;
    let expected = "file|regular file|640|0|0|2|0,0
second-name|regular file|640|0|0|2|0,0
owned|regular file|604|1000|2000|1|0,0
nobody|regular file|400|65534|65534|1|0,0
setuid|regular file|4755|0|0|1|0,0
sticky|directory|1777|0|0|2|0,0
fifo|fifo|622|0|0|1|0,0
null|character special file|666|0|0|1|1,3
loop|block special file|660|0|0|1|7,0
file
/zoo/file
nowhere
a file
a file
same
blue
1
odd";
    assert_eq!(output.line(), expected, "{}", output.errors());
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn kinds_of_files_can_be_made(#[case] runtime: Runtime) -> Result<()> {
    let line = "mkdir /made && cd /made && echo one > file && ln file hard && ln -s file soft && mkfifo fifo && \
                (echo through the fifo > fifo &) && cat fifo && \
                probe socket socket && probe setxattr file user.shape round && probe getxattr hard user.shape && \
                chown 1000:2000 file && chmod 4750 file && mv soft moved && rm fifo && \
                stat -c '%n|%F|%a|%u|%g|%h' hard moved socket && cat moved";
    let output = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .sh(line)
        .run()?;
    let expected = "through the fifo
through the socket
set
round
hard|regular file|4750|1000|2000|2
moved|symbolic link|777|0|0|1
socket|socket|755|0|0|1
one";
    assert_eq!(output.line(), expected, "{}", output.errors());
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn device_node_can_be_made_and_opened(#[case] runtime: Runtime) -> Result<()> {
    let line = "mknod /dev/mine c 1 3 && echo x > /dev/mine && stat -c '%F|%t,%T' /dev/mine";
    let output = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .sh(line)
        .run()?
        .ok()?;
    assert_eq!(output.line(), "character special file|1,3");
    Ok(())
}

/// runc allows this. A device node made by a guest would lie in the host's file system, where the
/// host's processes could open it.
#[test]
fn device_node_on_a_file_system_of_the_host_is_refused() -> Result<()> {
    let output = Node::shared()
        .container("busybox")
        .sh("mknod /null c 1 3")
        .run()?;
    assert_ne!(output.code, 0);
    let error = output.errors();
    assert!(error.contains("Operation not permitted"), "{error}");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
#[ignore = "takes minutes: make pods"]
fn file_of_2_gib_is_written_and_read(#[case] runtime: Runtime) -> Result<()> {
    let line = "dd if=/dev/zero of=/big bs=1M count=2047 2>/dev/null && \
                probe write-at /big 2147483640 overhead && stat -c %s /big && tail -c 8 /big && echo && \
                dd if=/big bs=1M 2>/dev/null | wc -c";
    let container = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .memory_mib(128)
        .sh(line);
    let output = container.within(LONG).run()?.ok()?;
    assert_eq!(output.line(), "written\n2147483648\noverhead\n2147483648");
    Ok(())
}

/// Their instructions are at the same addresses, and at each turn in other pages of the guest.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn programs_that_take_turns_run_unharmed(#[case] runtime: Runtime) -> Result<()> {
    let line = "for turn in $(seq 40); do sh -c 'echo one' && probe segments /bin/busybox; done | \
                sort | uniq -c | wc -l";
    let container = Node::shared().container("busybox").runtime(runtime);
    let output = container.sh(line).run()?.ok()?;
    assert_eq!(output.line(), "2");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn sparse_file_keeps_its_holes(#[case] runtime: Runtime) -> Result<()> {
    let line = "probe write-at /sparse 1073741824 data && truncate -s 4294967296 /sparse && probe segments /sparse";
    let output = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .sh(line)
        .run()?
        .ok()?;
    let expected = "size 4294967296 allocated 4096 data 1073741824-1073745920";
    assert_eq!(
        output.text().lines().last(),
        Some(expected),
        "{}",
        output.text()
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn written_files_stay_in_the_container(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let first = node
        .container("busybox")
        .runtime(runtime)
        .sh("echo changed > /etc/passwd; cat /etc/passwd");
    assert_eq!(first.run()?.ok()?.line(), "changed");
    let second = node
        .container("busybox")
        .runtime(runtime)
        .args(["head", "-n1", "/etc/passwd"])
        .run()?
        .ok()?;
    assert_eq!(second.line(), "root:x:0:0:root:/root:/bin/sh");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn read_only_rootfs_refuses_writes(#[case] runtime: Runtime) -> Result<()> {
    let container = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .switch("--read-only");
    let output = container
        .sh("echo x > /file; touch /etc/passwd; echo x > /dev/null && echo null")
        .run()?;
    assert_eq!(output.line(), "null");
    assert_eq!(
        output.errors().matches("Read-only file system").count(),
        2,
        "{}",
        output.errors()
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn bind_mount_shows_the_hosts_directory_and_no_more(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let container = node.container("busybox").runtime(runtime);
    let dir = node.dir().join(format!("bind-{}", container.id()));
    fs::create_dir_all(dir.join("inside"))?;
    fs::write(dir.join("secret"), "not for the container")?;
    fs::write(dir.join("inside/file"), "from the host\n")?;
    let line =
        "cat /mnt/file; echo from the container > /mnt/answer; ls /mnt/..; cat /mnt/../secret";
    let output = container
        .bind(&dir.join("inside"), "/mnt", "rbind:rw")
        .sh(line)
        .run()?;
    assert!(
        output.text().starts_with("from the host\n"),
        "{}",
        output.text()
    );
    assert!(
        !output.text().contains("secret") && !output.text().contains("not for"),
        "{}",
        output.text()
    );
    assert_eq!(
        fs::read_to_string(dir.join("inside/answer"))?,
        "from the container\n"
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn read_only_bind_mount_refuses_writes(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let container = node.container("busybox").runtime(runtime);
    let dir = node.dir().join(format!("bind-{}", container.id()));
    fs::create_dir(&dir)?;
    fs::write(dir.join("file"), "before")?;
    let output = container
        .bind(&dir, "/mnt", "rbind:ro")
        .sh("echo after > /mnt/file; cat /mnt/file")
        .run()?;
    assert_eq!(output.line(), "before");
    assert!(
        output.errors().contains("Read-only file system"),
        "{}",
        output.errors()
    );
    assert_eq!(fs::read_to_string(dir.join("file"))?, "before");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn hosts_files_are_not_reached_by_dots_or_symlinks(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let secret = node.dir().join("secret");
    fs::write(&secret, "the host's")?;
    let up = format!(
        "{}{}",
        "../".repeat(40),
        secret.strip_prefix("/")?.display()
    );
    let line = format!(
        "cat {up}; ln -s {0} /absolute; cat /absolute; ln -s {up} /relative; cat /relative; \
         cat /proc/1/root{0}; cat /proc/self/cwd/{up}; cd /..; ls -d etc bin tmp; ls /tmp | wc -l",
        secret.display()
    );
    let output = node.container("busybox").runtime(runtime).sh(&line).run()?;
    assert_eq!(output.line(), "bin\netc\ntmp\n0", "{}", output.errors());
    Ok(())
}

/// A process in the container holds a directory that is moved out of the shared one on the host.
/// With a shared kernel this reaches the host's files (it does in runc's container), so the test
/// runs only with Caisson.
#[test]
fn hosts_files_are_not_reached_by_an_open_directory_moved_away() -> Result<()> {
    let node = Node::shared();
    let container = node.container("busybox");
    let dir = node.dir().join(format!("moved-{}", container.id()));
    fs::create_dir_all(dir.join("shared/inside"))?;
    fs::write(dir.join("secret"), "the host's")?;
    fs::write(dir.join("shared/go"), "")?;
    let line = "cd /mnt/inside; touch ../ready; while [ -e /mnt/go ]; do sleep 0.1; done; \
                ls ..; cat ../secret; cat ../../secret; exec 3</mnt; ls /proc/self/fd/3/..; echo end";
    let running = container
        .bind(&dir.join("shared"), "/mnt", "rbind:rw")
        .sh(line)
        .spawn()?;
    command::poll("the container's word", LIMIT, || {
        fs::metadata(dir.join("shared/ready")).ok()
    })?;
    fs::rename(dir.join("shared/inside"), dir.join("outside"))?;
    fs::remove_file(dir.join("shared/go"))?;
    let output = running.finish(LIMIT)?;
    assert!(
        output.text().ends_with("end\n"),
        "{}{}",
        output.text(),
        output.errors()
    );
    assert!(
        !output.text().contains("secret") && !output.text().contains("the host's"),
        "{}",
        output.text()
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn hosts_files_are_not_reached_by_file_handles(#[case] runtime: Runtime) -> Result<()> {
    let output = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .args(["probe", "open-by-handle", "/"])
        .run()?;
    assert_ne!(output.code, 0);
    assert!(output.line().contains("not permitted"), "{}", output.text());
    Ok(())
}

/// Sockets and FIFOs of the host in a bind mount are only names in the guest, where nothing listens
/// on them.
#[test]
fn hosts_socket_in_a_bind_mount_is_not_answered_in_the_guest() -> Result<()> {
    let node = Node::shared();
    let container = node.container("busybox");
    let dir = node.dir().join(format!("sockets-{}", container.id()));
    fs::create_dir(&dir)?;
    let _mkfifo = mkfifo(&dir.join("fifo"))?;
    let line =
        "stat -c %F /mnt/fifo; (echo from the guest > /mnt/fifo) & sleep 1; kill $!; echo end";
    let output = container.bind(&dir, "/mnt", "rbind:rw").sh(line).run()?;
    assert_eq!(output.line(), "fifo\nend", "{}", output.errors());
    Ok(())
}

/// Creates a FIFO of the host with a reader, which must not receive anything.
fn mkfifo(path: &Path) -> Result<Reader> {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).context("mkfifo")?;
    let child = Command::new("cat")
        .arg(path)
        .stdout(Stdio::null())
        .spawn()?;
    Ok(Reader(child))
}

struct Reader(Child);

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
