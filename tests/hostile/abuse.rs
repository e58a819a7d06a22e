//! Tests pods that take as much as they can, with an honest agent. A neighbour and the node have to
//! keep working, and the effect on them is printed. With `CAISSON_TEST_FULL` each test lasts a
//! minute, otherwise some seconds.
//!
//! Everything that is written goes to a small file system, and a VM has at most 256 MiB, so that
//! what a broken product lets through does not bring this machine down.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{ensure, Context, Result};
use caisson_tests::{
    command,
    cri::{Container, CriNode, Pod, PodBuilder},
    hostile::{Neighbour, Peak, MEMORY},
    leftovers::alone,
    proc, Leftovers, Node,
};

/// The time within which a pod is removed, whatever runs in it.
const SOON: Duration = Duration::from_secs(10);
/// The longest time that an exec of the neighbour may take, whatever runs beside it.
const EXEC: Duration = Duration::from_secs(10);
/// The size of the node's disk, which holds the containers' roots and emptyDirs.
const DISK_MIB: u64 = 512;
/// The number of the disk's inodes.
const INODES: u64 = 20_000;

/// Returns how long each test lasts.
fn duration() -> Duration {
    let full = std::env::var_os("CAISSON_TEST_FULL").is_some();
    Duration::from_secs(if full { 60 } else { 5 })
}

/// Returns the node, whose containerd has its files on a small disk.
fn node() -> &'static CriNode {
    static NODE: OnceLock<CriNode> = OnceLock::new();
    NODE.get_or_init(|| {
        let small = || {
            let node = CriNode::start()?;
            node.stop_containerd(false)?;
            small_disk(&node)?;
            node.start_containerd()?;
            command::poll("the images", Duration::from_secs(20), || {
                node.image("busybox").ok()
            })?;
            anyhow::Ok(node)
        };
        small().unwrap_or_else(|error| panic!("no test node: {error:#}"))
    })
}

fn neighbour() -> &'static Neighbour {
    static NEIGHBOUR: OnceLock<Neighbour> = OnceLock::new();
    NEIGHBOUR.get_or_init(|| {
        Node::end_at_exit(node());
        Neighbour::start(node()).unwrap_or_else(|error| panic!("no neighbour: {error:#}"))
    })
}

/// Moves containerd's files to a small file system, which is removed with the node's folder.
fn small_disk(node: &Node) -> Result<()> {
    let (image, root, old) = (
        node.dir().join("disk"),
        node.dir().join("root"),
        node.dir().join("root.old"),
    );
    fs::File::create(&image)?.set_len(DISK_MIB << 20)?;
    run(Command::new("mkfs.ext4")
        .args(["-q", "-N", &INODES.to_string()])
        .arg(&image))?;
    fs::rename(&root, &old)?;
    fs::create_dir(&root)?;
    run(Command::new("mount")
        .args(["-o", "loop"])
        .arg(&image)
        .arg(&root))?;
    run(Command::new("cp").arg("-a").arg(old.join(".")).arg(&root))?;
    Ok(fs::remove_dir_all(old)?)
}

fn run(command: &mut Command) -> Result<()> {
    command::run(command, None, Duration::from_secs(60))?.ok()?;
    Ok(())
}

/// Makes a folder on the node's disk, where an emptyDir would be.
fn empty_dir(pod: &Pod<'_>) -> Result<PathBuf> {
    let dir = pod.node().dir().join("root/volumes").join(pod.id());
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

#[test]
fn fork_bomb_leaves_the_node_to_others() -> Result<()> {
    abuse("fork bomb", pod(), |_, container| {
        let bomb = "bomb() { bomb | bomb & }; bomb";
        let ended = container.exec_within(["sh", "-c", bomb], duration());
        thread::sleep(duration());
        Ok(format!(
            "its exec: {}",
            brief(ended.map(|output| output.code))
        ))
    })
}

#[test]
fn memory_bomb_leaves_the_node_to_others() -> Result<()> {
    abuse("memory bomb", pod(), |pod, container| {
        let qemu = pod.vmm()?;
        let start = Instant::now();
        let mut ends = Vec::new();
        while start.elapsed() < duration() {
            let ended = container.exec_within(["probe", "allocate", "4096"], duration());
            ends.push(ended.map(|output| output.code));
        }
        let count = ends.len();
        let last = brief(ends.pop().context("no exec")?);
        let held = proc::peak_rss(qemu).unwrap_or(0) >> 20;
        Ok(format!(
            "{count} times, the last: {last}; QEMU had up to {held} MiB"
        ))
    })
}

#[test]
fn disk_filler_leaves_the_node_to_others() -> Result<()> {
    abuse("disk filler in the root", pod(), |_, container| {
        filled(container, "/root")
    })?;
    abuse("disk filler in an emptyDir", pod(), |pod, _| {
        let dir = empty_dir(pod)?;
        let container = pod.container("busybox").mount(&dir, "/volume");
        let container = container.args(["sleep", "1000"]).start()?;
        let said = filled(&container, "/volume")?;
        container.remove()?;
        fs::remove_dir_all(dir)?;
        Ok(said)
    })
}

#[test]
fn disk_filler_in_a_home_leaves_the_node_to_others() -> Result<()> {
    abuse(
        "disk filler in a home",
        with_home("filled"),
        |pod, container| {
            let said = filled(container, "/root")?;
            ensure!(said.contains("No space left"), "{said}");
            let homes = pod.node().store_dir().join("homes");
            Ok(format!(
                "{said}; the host has {} MiB of it",
                mib_on_disk(&homes)?
            ))
        },
    )
}

#[test]
fn inode_bomb_leaves_the_node_to_others() -> Result<()> {
    abuse("inode bomb in the root", pod(), |_, container| {
        inodes(container, "/root")
    })?;
    abuse(
        "inode bomb in a home",
        with_home("inodes"),
        |_, container| inodes(container, "/root"),
    )
}

#[test]
fn connection_flood_leaves_the_node_to_others() -> Result<()> {
    abuse("connection flood", pod(), |_, container| {
        let pod = neighbour().container().pod();
        let serve = |address: &&str| {
            let server = pod.container("busybox").args(["probe", "echo", address]);
            let server = server.start()?;
            server.wait_for_output("listening")?;
            anyhow::Ok(server)
        };
        let _servers: Vec<_> = ["[::]:7000", "[::]:7001"]
            .iter()
            .map(serve)
            .collect::<Result<_>>()?;
        let address = pod.ipv4()?;
        let (flooded, other) = (format!("{address}:7000"), format!("{address}:7001"));
        let asked = thread::scope(|scope| {
            let asking = scope.spawn(|| {
                thread::sleep(duration() / 2);
                let start = Instant::now();
                let answer = neighbour_says(&other)?;
                ensure!(answer == "hello", "the neighbour said {answer:?}");
                Ok(start.elapsed())
            });
            let seconds = duration().as_secs().to_string();
            let flood = ["probe", "flood", &flooded, &seconds];
            let flood = container.exec_within(flood, duration() * 2)?;
            let asked = asking.join();
            let asked = asked.map_err(|_| anyhow::anyhow!("asking panicked"))??;
            anyhow::Ok(format!(
                "{}; another server answered in {asked:.0?}",
                flood.line()
            ))
        })?;
        Ok(asked)
    })
}

/// Asks the neighbour from the node, with a time limit.
fn neighbour_says(address: &str) -> Result<String> {
    use std::io::{BufRead, BufReader, Write};
    let to: std::net::SocketAddr = address.parse()?;
    let mut connection = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    writeln!(connection, "hello")?;
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

#[test]
fn log_flood_that_nobody_reads_leaves_the_node_to_others() -> Result<()> {
    // Uses `ctr`, whose client stops reading when its own output is not read.
    let node: &Node = node();
    let builder = node
        .container("busybox")
        .args(["yes", &"flood ".repeat(100)]);
    let id = builder.id().to_owned();
    held("log flood that nobody reads", || {
        let mut ctr = builder.foreground()?;
        let mut ctr = ctr
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let container = caisson_tests::Container::adopt(node, &id);
        let went = (|| {
            let qemu = command::poll("QEMU", Duration::from_secs(30), || container.vmm().ok())?;
            // Waits until the buffers are full.
            thread::sleep(Duration::from_secs(4));
            let before = proc::cpu_time(qemu)?;
            thread::sleep(duration());
            let used = proc::cpu_time(qemu)? - before;
            anyhow::Ok(format!(
                "QEMU used {used:.1?} of the cpu in {:?}",
                duration()
            ))
        })();
        let start = Instant::now();
        let _ = container.kill("SIGKILL");
        let _ = ctr.kill();
        ctr.wait()?;
        drop(container);
        ensure!(
            start.elapsed() < SOON,
            "removal took {:.1?}",
            start.elapsed()
        );
        went
    })
}

fn pod() -> PodBuilder<'static> {
    node().pod()
}

fn with_home(name: &str) -> PodBuilder<'static> {
    pod()
        .annotation("caisson.dev/home", &format!("persistent/{name}"))
        .annotation("caisson.dev/home-size", "64Mi")
}

/// Writes until no more can be written.
fn filled(container: &Container<'_>, folder: &str) -> Result<String> {
    let fill = format!(
        "dd if=/dev/zero of={folder}/fill bs=1M count={} 2>&1",
        2 * DISK_MIB
    );
    let output = container.exec_within(["sh", "-c", &fill], Duration::from_secs(60))?;
    Ok(output.text().replace('\n', " "))
}

fn inodes(container: &Container<'_>, folder: &str) -> Result<String> {
    let most = (2 * INODES).to_string();
    let seconds = duration().as_secs().to_string();
    let files = ["probe", "files", folder, &most, &seconds];
    Ok(container.exec_within(files, duration() * 4)?.line())
}

/// Starts a pod with a container, lets it do its worst and removes it.
fn abuse(
    name: &str,
    pod: PodBuilder<'static>,
    worst: impl FnOnce(&Pod<'_>, &Container<'_>) -> Result<String> + Send,
) -> Result<()> {
    held(name, move || {
        let pod = pod.start()?;
        let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
        let said = worst(&pod, &container)?;
        let start = Instant::now();
        drop(container);
        pod.stop()?;
        pod.remove()?;
        let removed = start.elapsed();
        ensure!(removed < SOON, "removal took {removed:.1?}; {said}");
        Ok(format!("{said}; removed in {removed:.1?}"))
    })
}

/// Runs `work`, checks that its cost to others stays within the limits, and prints the cost.
fn held(name: &str, work: impl FnOnce() -> Result<String> + Send) -> Result<()> {
    let _alone = alone();
    let (node, neighbour) = (node(), neighbour());
    let before = Leftovers::count(node);
    let peak = Peak::beside(neighbour)?;
    let healthy = proc::peak_rss(neighbour.shim()?)?;
    let alone = neighbour.median()?;
    let (said, beside) = neighbour.beside(work)?;
    let memory = peak.bytes().saturating_sub(healthy);
    let start = Instant::now();
    let another = node.pod().start()?;
    let output = another.container("busybox").args(["echo", "hello"]).run()?;
    ensure!(output.line() == "hello", "{output:?}");
    drop(another);
    println!(
        "{name}: {said}; the shim had {:.1} MiB more than the neighbour's; the neighbour's exec took {beside:.0?}, alone {alone:.0?}; \
         another pod after it {:.1?}",
        memory as f64 / f64::from(1 << 20),
        start.elapsed(),
    );
    ensure!(beside < EXEC, "the neighbour's exec took {beside:.1?}");
    ensure!(memory < MEMORY, "the shim had {} MiB more", memory >> 20);
    Leftovers::none_since(node, &before)
}

fn brief(ended: Result<i32>) -> String {
    let text = match ended {
        Ok(code) => format!("code {code}"),
        Err(error) => format!("{error:#}"),
    };
    text.chars().take(120).collect()
}

fn mib_on_disk(dir: &Path) -> Result<u64> {
    let output = command::run(
        Command::new("du").arg("-sm").arg(dir),
        None,
        Duration::from_secs(10),
    )?;
    let text = output.ok()?.line();
    let number = text.split_whitespace().next().context("du said nothing")?;
    Ok(number.parse()?)
}
