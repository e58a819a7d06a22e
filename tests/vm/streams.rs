//! Tests standard streams, terminals, execs beside each other, log URIs.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    process::Stdio,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use caisson_tests::{
    command, container::shim, image, node::LIMIT, proc, terminal::Terminal, Container, Node,
    Runtime,
};
use rstest::rstest;

const MIB: usize = 1024 * 1024;

/// Returns 1 GiB if `CAISSON_TEST_FULL` is set. Otherwise returns 192 MiB, which emulation carries
/// in time. That is still more than the memory of the VM that it passes through, so an agent that
/// held it would be killed.
fn stream_mib() -> usize {
    match std::env::var_os("CAISSON_TEST_FULL") {
        Some(_) => 1024,
        None => 192,
    }
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn stream_through_cat_is_unchanged_and_memory_bounded(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let container = node
        .container("busybox")
        .runtime(runtime)
        .memory_mib(64)
        .args(["cat"]);
    let id = container.id().to_owned();
    let mut ctr = container.foreground()?;
    let mut child = ctr
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let writer = thread::spawn(move || {
        let mut source = Noise::new(stream_mib() * MIB);
        let mut block = vec![0; MIB];
        while let length @ 1.. = source.read(&mut block)? {
            stdin.write_all(&block[..length])?;
        }
        std::io::Result::Ok(())
    });
    let mut counted = Counting {
        from: child.stdout.take().context("stdout")?,
        bytes: 0,
    };
    let mut first = [0; 1];
    counted.read_exact(&mut first)?;
    let shim = shim(node, &id)?;
    // The shim exits when the stream has ended, so its peak is read until then.
    let peak = thread::spawn(move || {
        let mut last = 0;
        while let Ok(kib) = peak_kib(shim) {
            last = kib;
            thread::sleep(Duration::from_millis(50));
        }
        last
    });
    let received = image::sha256(first.as_slice().chain(&mut counted));
    writer.join().map_err(|_| anyhow::anyhow!("writer"))??;
    let status = command::wait(&mut child, LIMIT)?.context("cat does not end")?;
    assert_eq!(status.code(), Some(0));
    assert_eq!(counted.bytes, stream_mib() * MIB);
    assert_eq!(received?, image::sha256(Noise::new(stream_mib() * MIB))?);
    let peak = peak.join().map_err(|_| anyhow::anyhow!("sampler"))?;
    assert!(peak > 0 && peak < 32 * 1024, "the shim grew to {peak} KiB");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn stdout_and_stderr_stay_apart(#[case] runtime: Runtime) -> Result<()> {
    let container = Node::shared().container("busybox").runtime(runtime);
    let output = container.sh("echo out; echo err >&2; printf more").run()?;
    assert_eq!(
        (output.text().as_str(), output.errors().as_str()),
        ("out\nmore", "err\n")
    );
    Ok(())
}

/// runc's shim does not ensure this: containerd's client drops what it has not read when it hears
/// of the end.
#[test]
fn output_that_is_read_after_the_end_is_whole() -> Result<()> {
    let line = format!("head -c {} /dev/zero", 200 * 1024);
    let container = Node::shared().container("busybox").sh(&line);
    let mut child = container.foreground()?.stdout(Stdio::piped()).spawn()?;
    let mut stdout = child.stdout.take().context("stdout")?;
    let mut first = [0; 1];
    stdout.read_exact(&mut first)?;
    thread::sleep(Duration::from_millis(400));
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest)?;
    command::wait(&mut child, LIMIT)?.context("ctr does not end")?;
    assert_eq!(rest.len(), 200 * 1024 - 1);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn stdin_of_init_ends_where_it_ends(#[case] runtime: Runtime) -> Result<()> {
    let container = Node::shared().container("busybox").runtime(runtime);
    let output = container
        .stdin("one\ntwo\n")
        .sh("wc -l; echo after")
        .run()?
        .ok()?;
    assert_eq!(output.line(), "2\nafter");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn terminal_of_init_follows_the_window(#[case] runtime: Runtime) -> Result<()> {
    let container = Node::shared()
        .container("busybox")
        .runtime(runtime)
        .switch("--tty")
        .args(["sh"]);
    let mut terminal = Terminal::spawn(&mut container.foreground()?, 100, 30)?;
    terminal.write("test -t 0 && test -t 1 && test -t 2 && echo is-a-$((1+1))-tty\r")?;
    terminal.wait_for("is-a-2-tty")?;
    resized(&mut terminal, 100, 30)?;
    terminal.resize(71, 19)?;
    resized(&mut terminal, 71, 19)?;
    terminal.write("exit 5\r")?;
    assert_eq!(terminal.wait(LIMIT)?, 5);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn terminal_of_exec_follows_the_window_and_interrupts(#[case] runtime: Runtime) -> Result<()> {
    let container = sleeping(runtime)?;
    let process = container.process(["sh"]).switch("--tty");
    let mut terminal = Terminal::spawn(&mut process.command(), 90, 25)?;
    resized(&mut terminal, 90, 25)?;
    terminal.resize(60, 20)?;
    resized(&mut terminal, 60, 20)?;
    terminal.write("sleep 1000\r")?;
    thread::sleep(Duration::from_millis(500));
    terminal.write("\x03")?;
    terminal.write("echo code-$?-\r")?;
    terminal.wait_for("code-130-")?;
    terminal.write("exit 6\r")?;
    assert_eq!(terminal.wait(LIMIT)?, 6);
    Ok(())
}

/// Without runc for comparison: in containerd 1.6, its shim starts one of these a second and loses
/// one in a few hundred.
#[test]
fn hundred_execs_side_by_side_each_have_their_own_streams() -> Result<()> {
    let container = sleeping(Runtime::Caisson)?;
    let execs: Vec<_> = (0..100)
        .map(|n| {
            let process = container.process([
                "sh",
                "-c",
                "read line; echo out $line; echo err $line >&2; exit 3",
            ]);
            process.stdin(format!("number {n}\n")).spawn()
        })
        .collect::<Result<_>>()?;
    for (n, exec) in execs.into_iter().enumerate() {
        let output = exec.finish(LIMIT)?;
        let got = (output.code, output.text(), output.errors());
        assert_eq!(
            got,
            (3, format!("out number {n}\n"), format!("err number {n}\n"))
        );
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn exec_outlives_its_stdin(#[case] runtime: Runtime) -> Result<()> {
    let container = sleeping(runtime)?;
    let line = "cat; sleep 2; echo still here; exit 9";
    let output = container
        .process(["sh", "-c", line])
        .stdin("until the end\n")
        .run()?;
    assert_eq!(
        (output.code, output.text().as_str()),
        (9, "until the end\nstill here\n")
    );
    Ok(())
}

/// The input is more than all buffers on the way hold.
#[test]
fn stdin_that_nobody_reads_leaves_the_guest_idle() -> Result<()> {
    let container = sleeping(Runtime::Caisson)?;
    let vcpus = container.vmm()?;
    let exec = container
        .process(["sleep", "8"])
        .stdin(vec![b'x'; 4 * MIB])
        .spawn()?;
    thread::sleep(Duration::from_secs(3));
    let before = proc::cpu_time(vcpus)?;
    thread::sleep(Duration::from_secs(3));
    let busy = proc::cpu_time(vcpus)? - before;
    assert!(busy < Duration::from_secs(1), "{busy:?} of 3 s");
    exec.finish(LIMIT)?.ok()?;
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn exec_with_user_and_folder_of_its_own(#[case] runtime: Runtime) -> Result<()> {
    let container = sleeping(runtime)?;
    let process = container.process(["sh", "-c", "id -u; id -g; pwd"]);
    let output = process
        .flag("--user", "1000")
        .flag("--cwd", "/tmp")
        .run()?
        .ok()?;
    assert_eq!(output.line(), "1000\n1000\n/tmp");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn file_log_uri_takes_both_streams(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let container = node.container("busybox").runtime(runtime);
    let log = node.dir().join(format!("logs/{}.log", container.id()));
    let uri = format!("file://{}", log.display());
    // runc's shim sometimes loses a line if the process exits at once.
    let line = match runtime {
        Runtime::Runc | Runtime::Gvisor => "echo out; echo err >&2; sleep 1",
        Runtime::Caisson => "echo out; echo err >&2",
    };
    let container = container.log_uri(&uri).sh(line).start()?;
    container.wait()?;
    let both = || {
        let text = fs::read_to_string(&log).ok()?;
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        (lines == ["err", "out"]).then_some(())
    };
    if runtime == Runtime::Runc {
        // runc's shim reports the task's end before it has copied everything, and forgets the rest
        // when the task is deleted.
        command::poll("both lines", Duration::from_secs(10), both)
            .with_context(|| format!("{:?}", fs::read_to_string(&log)))?;
    }
    container.delete()?;
    both().with_context(|| format!("{:?}", fs::read_to_string(&log)))
}

/// Tests the contract of containerd's logging binaries. The streams are on descriptors 3 and 4; the
/// program closes 5 when it is ready. The id and namespace are in the environment, the URI's query
/// in the arguments. At the end the program gets SIGTERM and may finish.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn binary_log_uri_gets_streams_and_arguments(#[case] runtime: Runtime) -> Result<()> {
    let node = Node::shared();
    let container = node.container("busybox").runtime(runtime);
    let base = node.dir().join(format!("logs/{}", container.id()));
    let base = base.display().to_string();
    let script = format!(
        "#!/bin/sh\ntrap '' TERM\nexec 5>&-\necho \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\" >{base}.args\n\
         cat <&4 >{base}.err &\ncat <&3 >{base}.out\nwait\necho done >{base}.done\n"
    );
    let program = format!("{base}.sh");
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let uri = format!("binary://{program}?colour=blue");
    let container = container
        .log_uri(&uri)
        .sh("echo out; echo err >&2")
        .start()?;
    container.wait()?;
    container.delete()?;
    command::poll("the logger's end", Duration::from_secs(10), || {
        fs::read(format!("{base}.done")).ok()
    })?;
    let read = |end: &str| fs::read_to_string(format!("{base}.{end}"));
    assert_eq!(
        (read("out")?.as_str(), read("err")?.as_str()),
        ("out\n", "err\n")
    );
    assert_eq!(
        read("args")?.trim(),
        format!("{} {} colour blue", container.id(), node.tag())
    );
    Ok(())
}

fn sleeping(runtime: Runtime) -> Result<Container<'static>> {
    Node::shared()
        .container("busybox")
        .runtime(runtime)
        .args(["sleep", "1000"])
        .start()
}

/// Asks the terminal's shell for its size until it is the given one.
fn resized(terminal: &mut Terminal, columns: u16, rows: u16) -> Result<()> {
    let wanted = format!("{rows} {columns}");
    command::poll(&format!("size {wanted}"), Duration::from_secs(20), || {
        terminal.write("stty size\r").ok()?;
        thread::sleep(Duration::from_millis(300));
        terminal.shown().contains(&wanted).then_some(())
    })
    .with_context(|| terminal.shown())
}

fn peak_kib(pid: u32) -> Result<u64> {
    let status = proc::status(pid)?;
    let peak = status
        .get("VmHWM")
        .and_then(|line| line.split_whitespace().next());
    Ok(peak.context("VmHWM")?.parse()?)
}

/// Bytes that can't be compressed, the same every time.
struct Noise {
    left: usize,
    state: u64,
}

impl Noise {
    fn new(length: usize) -> Self {
        Self {
            left: length,
            state: 0x9e37_79b9_7f4a_7c15,
        }
    }
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = buffer.len().min(self.left) & !7;
        for word in buffer[..length].chunks_exact_mut(8) {
            // xorshift64
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            word.copy_from_slice(&self.state.to_le_bytes());
        }
        self.left -= length;
        Ok(length)
    }
}

struct Counting<R> {
    from: R,
    bytes: usize,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.bytes += length;
        Ok(length)
    }
}
