//! Tests what ordinary Deployments do in containers without any limit: npm, a JVM, PostgreSQL and
//! pytest. What each of them prints is compared, and what is left of the host's memory after it has
//! ended. How long it took and the memory are printed.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure, Context, Result};
use caisson_tests::{
    command,
    cri::{api::ContainerState, Container, ContainerBuilder, CriNode},
    proc, Runtime,
};
use rstest::rstest;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// How long one program may be at work under emulation.
const WORK: Duration = Duration::from_secs(1200);
/// How long a VM may keep memory that is free.
const BACK: Duration = Duration::from_secs(60);
/// What more than before a VM may keep: what the guest's kernel has of a machine that has grown,
/// and what an emulator keeps of the programs that it has translated.
const KEPT: u64 = 300 * MIB;
/// How many packages a project has.
const PACKAGES: u64 = 500;
/// How many pages of 8 KiB a table has.
const PAGES: u64 = 200_000;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn npm_ci_installs_500_packages(#[case] runtime: Runtime) -> Result<()> {
    let far = CriNode::shared().pod().runtime(runtime).start()?;
    let program = far.folder("registry")?;
    fs::write(program.join("registry.js"), include_str!("registry.js"))?;
    let count = PACKAGES.to_string();
    let registry = far.container("npm").mount_read_only(&program, "/srv");
    let registry = registry
        .args(["node", "/srv/registry.js", &count])
        .start()?;
    registry.wait_for_output(&format!("serves {PACKAGES} packages"))?;

    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let container = pod
        .container("npm")
        .env("REGISTRY", &format!("{}:4873", far.ipv4()?));
    let worked = work(container, include_str!("npm.sh"))?;
    let sum = PACKAGES * (PACKAGES - 1) / 2;
    assert_eq!(
        worked.output,
        format!(
            "added {PACKAGES} packages\n{} files\n{} programs\n{sum}\n",
            PACKAGES * 10 + 1,
            PACKAGES / 10
        )
    );
    Ok(())
}

/// With runc, the JVM sees the memory of the node; with Caisson, that up to which its VM grows.
/// `cri_resources` has what that is.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn heap_of_a_jvm_is_the_share_of_the_memory_it_sees(#[case] runtime: Runtime) -> Result<()> {
    let line = "java -XX:MaxRAMPercentage=75 -XX:+PrintFlagsFinal -version | \
                awk '$2 == \"MaxHeapSize\" { print $4 }'; \
                awk '$1 == \"MemTotal:\" { print $2 }' /proc/meminfo";
    let container = CriNode::shared().shared_pod(runtime)?.container("java");
    let text = container.sh(line).run()?.ok()?.text();
    println!(
        "{runtime:?}: most heap in bytes, memory in KiB: {}",
        text.replace('\n', " ")
    );
    let numbers: Vec<u64> = text
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let [heap, memory] = numbers[..] else {
        bail!("{text}");
    };
    let percent = heap * 100 / (memory * 1024);
    assert!((74..=76).contains(&percent), "{percent} %");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn jvm_fills_a_gibibyte_of_its_heap_and_gives_it_back(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let program = pod.folder("program")?;
    fs::write(program.join("Fill.java"), include_str!("Fill.java"))?;
    let container = pod.container("java").mount_read_only(&program, "/srv");
    let worked = work(
        container,
        "java -XX:MaxRAMPercentage=75 /srv/Fill.java 1024",
    )?;
    assert_eq!(worked.output, "16384 blocks, sum 1099444518912\n");
    worked.gave_back(GIB)
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn postgresql_fills_its_shared_buffers_and_gives_them_back(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let container = pod
        .container("postgresql")
        .mount(&pod.folder("data")?, "/data");
    let container = container.env("PAGES", &PAGES.to_string());
    let worked = work(container, include_str!("postgresql.sh"))?;
    let sum = PAGES * (PAGES + 1) / 2;
    assert_eq!(
        worked.output,
        format!(
            "{PAGES}|{sum}|{}|26\nt\nprocessed: 200/200\nt\n",
            PAGES * 8000
        )
    );
    worked.gave_back(PAGES * 8192)
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn pytest_passes_a_hundred_tests(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().pod().runtime(runtime).start()?;
    let project = pod.folder("project")?;
    for (name, text) in [
        ("conftest.py", include_str!("pytest/conftest.py")),
        ("test_data.py", include_str!("pytest/test_data.py")),
        ("test_files.py", include_str!("pytest/test_files.py")),
        ("test_network.py", include_str!("pytest/test_network.py")),
        (
            "test_processes.py",
            include_str!("pytest/test_processes.py"),
        ),
    ] {
        fs::write(project.join(name), text)?;
    }
    let container = pod.container("pytest").mount(&project, "/project");
    let worked = work(container, "cd /project && pytest-3 -q")?;
    let last = worked.output.trim_end().rsplit('\n').next();
    let summary = last.and_then(|line| line.split(" in ").next());
    assert_eq!(
        summary,
        Some("102 passed, 1 skipped, 1 xfailed"),
        "{}",
        worked.output
    );
    Ok(())
}

/// A container that has done its work, and goes on.
struct Worked<'p> {
    container: Container<'p>,
    /// What the work has printed to its standard output.
    output: String,
    /// What the VM had of the host's memory before the work, in bytes.
    before: Option<u64>,
}

/// Starts a container that does the work of a script, and waits until that is done.
fn work<'p>(container: ContainerBuilder<'p>, script: &str) -> Result<Worked<'p>> {
    const END: &str = "the work has ended with ";
    let line = format!("sh -c \"$0\"; echo {END}$?; exec sleep 10000");
    let container = container.args(["sh", "-c", &line, script]).create()?;
    let runtime = container.pod().runtime();
    let before = match runtime {
        Runtime::Caisson => Some(proc::rss(container.pod().vmm()?)?),
        _ => None,
    };
    let start = Instant::now();
    container.start()?;
    let text = command::poll("the end of the work", WORK, || {
        // A node that is asked without a pause has less time for the work.
        thread::sleep(Duration::from_millis(250));
        let text = container.stdout().ok()?;
        let ended = container.status().ok()?.state() == ContainerState::ContainerExited;
        (ended || text.contains(END)).then_some(text)
    });
    let text = text.with_context(|| container.stderr().unwrap_or_default())?;
    println!("{runtime:?}: {:.0} s", start.elapsed().as_secs_f64());
    let (output, code) = text.split_once(END).unwrap_or((&text, "its container"));
    let errors = container.stderr()?;
    ensure!(code.trim() == "0", "exit code {code}: {output}\n{errors}");
    Ok(Worked {
        output: output.to_owned(),
        container,
        before,
    })
}

impl Worked<'_> {
    /// Checks that the VM had this many bytes more of the host's memory at one time, and that the
    /// host has them again. What the guest keeps of files is not free, with runc neither. With runc
    /// there is nothing to wait for, since the processes have ended.
    fn gave_back(&self, held: u64) -> Result<()> {
        let Some(before) = self.before else {
            return Ok(());
        };
        let vmm = self.container.pod().vmm()?;
        let most = proc::peak_rss(vmm)?;
        let ended = Instant::now();
        let line = "awk '/^Cached:/ { print $2 }' /proc/meminfo";
        let files = self.container.sh(line)?.parse::<u64>()? << 10;
        let mut now = 0;
        let back = command::poll("the memory to be back", BACK, || {
            now = proc::rss(vmm).ok()?;
            (now < before + files + KEPT).then_some(())
        });
        let figures = format!(
            "the VM had {} MiB of the host before the work, {} at most, and {} {:.0} s after it, \
             with {} of files",
            before / MIB,
            most / MIB,
            now / MIB,
            ended.elapsed().as_secs_f64(),
            files / MIB
        );
        println!("{figures}");
        assert!(most - before > held, "{figures}");
        back.context(figures)
    }
}
