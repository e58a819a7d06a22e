//! Tests root in the guest against what the host shares with it. Root can't change the folders that
//! the shim works in, and nothing on the host follows what a guest plants where it may write. The
//! tests run one at a time, since they count what is left on the whole node.

use std::{
    fs,
    io::Write,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{ensure, Context, Result};
use caisson_tests::{
    command,
    cri::{first_namespace, Container, CriNode, PodBuilder},
    leftovers::alone,
    node::caisson,
    skill, Leftovers,
};
use nix::mount::{mount, umount2, MntFlags, MsFlags};

const SOON: Duration = Duration::from_secs(20);

/// What root in the guest tries in a folder `$D`, with busybox as `$B` and a file of its own as
/// `$F`.
const CHANGES: &str = "
try() { what=$1; shift; echo \"$what: $(\"$@\" 2>&1 && echo done)\"; }
try create $B touch $D/new
try mkdir $B mkdir $D/new
try symlink $B ln -s /etc $D/new
try link $B ln $F $D/new
try mkfifo $B mkfifo $D/new
try mknod $B mknod $D/new c 1 3
try chmod $B chmod 777 $D
try chown $B chown 1000 $D
try touch $B touch -d 2001-01-01 $D
try setxattr $R/lib64/ld-linux-x86-64.so.2 --library-path $R/lib $R/bin/probe \\
    setxattr $D user.colour blue
for name in $($B ls -A $D); do
    try \"rename $name\" $B mv $D/$name $D/moved
    if $B test -d $D/$name; then try \"rmdir $name\" $B rmdir $D/$name
    else try \"rm $name\" $B rm -f $D/$name; fi
done";

#[test]
fn folders_of_the_shim_refuse_every_change_of_root_in_the_guest() -> Result<()> {
    let _alone = alone();
    let node = CriNode::shared();
    let pod = node.pod().privileged().start()?;
    let folder = pod.folder("volume")?;
    let container = pod
        .container("busybox")
        .privileged()
        .mount(&folder, "/data");
    let container = container.args(["sleep", "1000"]).start()?;
    let top = "/run/caisson/shares/pod";
    for place in [
        top.to_owned(),
        format!("{top}/.volumes"),
        format!("{top}/{}", container.id()),
    ] {
        let said = first_namespace::run(&container, &format!("D={place}\n{CHANGES}"))?;
        assert!(said.lines().count() >= 12, "{said}");
        for line in said.lines() {
            // These folders have no file that could get a second name there.
            let expected = match line.split(':').next() {
                Some("link") => "Invalid cross-device link",
                _ => "Read-only file system",
            };
            // The guest's own kernel keeps in place what is mounted in the guest.
            let mounted = line.starts_with("r") && line.contains("Device or resource busy");
            assert!(mounted || line.contains(expected), "{place}: {line}");
        }
    }
    // What belongs to the guest can be changed from there too.
    let script = "$B touch $R/etc/written $R/data/written; echo $?";
    assert_eq!(first_namespace::run(&container, script)?, "0");
    Ok(())
}

/// A directory, a mount and a file of the host that do not belong to the pod.
struct Bystander {
    dir: tempfile::TempDir,
    before: String,
}

impl Bystander {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("mounted"))?;
        let none = None::<&str>;
        mount(
            none,
            &dir.path().join("mounted"),
            Some("tmpfs"),
            MsFlags::empty(),
            none,
        )?;
        fs::write(dir.path().join("mounted/file"), "on a mount")?;
        fs::create_dir(dir.path().join("folder"))?;
        fs::write(dir.path().join("folder/file"), "in a folder")?;
        fs::write(dir.path().join("file"), "a file")?;
        let mut new = Self {
            dir,
            before: String::new(),
        };
        new.before = new.look()?;
        Ok(new)
    }

    /// Returns names, kinds, owners, modes, sizes and times of all files.
    fn look(&self) -> Result<String> {
        let mut text = String::new();
        for name in [
            "",
            "mounted",
            "mounted/file",
            "folder",
            "folder/file",
            "file",
        ] {
            let path = self.dir.path().join(name);
            let status = fs::symlink_metadata(&path).with_context(|| format!("{path:?}"))?;
            text.push_str(&format!(
                "{name} {:o} {} {} {} {} {}\n",
                status.mode(),
                status.uid(),
                status.dev(),
                status.size(),
                status.mtime_nsec(),
                status.ctime_nsec()
            ));
        }
        Ok(text)
    }

    fn is_untouched(&self, after: &str) -> Result<()> {
        assert_eq!(self.look()?, self.before, "after {after}");
        Ok(())
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = umount2(&self.dir.path().join("mounted"), MntFlags::MNT_DETACH);
    }
}

/// Plants links and FIFOs wherever the container may write: in its root, a volume and its home.
fn plant(container: &Container<'_>, bystander: &Bystander) -> Result<()> {
    let host = bystander.dir.path().display();
    let script = format!(
        "for d in /data /root /; do \
            ln -sfn {host} $d/..data; ln -sfn {host}/folder $d/files; ln -sfn {host}/mounted $d/own-root; \
            ln -sfn {host}/file $d/image; ln -sfn / $d/up; rm -f $d/pipe; mkfifo $d/pipe; \
            ln -sfn ../../../../../../../..{host} $d/relative; done; \
         rm -rf /opt /etc/passwd /etc/group /etc/hostname.d; \
         ln -s {host}/folder /opt; mkfifo /etc/passwd; ln -s {host}/file /etc/group; \
         mv /data/files /data/moved; ln -s {host}/mounted /data/files; echo planted"
    );
    let said = container.sh(&script)?;
    ensure!(said.ends_with("planted"), "{said}");
    Ok(())
}

#[test]
fn links_and_fifos_of_a_guest_lead_nobody_on_the_host_to_its_files() -> Result<()> {
    let _alone = alone();
    let node = CriNode::shared();
    node.image("busybox")?;
    let before = Leftovers::count(node);
    let bystander = Bystander::new()?;
    let pod = with_home(node).privileged().start()?;
    let volume = pod.folder("volume")?;
    let start = |name: &str, attempt| {
        let container = pod.container("busybox").named(name, attempt).privileged();
        container
            .env("HOME", "/root")
            .mount(&volume, "/data")
            .args(["sleep", "1000"])
            .start()
    };
    let one = start("one", 0)?;
    let two = start("two", 0)?;
    plant(&one, &bystander)?;
    plant(&two, &bystander)?;
    // Replaces the top of the share, from the guest's first mount namespace. This attack once
    // succeeded.
    let host = bystander.dir.path().join("mounted");
    let script = format!(
        "cd /run/caisson/shares/pod; $B mv {id} moved; $B ln -s {host} {id}; $B mv .volumes gone; \
         $B ln -s {host} .volumes; echo tried",
        id = two.id(),
        host = host.display()
    );
    first_namespace::run(&one, &script)?;

    let skill = packed("late")?;
    for action in ["attach", "detach"] {
        // The action may be refused, since the guest may spoil the place that the skill belongs in.
        let _ = caisson(node)?
            .args(["skill", action, pod.id(), &skill])
            .output()?;
        bystander.is_untouched(action)?;
    }
    one.stop(Duration::ZERO)?;
    bystander.is_untouched("a stop")?;
    one.remove()?;
    bystander.is_untouched("a removal")?;
    let again = start("one", 1)?;
    assert_eq!(again.sh("test -p /data/pipe && echo here")?, "here");
    bystander.is_untouched("a restart with the same volume")?;
    two.stop(Duration::ZERO)?;
    two.remove()?;
    bystander.is_untouched("the removal of the one whose folder was to be moved")?;
    pod.stop()?;
    pod.remove()?;
    bystander.is_untouched("the pod's removal")?;
    Leftovers::none_since(node, &before)
}

#[test]
fn pod_of_a_killed_shim_is_removed_without_touching_what_its_guest_pointed_at() -> Result<()> {
    let _alone = alone();
    let node = CriNode::shared();
    node.image("busybox")?;
    let bystander = Bystander::new()?;
    let pod = with_home(node).privileged().start()?;
    let volume = pod.folder("volume")?;
    let container = pod.container("busybox").privileged();
    let container = container.env("HOME", "/root");
    let container = container
        .mount(&volume, "/data")
        .args(["sleep", "1000"])
        .start()?;
    plant(&container, &bystander)?;
    caisson_tests::proc::kill(pod.shim()?, libc::SIGKILL);
    let output = caisson(node)?.arg("gc").output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    bystander.is_untouched("caisson gc")?;
    // containerd learns of the end a moment later.
    command::poll("the pod to be removed", SOON, || {
        pod.stop().and_then(|()| pod.remove()).ok()
    })?;
    bystander.is_untouched("the pod's removal")
}

#[test]
fn nobody_of_the_host_reaches_what_is_in_the_state_folder_and_the_stores() -> Result<()> {
    let _alone = alone();
    let node = CriNode::shared();
    let pod = with_home(node).start()?;
    let volume = pod.folder("volume")?;
    let container = pod.container("busybox").mount(&volume, "/data");
    let container = container.env("HOME", "/root");
    let container = container.args(["sleep", "1000"]).start()?;
    container.sh("echo secret > /token")?;
    let mut paths = Vec::new();
    for folder in [node.state_dir(), node.store_dir()] {
        below(&folder, 6, &mut paths)?;
    }
    let shared = node.state_dir().join(pod.id()).join("shared");
    let is_token = |path: &PathBuf| path.starts_with(&shared) && path.ends_with("own-root/token");
    assert!(paths.iter().any(is_token), "{paths:?}");
    let mut child = Command::new("sh")
        .arg("-c")
        .arg("while IFS= read -r p; do stat -- \"$p\" 2>&1 | grep -v 'Permission denied'; done")
        .uid(65534)
        .gid(65534)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .env("LC_ALL", "C")
        .spawn()?;
    let list: String = paths.iter().map(|p| format!("{}\n", p.display())).collect();
    child
        .stdin
        .take()
        .context("stdin")?
        .write_all(list.as_bytes())?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let reached: Vec<_> = text.lines().filter(|line| line.contains("File:")).collect();
    assert_eq!(reached.len(), 0, "{:?}", reached.first());
    Ok(())
}

fn with_home(node: &CriNode) -> PodBuilder<'_> {
    node.pod().annotation("caisson.dev/home", "ephemeral")
}

/// Collects what root finds below a folder, `depth` levels deep.
fn below(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> Result<()> {
    if depth == 0 || paths.len() > 2000 {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        paths.push(entry.path());
        if entry.file_type()?.is_dir() {
            below(&entry.path(), depth - 1, paths)?;
        }
    }
    Ok(())
}

/// Packs a skill into the node's store. Returns the name by which annotations refer to it.
fn packed(name: &str) -> Result<String> {
    let node = CriNode::shared();
    let tree = skill::tree(node, name)?;
    fs::write(tree.join("SKILL.md"), format!("# {name}\n"))?;
    skill::pack(node, name, &tree)
}
