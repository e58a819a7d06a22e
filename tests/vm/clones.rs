//! Tests containers whose VMs start from the node's template.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::LazyLock,
};

use anyhow::{ensure, Context, Result};
use caisson_tests::{
    command,
    leftovers::processes,
    node::{self, LIMIT},
    paths::names,
    proc::{self, Mapping},
    Container, Leftovers, Node,
};
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use rstest::rstest;

/// How far a guest's clock may be from the host's, in seconds.
const CLOCK_SLACK: f64 = 0.05;
/// The least size of a template's translations in bytes.
const TRANSLATIONS: u64 = 10 << 20;

/// A node with a template.
static NODE: LazyLock<&Node> = LazyLock::new(|| Node::keep(with_template().unwrap_or_else(fail)));

fn fail<T>(error: anyhow::Error) -> T {
    panic!("{error:?}")
}

fn with_template() -> Result<Node> {
    let node = node()?;
    caisson(&node, &["template", "build"])?;
    Ok(node)
}

/// A node that makes its templates itself, and has none yet.
fn node() -> Result<Node> {
    Node::start_with(|config| {
        config["vm"]["templates"] = true.into();
        let store = config["store_dir"].as_str().unwrap_or_default();
        config["store_dir"] = format!("{store}/of-its-own").into();
    })
}

fn caisson(node: &Node, arguments: &[&str]) -> Result<String> {
    let mut caisson = node::caisson(node)?;
    let output = command::run(caisson.args(arguments), None, LIMIT)?;
    Ok(output.ok()?.text())
}

/// The folder with the node's templates.
fn templates(node: &Node) -> PathBuf {
    node.store_dir().join("of-its-own/templates")
}

/// The file of the only template. One that is being made has a dot in its name.
fn template(node: &Node) -> Result<PathBuf> {
    let entries = fs::read_dir(templates(node))?;
    let made = entries.flatten().filter(|entry| {
        let name = entry.file_name();
        !name.as_encoded_bytes().contains(&b'.')
    });
    let machines = made.map(|entry| entry.path().join("machine"));
    let found: Vec<PathBuf> = machines.filter(|path| path.exists()).collect();
    ensure!(found.len() == 1, "{found:?}");
    Ok(found[0].clone())
}

/// The file with the template's translations.
fn translations(node: &Node) -> Result<PathBuf> {
    Ok(template(node)?.with_file_name("translations"))
}

/// Whether the template is of an emulated VM, which alone has translations.
fn is_emulated(node: &Node) -> Result<bool> {
    let is_emulated = caisson(node, &["template", "list"])?.contains("Tcg");
    if !is_emulated {
        eprintln!("not tested: KVM translates nothing");
    }
    Ok(is_emulated)
}

/// A VM of 128 MiB that has booted has used 39 MiB, and needs 31 of them.
#[test]
fn template_does_not_hold_what_the_boot_has_freed() -> Result<()> {
    let used = fs::metadata(template(&NODE)?)?.blocks() * 512;
    assert!(used < 35 << 20, "{used} bytes");
    Ok(())
}

/// How QEMU was started for a container's VM.
fn command_line(container: &Container<'_>) -> Result<String> {
    let line = fs::read(format!("/proc/{}/cmdline", container.vmm()?))?;
    Ok(String::from_utf8_lossy(&line).replace('\0', " "))
}

fn sleeping(node: &Node) -> Result<Container<'_>> {
    node.container("busybox").args(["sleep", "1000"]).start()
}

#[test]
fn vm_starts_from_the_template() -> Result<()> {
    let container = sleeping(&NODE)?;
    let line = command_line(&container)?;
    assert!(line.contains("-incoming"), "{line}");
    Ok(())
}

#[test]
fn trace_has_the_stages_of_the_vmm() -> Result<()> {
    let container = sleeping(&NODE)?;
    let trace = caisson(&NODE, &["trace", container.id()])?;
    for stage in ["qemu answers", "template"] {
        let has = |line: &str| line.ends_with(&format!("  {stage}"));
        assert!(trace.lines().any(has), "{trace}");
    }
    Ok(())
}

#[test]
fn emulator_executes_the_templates_translations() -> Result<()> {
    if !is_emulated(&NODE)? {
        return Ok(());
    }
    let container = sleeping(&NODE)?;
    let mappings = proc::mappings(container.vmm()?)?;
    let mut mappings = mappings.iter();
    let mapping = mappings.find(|mapping| mapping.path.ends_with("/translations"));
    // Nobody writes to what all VMs execute.
    assert_eq!(mapping.context("translations")?.permissions, "r-xp");
    Ok(())
}

#[test]
fn translations_on_a_file_system_without_execution_are_copied() -> Result<()> {
    if !is_emulated(&NODE)? {
        return Ok(());
    }
    let node = node()?;
    let disk = Disk::of_mib(512, templates(&node), MsFlags::MS_NOEXEC)?;
    caisson(&node, &["template", "build"])?;
    let container = sleeping(&node)?;
    assert_eq!(container.sh("echo said")?, "said");
    let mappings = proc::mappings(container.vmm()?)?;
    let is_copy = |mapping: &Mapping| mapping.path.is_empty() && mapping.permissions == "r-xp";
    let copy = mappings.iter().find(|mapping| is_copy(mapping));
    let copied = copy.context("a copy")?.pss;
    ensure!(copied > TRANSLATIONS, "{copied} bytes");
    drop(container);
    drop(disk);
    Ok(())
}

/// The least CPU time of a VMM from its start to the end of a first program, in clock ticks
/// (proc(5), `/proc/<pid>/stat`).
fn work_of_a_start(node: &Node) -> Result<u64> {
    let mut least = u64::MAX;
    for _ in 0..3 {
        let container = sleeping(node)?;
        container.sh("true")?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", container.vmm()?))?;
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks = after_name.split_whitespace().nth(11).unwrap_or_default();
        least = least.min(ticks.parse()?);
    }
    Ok(least)
}

#[test]
fn translations_save_an_emulator_work() -> Result<()> {
    let node = with_template()?;
    if !is_emulated(&node)? {
        return Ok(());
    }
    let with = work_of_a_start(&node)?;
    let path = template(&node)?.with_file_name("about.json");
    let mut about: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    about["translations"].take();
    fs::write(&path, about.to_string())?;
    let without = work_of_a_start(&node)?;
    assert!(with * 4 < without * 3, "{with} and {without} ticks");
    Ok(())
}

#[test]
fn template_whose_translations_are_cut_is_not_used() -> Result<()> {
    let node = with_template()?;
    if !is_emulated(&node)? {
        return Ok(());
    }
    let file = fs::File::options().write(true).open(translations(&node)?)?;
    file.set_len(100_000)?;
    let line = command_line(&sleeping(&node)?)?;
    assert!(!line.contains("-incoming"), "{line}");
    Ok(())
}

#[test]
fn first_start_without_a_template_boots_and_makes_one() -> Result<()> {
    let node = node()?;
    let first = sleeping(&node)?;
    let line = command_line(&first)?;
    assert!(!line.contains("-incoming"), "{line}");
    command::poll("the template", LIMIT, || template(&node).ok())?;
    let second = sleeping(&node)?;
    assert!(command_line(&second)?.contains("-incoming"));
    Ok(())
}

/// What a machine has that no other has.
#[rstest]
#[case::boot_id("cat /proc/sys/kernel/random/boot_id")]
#[case::urandom("head -c 1048576 /dev/urandom | md5sum")]
#[case::uuid("cat /proc/sys/kernel/random/uuid")]
#[case::addresses_of_a_program("grep -m1 stack /proc/self/maps")]
#[case::tcp_sequence_numbers("probe sequence-secrets")]
#[case::new_ssh_key(&NEW_SSH_KEY)]
fn clones_differ(#[case] command: &str) -> Result<()> {
    let (one, two) = (with_hosts_programs(&NODE)?, with_hosts_programs(&NODE)?);
    let said = (one.sh(command)?, two.sh(command)?);
    assert_ne!(said.0, said.1);
    Ok(())
}

/// The folder in which a container sees the host's programs.
const HOST: &str = "/mnt";

/// Prints a new key, by the host's program and libraries.
static NEW_SSH_KEY: LazyLock<String> = LazyLock::new(|| {
    let libraries = format!("{HOST}/lib/x86_64-linux-gnu");
    let keygen = format!(
        "{libraries}/ld-linux-x86-64.so.2 --library-path {libraries} {HOST}/bin/ssh-keygen"
    );
    format!("{keygen} -q -t ed25519 -N '' -f /tmp/key && cut -d ' ' -f 2 /tmp/key.pub")
});

fn with_hosts_programs(node: &Node) -> Result<Container<'_>> {
    let container = node.container("busybox");
    let container = container.bind(Path::new("/usr"), HOST, "rbind:ro");
    container.args(["sleep", "1000"]).start()
}

#[test]
fn clock_of_a_clone_is_the_hosts() -> Result<()> {
    let off = sleeping(&NODE)?.clock_off()?;
    assert!(off.abs() < CLOCK_SLACK, "{off} s");
    Ok(())
}

/// What can have become of a template's file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    State,
    Cut,
    Empty,
}

impl Damage {
    fn is_done_to(self, path: &Path) -> Result<()> {
        let file = fs::File::options().write(true).open(path)?;
        match self {
            Self::State => file.write_all_at(&[0xa5; 4096], 0)?,
            Self::Cut => file.set_len(100_000)?,
            Self::Empty => file.set_len(0)?,
        }
        Ok(())
    }
}

#[rstest]
#[case::state(Damage::State)]
#[case::cut(Damage::Cut)]
#[case::empty(Damage::Empty)]
fn container_starts_without_a_damaged_template(#[case] damage: Damage) -> Result<()> {
    let node = with_template()?;
    let before = Leftovers::count(&node);
    damage.is_done_to(&template(&node)?)?;
    let output = node.container("busybox").args(["echo", "alive"]).run()?;
    assert_eq!(output.ok()?.line(), "alive");
    Leftovers::none_since(&node, &before)
}

#[rstest]
#[case::machine(template)]
#[case::translations(translations)]
fn list_says_which_template_is_damaged(
    #[case] file: impl Fn(&Node) -> Result<PathBuf>,
) -> Result<()> {
    let node = with_template()?;
    assert!(caisson(&node, &["template", "list"])?.contains("whole"));
    let path = file(&node)?;
    if !path.exists() && !is_emulated(&node)? {
        return Ok(());
    }
    let middle = fs::metadata(&path)?.len() / 2;
    let file = fs::File::options().write(true).open(&path)?;
    file.write_all_at(&[0xa5; 4096], middle)?;
    let list = caisson(&node, &["template", "list"])?;
    assert!(list.contains("damaged"), "{list}");
    Ok(())
}

/// The moment at which the process that makes a template is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// The machine is booting.
    Boot,
    /// The template is there, and a machine that started from it is rehearsing.
    Rehearsal,
}

/// Begins making a node's template, and kills the maker.
fn kill_the_maker(node: &Node, at: Moment) -> Result<()> {
    let mut build = node::caisson(node)?;
    let mut build = build.args(["template", "build"]).spawn()?;
    let makers = || {
        let mut found = processes(node.tag());
        found.retain(|process| process.command.ends_with("-id template template"));
        found.into_iter().map(|process| process.pid)
    };
    command::poll("the machine to run", LIMIT, || {
        let is_there = match at {
            Moment::Boot => makers().any(|maker| !proc::descendants(maker).is_empty()),
            Moment::Rehearsal => template(node).is_ok(),
        };
        is_there.then_some(())
    })?;
    for maker in makers() {
        proc::kill(maker, libc::SIGKILL);
    }
    build.wait()?;
    Ok(())
}

#[rstest]
#[case::boot(Moment::Boot)]
#[case::rehearsal(Moment::Rehearsal)]
fn template_whose_maker_was_killed_is_made_by_the_next_pod(#[case] at: Moment) -> Result<()> {
    let node = node()?;
    let before = Leftovers::count(&node);
    kill_the_maker(&node, at)?;
    let container = sleeping(&node)?;
    command::poll("the template", LIMIT, || {
        let list = caisson(&node, &["template", "list"]).ok()?;
        let is_made = list.contains("whole") && !is_being_made(&node);
        is_made.then_some(())
    })?;
    assert_eq!(translations(&node)?.exists(), is_emulated(&node)?);
    container.kill("SIGKILL")?;
    container.wait_within(LIMIT)?;
    container.delete()?;
    Leftovers::none_since(&node, &before)
}

/// Whether there is a file that the maker of a template locks and removes.
fn is_being_made(node: &Node) -> bool {
    let names = names(&templates(node));
    names.iter().any(|name| name.starts_with('.'))
}

#[test]
fn pod_boots_where_a_template_has_no_room() -> Result<()> {
    let node = node()?;
    let before = Leftovers::count(&node);
    let disk = Disk::of_mib(8, templates(&node), MsFlags::empty())?;
    let error = caisson(&node, &["template", "build"]).expect_err("there is room");
    let error = format!("{error:#}");
    assert!(error.contains("No space left on device"), "{error}");
    let output = node.container("busybox").args(["echo", "alive"]).run()?;
    assert_eq!(output.ok()?.line(), "alive");
    let list = caisson(&node, &["template", "list"])?;
    assert!(list.contains("No space left on device"), "{list}");
    drop(disk);
    Leftovers::none_since(&node, &before)
}

/// A file system of its own, until it is dropped.
struct Disk(PathBuf);

impl Disk {
    fn of_mib(mib: u64, at: PathBuf, flags: MsFlags) -> Result<Self> {
        fs::create_dir_all(&at)?;
        let size = format!("size={mib}m,mode=700");
        let none = None::<&str>;
        mount(none, &at, Some("tmpfs"), flags, Some(&*size))?;
        Ok(Self(at))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
