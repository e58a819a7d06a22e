//! Tests how the node agent serves metrics: the real programs, `curl`, and an API server of this
//! test that answers reviews of tokens and rights. `k8s_chart` tests the same on a cluster.
//!
//! Needs `cargo xtask dist`.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::symlink,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        Arc,
    },
    thread,
};

use anyhow::{Context, Result};
use caisson_tests::{
    command,
    metrics::{check, value},
    node::LIMIT,
    paths,
};
use serde_json::{json, Value};

/// The token of an account that may read metrics, and that of one that may not.
const READER: &str = "reader";
const STRANGER: &str = "stranger";

/// Answers reviews, and counts them.
struct Api {
    address: String,
    reviews: Arc<AtomicU32>,
}

impl Api {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let reviews = Arc::new(AtomicU32::new(0));
        let counted = reviews.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counted = counted.clone();
                thread::spawn(move || answer_all(stream, &counted));
            }
        });
        Ok(Self { address, reviews })
    }
}

/// Answers the requests of a connection.
fn answer_all(stream: TcpStream, reviews: &AtomicU32) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.to_lowercase());
        }
        let mut lengths = head
            .iter()
            .filter_map(|line| line.strip_prefix("content-length:"));
        let length = lengths.next().unwrap_or("0").trim().parse()?;
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let (status, answer) = review(&head[0], &body, reviews);
        let text = answer.to_string();
        write!(
            writer,
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        )?;
    }
}

fn review(request: &str, body: &[u8], reviews: &AtomicU32) -> (&'static str, Value) {
    let mut object: Value = serde_json::from_slice(body).unwrap_or_default();
    let spec = object["spec"].clone();
    if request.contains("/tokenreviews") {
        reviews.fetch_add(1, Ordering::Relaxed);
        let token = spec["token"].as_str().unwrap_or_default();
        let is_known = token == READER || token == STRANGER;
        object["status"] = json!({
            "authenticated": is_known,
            "user": { "username": token },
        });
    } else if request.contains("/subjectaccessreviews") {
        let asked = json!({ "path": "/metrics", "verb": "get" });
        let may = spec["nonResourceAttributes"] == asked && spec["user"] == READER;
        object["status"] = json!({ "allowed": may });
    } else {
        let none = json!({ "kind": "Status", "status": "Failure", "message": "none", "code": 404 });
        return ("404 Not Found", none);
    }
    ("201 Created", object)
}

/// An agent on a node without pods. Dropping it ends it.
struct Agent {
    api: Api,
    process: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Agent {
    fn start() -> Result<Self> {
        let (api, dir) = (Api::start()?, tempfile::tempdir()?);
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("current"))?;
        symlink(paths::dist().join("bin"), path("current/bin"))?;
        let config = format!(
            "state_dir = {:?}\nstore_dir = {:?}\n",
            path("state"),
            path("store")
        );
        std::fs::write(path("config.toml"), config)?;
        let server = format!("http://{}", api.address);
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": { "server": server } }],
            "users": [{ "name": "test", "user": {} }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "current-context": "test",
        });
        std::fs::write(path("kubeconfig"), kubeconfig.to_string())?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let process = Command::new(paths::dist().join("bin/caisson-remote"))
            .args(["node", "serve", "--daemonset=a/b"])
            .arg(format!("--prefix={}", dir.path().display()))
            .arg(format!("--metrics-port={port}"))
            .arg(format!("--node-process={}", std::process::id()))
            .env("KUBECONFIG", path("kubeconfig"))
            .env("CAISSON_CONFIG", path("config.toml"))
            .env("NODE_NAME", "node")
            .env("POD_IP", "127.0.0.1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cargo xtask dist")?;
        let agent = Self {
            api,
            process,
            port,
            _dir: dir,
        };
        command::poll("the agent to serve", LIMIT, || {
            let (code, _) = agent.get("/healthz", None).ok()?;
            (code == "200").then_some(())
        })?;
        Ok(agent)
    }

    /// Gets a path. Returns the status and the text.
    fn get(&self, path: &str, token: Option<&str>) -> Result<(String, String)> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--insecure", "--max-time", "20"]);
        curl.args(["--write-out", "\n%{http_code}"]);
        if let Some(token) = token {
            curl.args(["--header", &format!("Authorization: Bearer {token}")]);
        }
        curl.arg(format!("https://127.0.0.1:{}{path}", self.port));
        let text = command::run(&mut curl, None, LIMIT)?.ok()?.text();
        let (body, code) = text.trim_end().rsplit_once('\n').context("no status")?;
        Ok((code.to_owned(), body.to_owned()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn metrics_are_for_whom_the_api_server_knows_and_allows_them() -> Result<()> {
    let agent = Agent::start()?;
    assert_eq!(agent.get("/metrics", None)?.0, "401");
    assert_eq!(agent.get("/metrics", Some("made-up"))?.0, "401");
    let (code, text) = agent.get("/metrics", Some(STRANGER))?;
    assert_eq!(code, "403");
    assert!(text.contains(STRANGER), "{text}");
    assert_eq!(agent.get("/metrics", Some(READER))?.0, "200");
    assert_eq!(agent.get("/other", Some(READER))?.0, "404");
    Ok(())
}

#[test]
fn metrics_of_node_and_agent_pass_promtool_together() -> Result<()> {
    let agent = Agent::start()?;
    let (_, text) = agent.get("/metrics", Some(READER))?;
    check(&text)?;
    assert_eq!(value(&text, "caisson_agent_collection_success")?, 1.0);
    assert_eq!(value(&text, "caisson_agent_node_ready")?, 0.0);
    assert_eq!(value(&text, "caisson_skills")?, 0.0);
    assert!(value(&text, "process_resident_memory_bytes")? > 1e6);
    Ok(())
}

#[test]
fn api_server_is_asked_once_for_many_scrapes_at_once_and_after_another() -> Result<()> {
    let agent = Agent::start()?;
    assert_eq!(agent.get("/metrics", Some(READER))?.0, "200");
    thread::scope(|scope| {
        let scrape = || agent.get("/metrics", Some(READER));
        let scrapes: Vec<_> = (0..20).map(|_| scope.spawn(scrape)).collect();
        for scrape in scrapes {
            let (code, _) = scrape.join().map_err(|_| anyhow::anyhow!("panic"))??;
            assert_eq!(code, "200");
        }
        Ok(())
    })
    .map(|()| assert_eq!(agent.api.reviews.load(Ordering::Relaxed), 1))
}
