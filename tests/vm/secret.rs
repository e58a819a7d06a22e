//! Tests that the agent trusts only the shim: a connection to its ports that does not have the VM's
//! secret is closed before any call.
//!
//! On this host a daemon carries the connections. It stands in for the kernel's device, through
//! which every process of the host may reach every guest.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{bail, ensure, Context, Result};
use caisson_tests::{command, Container, Node};
use rstest::rstest;

/// The ports of the agent's service, the streams of processes, and connections to servers.
const PORTS: [u32; 3] = [1024, 1025, 1026];
/// Longer than the agent waits for the secret.
const CLOSED: Duration = Duration::from_secs(20);

/// Encodes a call of `Ping` as the shim makes it: ttrpc's header (length, stream, type of a
/// request) and its message.
fn ping() -> Vec<u8> {
    let mut request = Vec::new();
    for (field, text) in [(1, "caisson.agent.v1.Agent"), (2, "Ping")] {
        request.extend([field << 3 | 2, text.len() as u8]);
        request.extend(text.bytes());
    }
    let mut frame = (request.len() as u32).to_be_bytes().to_vec();
    frame.extend([0, 0, 0, 1, 1, 0]);
    frame.extend(request);
    frame
}

#[rstest]
#[case::nothing(&[])]
#[case::another_secret(&[7; 32])]
fn process_on_the_host_that_does_not_know_the_secret_is_closed_before_any_call(
    #[case] said: &[u8],
) -> Result<()> {
    let container = running()?;
    let bytes = [said, &ping()].concat();
    for port in PORTS {
        let mut stranger = connect(&container, port)?;
        // The connection may be closed by now.
        let _ = stranger.write_all(&bytes);
        assert_eq!(answer(&mut stranger)?, b"", "from port {port}");
    }
    // The shim's own connection still works.
    assert_eq!(container.sh("echo still here")?, "still here");
    Ok(())
}

#[test]
fn host_that_connects_a_hundred_times_and_says_nothing_does_not_keep_the_shim_out() -> Result<()> {
    let container = running()?;
    let strangers = (0..100).map(|_| connect(&container, 1025));
    let strangers = strangers.collect::<Result<Vec<_>>>()?;
    assert_eq!(container.sh("echo still here")?, "still here");
    drop(strangers);
    Ok(())
}

/// A container with all rights in its own guest connects to the loopback, to the address that each
/// guest has with a daemon, and to the host's address, where no agent is.
#[test]
fn process_in_another_pod_is_closed_before_any_call() -> Result<()> {
    let node = Node::shared();
    let _other = running()?;
    let container = node.container("busybox").switch("--privileged");
    let container = container.args(["sleep", "1000"]).start()?;
    for cid in ["1", "2", "3"] {
        for port in PORTS {
            let bytes = hex::encode(ping());
            let output = container.exec(["probe", "ask-vsock", cid, &port.to_string(), &bytes])?;
            let text = output.text();
            ensure!(
                text.contains("closed") || text.contains("error"),
                "{cid}:{port}: {text}"
            );
        }
    }
    Ok(())
}

/// The secret can't be read in places open to everybody on the host or to a container.
#[test]
fn secret_is_in_no_command_line_and_no_file_of_the_pod() -> Result<()> {
    let node = Node::shared();
    let container = node.container("busybox").switch("--privileged");
    let container = container.args(["sleep", "1000"]).start()?;
    let qemu = fs::read_to_string(format!("/proc/{}/cmdline", container.vmm()?))?;
    let guest = container.sh("cat /proc/cmdline")?;
    for line in [&qemu, &guest] {
        ensure!(!line.contains("secret"), "{line}");
    }
    let found = files(&container.state_dir())?;
    let named = found.iter().find(|path| path.ends_with("secret"));
    ensure!(named.is_none(), "{named:?}");
    let asked = "waits for its secret";
    ensure!(!node.log().contains(asked), "the question is in the log");
    Ok(())
}

fn running() -> Result<Container<'static>> {
    let container = Node::shared().container("busybox");
    container.args(["sleep", "1000"]).start()
}

/// Connects to a port of the guest as the shim does. Retries, since the daemon sometimes drops a
/// connection while it closes another.
fn connect(container: &Container, port: u32) -> Result<UnixStream> {
    let mut last = None;
    let connected = command::poll("a connection to the guest", CLOSED, || {
        let tried = try_connect(container, port);
        tried.map_err(|error| last = Some(error)).ok()
    });
    connected.with_context(|| format!("{last:?}"))
}

fn try_connect(container: &Container, port: u32) -> Result<UnixStream> {
    let dir = container.state_dir().join("vm/vsock");
    // The path of a socket is at most 107 bytes (unix(7)).
    let opened = fs::File::open(&dir).with_context(|| dir.display().to_string())?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&opened);
    let mut stream = UnixStream::connect(format!("/proc/self/fd/{fd}/host"))?;
    stream.set_read_timeout(Some(CLOSED))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream
            .read_exact(&mut byte)
            .context("the daemon's answer")?;
        line.extend(byte);
    }
    ensure!(line.starts_with(b"OK "), "{line:?}");
    Ok(stream)
}

/// Reads until the connection is closed.
fn answer(stream: &mut UnixStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(bytes),
        Err(error) => bail!("not closed within {CLOSED:?}: {error}"),
    }
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        // Leaves out what the container has.
        if entry.file_type()?.is_dir() && entry.file_name() != "shared" {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}
