//! Tests what goes in and out of containers over CRI: logs, exec and attach with their streams,
//! copies.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    cri::{log, stream::Session, Container, CriNode, Pod},
    image, Runtime,
};
use rstest::rstest;
use tonic::{Code, Status};

const LIMIT: Duration = Duration::from_secs(60);
/// containerd's `max_container_log_line_size`.
const LOG_LINE_MAX: usize = 16 * 1024;
/// The number of lines, 100 bytes each: enough for some seconds, so that every queue on the way
/// fills up.
const LOG_LINES: u32 = 20_000;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn log_has_both_streams_line_by_line(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    let container = container
        .sh("echo one; echo two >&2; echo; echo three; printf 'no newline'")
        .start()?;
    container.wait()?;
    assert!(container.stdout()?.starts_with("one\n\nthree\nno newline"));
    assert_eq!(container.stderr()?, "two\n");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn long_line_is_logged_in_parts(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    let container = container
        .sh("head -c 40000 /dev/zero | tr '\\0' x; echo; echo short")
        .start()?;
    container.wait()?;
    let lines = container.logs()?;
    let parts: Vec<_> = lines
        .iter()
        .map(|line| (line.partial, line.text.len()))
        .collect();
    assert_eq!(
        parts,
        [
            (true, LOG_LINE_MAX),
            (true, LOG_LINE_MAX),
            (false, 40000 - 2 * LOG_LINE_MAX),
            (false, 5)
        ]
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn log_goes_on_in_a_new_file_after_a_rotation(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    let container = container.stdin().args(["cat"]).start()?;
    let mut session = container.attach()?;
    session.write("before\n")?;
    container.wait_for_output("before")?;
    let rotated = container.log_path().with_extension("1");
    fs::rename(container.log_path(), &rotated)?;
    container.reopen_log()?;
    session.write("after\n")?;
    container.wait_for_output("after")?;
    assert_eq!(container.stdout()?, "after\n");
    assert!(fs::read_to_string(rotated)?.ends_with("before\n"));
    Ok(())
}

/// Logs 10,000 lines a second, each with its own write. If a guest can't pass that many from one of
/// its processes to another, as an emulated one, it must log at least a quarter of what it can
/// pass.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn ten_thousand_lines_a_second_are_logged_without_loss(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox");
    let line = format!(
        "now() {{ cut -d ' ' -f 1 /proc/uptime; }}; start=$(now); probe log {LOG_LINES} | cat > /dev/null; \
         echo $start $(now) >&2; probe log {LOG_LINES}"
    );
    let container = container.sh(&line).start()?;
    container.wait()?;
    container.wait_for_output("all")?;
    let lines = container.logs()?;
    let (lines, times): (Vec<_>, Vec<_>) = lines.into_iter().partition(|l| l.stream == "stdout");
    let wanted = (0..LOG_LINES).map(|number| format!("{number:099}"));
    let wanted: Vec<_> = wanted.chain(["all".to_owned()]).collect();
    assert!(
        lines.iter().map(|line| &line.text).eq(&wanted),
        "{} lines of {}, or not in their order",
        lines.len(),
        wanted.len()
    );
    let logged = f64::from(LOG_LINES) / log::span(&lines).as_secs_f64();
    let times = log::text(&times, "stderr");
    let (start, end) = times.trim().split_once(' ').context("no times")?;
    let piped = f64::from(LOG_LINES) / (end.parse::<f64>()? - start.parse::<f64>()?).max(0.01);
    println!("{runtime:?}: {logged:.0} lines a second, {piped:.0} by a pipe within the container");
    assert!(
        logged >= 10_000_f64.min(piped / 4.0),
        "{logged} lines a second, {piped} by a pipe"
    );
    Ok(())
}

/// Programs that buffer their output write in this way.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn ten_thousand_buffered_lines_a_second_are_logged_without_loss(
    #[case] runtime: Runtime,
) -> Result<()> {
    const LINES: u32 = 100_000;
    let container = pod(runtime)?.container("busybox");
    let last = LINES.to_string();
    let container = container.args(["seq", "1", &last]).start()?;
    container.wait()?;
    container.wait_for_output(&last)?;
    let lines = container.logs()?;
    let wanted = (1..=LINES).map(|number| number.to_string());
    assert!(
        lines.iter().map(|line| line.text.clone()).eq(wanted),
        "{} lines of {LINES}, or not in their order",
        lines.len()
    );
    let logged = f64::from(LINES) / log::span(&lines).as_secs_f64();
    println!("{runtime:?}: {logged:.0} lines a second");
    assert!(logged >= 10_000.0, "{logged} lines a second");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn exec_sync_that_takes_too_long_is_ended(#[case] runtime: Runtime) -> Result<()> {
    let container = sleeping(runtime)?;
    let before = Instant::now();
    let error = container
        .exec_within(["sleep", "4567"], Duration::from_secs(1))
        .err()
        .context("it ended by itself")?;
    let status = error.downcast_ref::<Status>().context("no status")?;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{error:#}");
    assert!(before.elapsed() < Duration::from_secs(20));
    assert!(!container.sh("ps")?.contains("4567"));
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn exec_of_a_command_that_is_not_there_leaves_the_container_usable(
    #[case] runtime: Runtime,
) -> Result<()> {
    let container = sleeping(runtime)?;
    let error = container
        .exec(["no-such-command"])
        .err()
        .context("it ran")?;
    assert!(
        format!("{error:#}").contains("no-such-command"),
        "{error:#}"
    );
    assert_eq!(container.sh("echo still here")?, "still here");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn exec_has_its_streams_and_exit_code(#[case] runtime: Runtime) -> Result<()> {
    let container = sleeping(runtime)?;
    let line = "read line; echo got $line; echo error >&2; exit 4";
    let mut session = container.exec_streams(["sh", "-c", line], false)?;
    session.write("input\n")?;
    let output = session.finish(LIMIT)?;
    let got = (output.code, output.text(), output.errors());
    assert_eq!(got, (4, "got input\n".into(), "error\n".into()));
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn exec_with_a_terminal_follows_the_window(#[case] runtime: Runtime) -> Result<()> {
    let container = sleeping(runtime)?;
    let mut session = container.exec_streams(["sh"], true)?;
    resized(&mut session, 91, 27)?;
    resized(&mut session, 70, 18)?;
    session.write("exit 6\r")?;
    assert_eq!(session.finish(LIMIT)?.code, 6);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn attach_reaches_the_init_and_leaves_it_running(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox").stdin();
    let container = container
        .sh("while read line; do echo \"<$line>\"; echo \"error $line\" >&2; done")
        .start()?;
    for word in ["first", "second"] {
        let mut session = container.attach()?;
        session.write(format!("{word}\n"))?;
        session.wait_for(&format!("<{word}>"))?;
        session.detach()?;
    }
    container.wait_for_output("<second>")?;
    assert_eq!(container.stdout()?, "<first>\n<second>\n");
    let wanted = "error first\nerror second\n";
    command::poll("both errors in the log", LIMIT, || {
        (container.stderr().ok()? == wanted).then_some(())
    })?;
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn attach_to_a_terminal_follows_the_window(#[case] runtime: Runtime) -> Result<()> {
    let container = pod(runtime)?.container("busybox").stdin().tty();
    let container = container.args(["sh"]).start()?;
    let mut session = container.attach()?;
    resized(&mut session, 83, 21)?;
    session.write("exit 9\r")?;
    assert_eq!(container.wait()?.exit_code, 9);
    Ok(())
}

/// Copies as `kubectl cp` does, except for the end of standard input: tar waits for it, and this
/// protocol has no message for it.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn copy_in_and_out_is_unchanged(#[case] runtime: Runtime) -> Result<()> {
    let container = sleeping(runtime)?;
    let bytes: Vec<u8> = (0..5_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o640);
    archive.append_data(&mut header, "file", bytes.as_slice())?;
    let archive = archive.into_inner()?;
    let line = format!("head -c {} | tar xmf - -C /tmp", archive.len());
    let mut copy_in = container.exec_streams(["sh", "-c", &line], false)?;
    copy_in.write(archive)?;
    copy_in.finish(LIMIT)?.ok()?;
    let hash = container.sh("sha256sum < /tmp/file")?;
    assert_eq!(
        hash.split_whitespace().next(),
        Some(image::sha256(bytes.as_slice())?.as_str())
    );
    let copy_out = container.exec_streams(["tar", "cf", "-", "-C", "/tmp", "file"], false)?;
    let output = copy_out.finish(LIMIT)?.ok()?;
    let mut archive = tar::Archive::new(output.stdout.as_slice());
    let mut entry = archive.entries()?.next().context("an empty archive")??;
    let mut copied = Vec::new();
    std::io::copy(&mut entry, &mut copied)?;
    assert!(copied == bytes, "{} bytes came out", copied.len());
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn execs_side_by_side_each_have_their_own_streams(#[case] runtime: Runtime) -> Result<()> {
    let container = sleeping(runtime)?;
    thread::scope(|scope| {
        let execs: Vec<_> = (0..20)
            .map(|n| {
                let line = format!("echo out {n}; echo err {n} >&2; exit {n}");
                let container = &container;
                scope.spawn(move || container.exec(["sh", "-c", &line]))
            })
            .collect();
        for (n, exec) in execs.into_iter().enumerate() {
            let output = exec.join().map_err(|_| anyhow::anyhow!("exec {n}"))??;
            let got = (output.code, output.text(), output.errors());
            assert_eq!(got, (n as i32, format!("out {n}\n"), format!("err {n}\n")));
        }
        Ok(())
    })
}

fn pod(runtime: Runtime) -> Result<&'static Pod<'static>> {
    CriNode::shared().shared_pod(runtime)
}

fn sleeping(runtime: Runtime) -> Result<Container<'static>> {
    pod(runtime)?
        .container("busybox")
        .args(["sleep", "1000"])
        .start()
}

/// Sets the size of the terminal and asks its shell until the size has changed.
fn resized(session: &mut Session, columns: u16, rows: u16) -> Result<()> {
    session.resize(columns, rows)?;
    let line = format!("until stty size | grep -q '{rows} {columns}'; do sleep 0.1; done; echo si''zed {columns}\r");
    session.write(line)?;
    session.wait_for(&format!("sized {columns}")).map(drop)
}
