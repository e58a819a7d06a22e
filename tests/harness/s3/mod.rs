//! A real S3 server (moto's) whose users may each use what is below a prefix.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{ensure, Context, Result};
use serde::Deserialize;

use crate::{command, paths};

/// A running server with one bucket. Dropping it ends it.
pub struct S3 {
    process: Child,
    host: String,
    said: Said,
}

/// The only line that the server prints.
#[derive(Deserialize)]
struct Said {
    port: u16,
    /// The key's id and the secret of each user.
    keys: HashMap<String, [String; 2]>,
}

impl S3 {
    /// The bucket's name.
    pub const BUCKET: &str = "bucket";

    /// Starts a server on loopback. Each user comes with the prefix of what it may use. The log is
    /// in `dir`.
    pub fn start(dir: &Path, users: &[(&str, &str)]) -> Result<Self> {
        Self::start_at("127.0.0.1", dir, users)
    }

    /// Starts a server at an address of this machine.
    pub fn start_at(host: &str, dir: &Path, users: &[(&str, &str)]) -> Result<Self> {
        let log = fs::File::create(dir.join("s3.log"))?;
        let users = users
            .iter()
            .map(|(user, prefix)| format!("{user}:{prefix}"));
        let mut process = python("server.py")?
            .args([host, Self::BUCKET])
            .args(users)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("start the S3 server")?;
        let stdout = process.stdout.take().context("stdout")?;
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        let said = read
            .map_err(anyhow::Error::from)
            .and_then(|_| Ok(serde_json::from_str(&line)?));
        match said {
            Ok(said) => Ok(Self {
                process,
                host: host.to_owned(),
                said,
            }),
            Err(error) => {
                let _ = process.kill();
                let _ = process.wait();
                Err(error.context(format!("the S3 server said {line:?}; see s3.log")))
            }
        }
    }

    /// Returns host and port.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.said.port)
    }

    /// Returns a user's keys: id and secret.
    pub fn keys(&self, user: &str) -> Result<&[String; 2]> {
        let keys = self.said.keys.get(user);
        keys.with_context(|| format!("the S3 server has no user {user}"))
    }

    /// Uploads a file as an object, as a user.
    pub fn put(&self, user: &str, key: &str, file: &Path) -> Result<()> {
        let [id, secret] = self.keys(user)?;
        let mut put = python("put.py")?;
        put.args([&self.address(), id, secret, Self::BUCKET, key])
            .arg(file);
        command::run(&mut put, None, Duration::from_secs(30))?
            .ok()
            .map(drop)
    }

    /// Writes a user's keys in the format of the AWS command line. Returns the file's path.
    pub fn credentials(&self, user: &str, dir: &Path) -> Result<PathBuf> {
        let [id, secret] = self.keys(user)?;
        let path = dir.join(format!("{user}.credentials"));
        let text =
            format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        fs::write(&path, text)?;
        Ok(path)
    }
}

/// Returns a program of this folder, run in the environment that the set-up script has made for it.
fn python(program: &str) -> Result<Command> {
    let python = paths::target().join("cache/s3-server/bin/python");
    ensure!(
        python.exists(),
        "no {}: packaging/setup test",
        python.display()
    );
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("harness/s3");
    let mut command = Command::new(python);
    command.arg(folder.join(program));
    Ok(command)
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
