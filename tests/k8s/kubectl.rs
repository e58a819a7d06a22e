//! Tests the verbs of `kubectl` that reach into a pod.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    k8s::{TestCluster, LIMIT},
    terminal::Terminal,
    Runtime,
};
use rstest::rstest;
use serde_json::json;

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn exec_on_a_terminal_follows_the_window_and_gives_the_exit_code(
    #[case] runtime: Runtime,
) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let pod = namespace
        .pod("shell")
        .runtime(runtime)
        .sh("sleep 1000")
        .start()?;
    let mut exec = pod.kubectl_command("exec", &["-it"]);
    let mut terminal = Terminal::spawn(exec.args(["--", "sh"]), 91, 31)?;
    terminal.write("stty size; tty && echo a-$((6 * 7))-b\n")?;
    assert!(terminal.wait_for("a-42-b")?.contains("31 91"));
    terminal.resize(101, 41)?;
    command::poll("the new size", LIMIT, || {
        terminal.write("stty size\n").ok()?;
        std::thread::sleep(Duration::from_millis(300));
        terminal.shown().contains("41 101").then_some(())
    })?;
    terminal.write("exit 7\n")?;
    assert_eq!(terminal.wait(LIMIT)?, 7);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn logs_follow_the_container_to_its_end(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let line = "echo first; while [ ! -e /go ]; do sleep 0.1; done; echo last; sleep 1";
    let pod = namespace.pod("talker").runtime(runtime).sh(line);
    let pod = pod
        .spec(|spec| spec["restartPolicy"] = "Never".into())
        .start()?;
    let logs = command::spawn(&mut pod.kubectl_command("logs", &["--follow"]), None)?;
    logs.wait_for_output("first")?;
    pod.exec("touch /go")?;
    assert_eq!(logs.finish(LIMIT)?.ok()?.text(), "first\nlast\n");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn cp_takes_files_in_and_out_unchanged(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let pod = namespace
        .pod("box")
        .runtime(runtime)
        .sh("sleep 1000")
        .start()?;
    let dir = tempfile::tempdir()?;
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(dir.path().join("out"), &bytes)?;
    let local = |name: &str| dir.path().join(name).display().to_string();
    namespace
        .kubectl(&["cp", &local("out"), "box:/tmp/file"])?
        .ok()?;
    assert_eq!(pod.exec("stat -c %s /tmp/file")?, bytes.len().to_string());
    namespace
        .kubectl(&["cp", "box:/tmp/file", &local("back")])?
        .ok()?;
    assert!(fs::read(local("back"))? == bytes);
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn attach_reaches_the_containers_own_process(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let echo = "while read line; do echo heard $line; done";
    let pod = namespace.pod("echo").runtime(runtime).sh(echo);
    let pod = pod.main(|main| main["stdin"] = true.into()).start()?;
    let mut attach = pod.kubectl_command("attach", &["--stdin", "--quiet"]);
    let child = attach
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let mut child = Ended(child);
    let mut stdin = child.0.stdin.take().context("stdin")?;
    let mut lines = BufReader::new(child.0.stdout.take().context("stdout")?).lines();
    stdin.write_all(b"one\ntwo\n")?;
    assert_eq!(lines.next().context("a line")??, "heard one");
    assert_eq!(lines.next().context("a line")??, "heard two");
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn port_forward_reaches_a_server_on_loopback(#[case] runtime: Runtime) -> Result<()> {
    let namespace = TestCluster::shared().namespace()?;
    let server = "mkdir /www; echo served > /www/page; exec httpd -f -h /www -p 127.0.0.1:8080";
    let pod = namespace.pod("web").runtime(runtime).sh(server);
    // The first connection that is refused ends kubectl.
    let fetch = [
        "wget",
        "-q",
        "-O",
        "/dev/null",
        "http://127.0.0.1:8080/page",
    ];
    let probe = json!({ "exec": { "command": fetch }, "periodSeconds": 1, "timeoutSeconds": 20 });
    let pod = pod.main(|main| main["readinessProbe"] = probe).start()?;
    let mut forward = namespace.kubectl_command();
    forward
        .args(["port-forward", "pod/web", ":8080"])
        .stdout(Stdio::piped());
    let mut child = Ended(forward.spawn()?);
    let mut lines = BufReader::new(child.0.stdout.take().context("stdout")?).lines();
    let said = lines.next().context("a line")??;
    let port = said
        .split(' ')
        .find_map(|word| word.strip_prefix("127.0.0.1:"));
    let port: u16 = port.with_context(|| said.clone())?.parse()?;
    let page = command::poll("the page", LIMIT, || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .ok()?;
        stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.ends_with("served\n").then_some(answer)
    });
    assert!(page
        .with_context(|| pod.logs().unwrap_or_default())?
        .contains("200 OK"));
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn debug_brings_an_ephemeral_container_into_the_pod(#[case] runtime: Runtime) -> Result<()> {
    let cluster = TestCluster::shared();
    let namespace = cluster.namespace()?;
    let pod = namespace
        .pod("app")
        .runtime(runtime)
        .sh("hostname -i > /tmp/own; sleep 1000")
        .start()?;
    let image = cluster.image("busybox")?;
    let mut debug = pod.kubectl_command(
        "debug",
        &[
            "--image",
            &image,
            "--container",
            "look",
            "--profile",
            "general",
        ],
    );
    debug.args([
        "--",
        "sh",
        "-c",
        "uname -r; ip -o -4 addr show eth0; sleep 1000",
    ]);
    command::run(&mut debug, None, LIMIT)?.ok()?;
    let ip = pod.ip()?;
    let log = command::poll("the ephemeral container's log", LIMIT, || {
        let output = namespace
            .kubectl(&["logs", "app", "--container", "look"])
            .ok()?;
        Some(output.text()).filter(|log| log.contains("eth0"))
    });
    let log = log.with_context(|| namespace.describe("pod/app"))?;
    assert!(log.contains(&ip), "{ip} in {log}");
    assert_eq!(log.lines().next(), Some(pod.exec("uname -r")?.as_str()));
    Ok(())
}

/// A program that is ended at the end of the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
