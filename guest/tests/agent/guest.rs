//! A guest to test: the agent, a client and a busybox root file system.

use std::{
    fs,
    os::unix::fs::{symlink, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use caisson_protocol::{
    agent::*,
    agent_ttrpc::AgentClient,
    port,
    secret::{ADMITTED, BY_DAEMON, LENGTH},
    stream,
};
use serde_json::{json, Value};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};
use ttrpc::{
    context,
    r#async::{transport::Socket, Client},
    Code,
};

static NUMBER: AtomicU64 = AtomicU64::new(1);

/// Longer than anything takes, even under emulation.
pub const LONG: Duration = Duration::from_secs(60);

/// A running agent with a share that has a root file system.
pub struct Guest {
    pub client: AgentClient,
    /// The host's side of the share `pod`.
    pub share: PathBuf,
    vsock: Option<PathBuf>,
    fake: Option<(Child, tempfile::TempDir)>,
}

pub fn number() -> u64 {
    NUMBER.fetch_add(1, Ordering::SeqCst) + u64::from(std::process::id()) * 1_000_000
}

impl Guest {
    pub async fn start() -> Guest {
        Guest::start_with(|_| {}).await
    }

    /// Starts a guest whose share is a mount that passes on later mounts below it, as the shim's
    /// is.
    pub async fn start_on_shared_mount() -> Guest {
        Guest::start_with(|share| {
            for words in [["--bind"].as_slice(), &["--make-shared"]] {
                let mut mount = Command::new("mount");
                mount.args(words);
                if words == ["--bind"] {
                    mount.arg(share);
                }
                assert!(mount.arg(share).status().unwrap().success());
            }
        })
        .await
    }

    async fn start_with(prepare_fake: impl FnOnce(&Path)) -> Guest {
        let mut guest = match std::env::var_os("CAISSON_TEST_VSOCK") {
            Some(vsock) => {
                let share = std::env::var_os("CAISSON_TEST_SHARE").unwrap();
                Guest::of(PathBuf::from(share), Some(vsock.into()), None).await
            }
            None => {
                let dir = tempfile::tempdir().unwrap();
                let share = dir.path().join("devices/pod");
                fs::create_dir_all(&share).unwrap();
                prepare_fake(&share);
                fs::write(dir.path().join("secret"), told()).unwrap();
                let child = Command::new(env!("CARGO_BIN_EXE_caisson-agent"))
                    .arg("--fake")
                    .arg(dir.path())
                    .spawn()
                    .unwrap();
                Guest::of(share, None, Some((child, dir))).await
            }
        };
        make_rootfs(&guest.share.join("rootfs"));
        let share = Share {
            tag: "pod".to_string(),
            ..Default::default()
        };
        guest
            .attach(attach_request::Device::Share(share))
            .await
            .unwrap();
        guest
    }

    async fn of(
        share: PathBuf,
        vsock: Option<PathBuf>,
        fake: Option<(Child, tempfile::TempDir)>,
    ) -> Guest {
        let dir = fake.as_ref().map(|(_, dir)| dir.path().to_path_buf());
        let stream = admitted(vsock.as_deref(), dir.as_deref(), port::AGENT).await;
        Guest {
            client: AgentClient::new(Client::new(Socket::new(stream))),
            share,
            vsock,
            fake,
        }
    }

    pub fn is_fake(&self) -> bool {
        self.fake.is_some()
    }

    /// Returns the fake's directory.
    pub fn dir(&self) -> Option<&Path> {
        self.fake.as_ref().map(|(_, dir)| dir.path())
    }

    /// Returns the fake's log.
    pub fn log(&self) -> String {
        match &self.fake {
            Some((_, dir)) => fs::read_to_string(dir.path().join("agent.log")).unwrap(),
            None => String::new(),
        }
    }

    pub async fn attach(&mut self, device: attach_request::Device) -> ttrpc::Result<Empty> {
        let request = AttachRequest {
            device: Some(device),
            ..Default::default()
        };
        self.client.attach(ctx(), &request).await
    }

    /// Returns a connection on which nothing has been sent.
    pub async fn stranger(&self, port: u32) -> UnixStream {
        connect(self.vsock.as_deref(), self.dir(), port).await
    }

    /// Connects to a stream of a process.
    pub async fn stream(&self, token: u64) -> UnixStream {
        let mut stream = admitted(self.vsock.as_deref(), self.dir(), port::STREAMS).await;
        stream::write_token(&mut stream, token).await.unwrap();
        stream
    }

    /// Returns everything that comes on a stream.
    pub async fn read_all(&self, token: u64) -> Vec<u8> {
        let mut stream = self.stream(token).await;
        let mut output = Vec::new();
        timeout(LONG, stream::receive(&mut stream, &mut output))
            .await
            .unwrap()
            .unwrap();
        output
    }

    pub async fn create(&self, id: &str, spec: &Value, streams: &Streams) -> ttrpc::Result<u32> {
        self.create_planned(&planned(id, spec, streams)).await
    }

    pub async fn create_planned(&self, request: &CreateContainerRequest) -> ttrpc::Result<u32> {
        Ok(self.client.create_container(ctx(), request).await?.pid)
    }

    pub async fn start_container(&self, id: &str) -> ttrpc::Result<Empty> {
        self.client.start_container(ctx(), &container(id)).await
    }

    pub async fn delete(&self, id: &str) -> ttrpc::Result<Empty> {
        self.client.delete_container(ctx(), &container(id)).await
    }

    pub async fn wait(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = ProcessRequest {
            container_id: id.to_string(),
            exec_id: exec.to_string(),
            ..Default::default()
        };
        Ok(self.client.wait(ctx(), &request).await?.exit_status)
    }

    pub async fn kill(&self, id: &str, exec: &str, signal: i32) -> ttrpc::Result<Empty> {
        let request = KillRequest {
            container_id: id.to_string(),
            exec_id: exec.to_string(),
            signal: signal as u32,
            ..Default::default()
        };
        self.client.kill(ctx(), &request).await
    }

    pub async fn exec(
        &self,
        id: &str,
        exec: &str,
        process: &Value,
        streams: &Streams,
    ) -> ttrpc::Result<u32> {
        let request = ExecRequest {
            container_id: id.to_string(),
            exec_id: exec.to_string(),
            process_json: process.to_string().into_bytes(),
            streams: Some(streams.clone()).into(),
            ..Default::default()
        };
        Ok(self.client.exec(ctx(), &request).await?.pid)
    }

    /// Runs a container to its end and removes it. Returns its status, stdout and stderr.
    pub async fn run(&self, spec: &Value) -> (u32, String, String) {
        self.run_planned(planned("", spec, &outputs())).await
    }

    /// As [`Self::run`]. The container gets an id.
    pub async fn run_planned(&self, mut request: CreateContainerRequest) -> (u32, String, String) {
        let id = format!("c{}", number());
        request.container_id.clone_from(&id);
        let streams = request.streams.clone().unwrap();
        self.create_planned(&request).await.unwrap();
        let ended = self.started(&id, &streams).await;
        self.delete(&id).await.unwrap();
        ended
    }

    /// Runs a created container to its end.
    pub async fn started(&self, id: &str, streams: &Streams) -> (u32, String, String) {
        self.start_container(id).await.unwrap();
        self.ended(id, "", streams).await
    }

    pub async fn ended(&self, id: &str, exec: &str, streams: &Streams) -> (u32, String, String) {
        let (stdout, stderr, status) = tokio::join!(
            self.read_all(streams.stdout),
            self.read_all(streams.stderr),
            self.wait(id, exec)
        );
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.unwrap(), text(stdout), text(stderr))
    }

    /// Runs a process in a container to its end.
    pub async fn run_in(&self, id: &str, process: &Value) -> (u32, String, String) {
        let exec = format!("e{}", number());
        let streams = outputs();
        self.exec(id, &exec, process, &streams).await.unwrap();
        self.ended(id, &exec, &streams).await
    }

    /// Starts a container that does nothing.
    pub async fn idle(&self, spec: &Value) -> String {
        self.idle_planned(planned("", spec, &Streams::new())).await
    }

    /// As [`Self::idle`]. The container gets an id.
    pub async fn idle_planned(&self, mut request: CreateContainerRequest) -> String {
        let id = format!("c{}", number());
        request.container_id.clone_from(&id);
        self.create_planned(&request).await.unwrap();
        self.start_container(&id).await.unwrap();
        id
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.fake {
            // SAFETY: our child, which nothing has waited for yet.
            unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
            child.wait().unwrap();
            // Most tests have not mounted it.
            let mut unmount = Command::new("umount");
            let _ = unmount.arg("-ql").arg(&self.share).output();
        }
    }
}

/// Returns the guest's secret. For a VM that was booted outside of the tests, `CAISSON_TEST_SECRET`
/// has it in hex.
fn secret() -> [u8; LENGTH] {
    let Some(hex) = std::env::var_os("CAISSON_TEST_SECRET") else {
        return [7; LENGTH];
    };
    let hex = hex.into_string().unwrap();
    std::array::from_fn(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap())
}

/// Returns what the host tells a guest.
fn told() -> Vec<u8> {
    [&[BY_DAEMON], secret().as_slice()].concat()
}

/// Returns a connection on which the secret has been sent.
async fn admitted(vsock: Option<&Path>, dir: Option<&Path>, port: u32) -> UnixStream {
    let mut stream = connect(vsock, dir, port).await;
    stream.write_all(&secret()).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), ADMITTED);
    stream
}

async fn connect(vsock: Option<&Path>, dir: Option<&Path>, port: u32) -> UnixStream {
    let path = match (vsock, dir) {
        (Some(vsock), _) => vsock.to_path_buf(),
        (None, dir) => dir.unwrap().join(format!("{port}.sock")),
    };
    let connect = async {
        loop {
            if let Ok(mut stream) = UnixStream::connect(&path).await {
                if vsock.is_none() {
                    return stream;
                }
                let hello = format!("CONNECT {port}\n");
                if stream.write_all(hello.as_bytes()).await.is_ok() && answered(&mut stream).await {
                    return stream;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, connect).await.expect("the agent listens")
}

async fn answered(stream: &mut UnixStream) -> bool {
    let mut line = String::new();
    while !line.ends_with('\n') {
        match stream.read_u8().await {
            Ok(byte) => line.push(byte as char),
            Err(_) => return false,
        }
    }
    line.starts_with("OK ")
}

pub fn ctx() -> context::Context {
    context::with_timeout(LONG.as_nanos() as i64)
}

pub fn container(id: &str) -> ContainerRequest {
    ContainerRequest {
        container_id: id.to_string(),
        ..Default::default()
    }
}

/// Returns the code and message with which the agent refused a request.
pub fn refused(error: ttrpc::Error) -> (Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_string()),
        other => panic!("{other}"),
    }
}

/// Returns streams with stdout and stderr.
pub fn outputs() -> Streams {
    Streams {
        stdout: number(),
        stderr: number(),
        ..Default::default()
    }
}

/// Returns a spec like those that containerd makes, but smaller.
pub fn spec(args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": process(args),
        "root": {"path": "/run/caisson/shares/pod/rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}
            ],
            "maskedPaths": ["/proc/kcore", "/proc/interrupts", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"],
        },
    })
}

/// Returns the plan of a container that needs nothing but its spec.
pub fn planned(id: &str, spec: &Value, streams: &Streams) -> CreateContainerRequest {
    CreateContainerRequest {
        container_id: id.to_string(),
        spec_json: spec.to_string().into_bytes(),
        streams: Some(streams.clone()).into(),
        ..Default::default()
    }
}

/// Returns a process object.
pub fn process(args: &[&str]) -> Value {
    let caps = [
        "CAP_CHOWN",
        "CAP_KILL",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_NET_BIND_SERVICE",
    ];
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin:/usr/bin", "FOO=bar"],
        "cwd": "/",
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps,
            "inheritable": [], "ambient": []},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 512, "soft": 256}],
        "noNewPrivileges": true,
    })
}

/// Returns the arguments of a process that runs a shell script.
pub fn sh(script: &str) -> [&str; 3] {
    ["sh", "-c", script]
}

fn make_rootfs(root: &Path) {
    if root.join("bin/busybox").exists() {
        return;
    }
    for dir in ["bin", "etc", "tmp", "proc", "dev", "sys", "home/app"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let applets = Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .unwrap()
        .stdout;
    for applet in String::from_utf8(applets).unwrap().lines() {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\napp:x:1000:\n").unwrap();
    fs::write(root.join("bin/no-right"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("bin/no-right"), fs::Permissions::from_mode(0o644)).unwrap();
}
