//! `caisson claim`: gives a pod whose containers already run what it was started without
//! ([`caisson_oci::claim`]).

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{bail, ensure, Context, Result};
use caisson_node::{
    config::NodeConfig,
    control::{Answer, Request},
};
use caisson_oci::{
    annotations::{HOME, HOME_PATH, HOME_SIZE, SKILLS},
    claim::{Claim, Secret, MAX_BYTES},
};
use clap::Args;

use crate::ask;

/// The time that plugging and mounting may take, in addition to fetching skills and making a home.
const LIMIT: Duration = Duration::from_secs(60);

/// A pod is claimed once. What it gets is held to the policy of its namespace. A claim that fails
/// leaves the pod as it was.
#[derive(Args)]
pub struct Arguments {
    /// Its NAMESPACE/NAME or its id
    pod: String,
    /// A skill, as in the annotation caisson.dev/skills; may be given several times
    #[arg(long = "skill", value_name = "[NAME=]sha256:HEX|[NAME=]SKILL@VERSION")]
    skills: Vec<String>,
    /// The home, as in the annotation caisson.dev/home
    #[arg(long, value_name = "persistent/NAME|ephemeral")]
    home: Option<String>,
    /// How much the home holds, such as 10Gi
    #[arg(long, value_name = "QUANTITY", requires = "home")]
    home_size: Option<String>,
    /// Where the containers have the home
    #[arg(long, value_name = "PATH", requires = "home")]
    home_path: Option<String>,
    /// A variable; may be given several times
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// A file with a line NAME=VALUE for each variable; --env counts more
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// A secret that becomes a file; - is the standard input
    #[arg(long = "secret", value_name = "NAME=FILE", value_parser = pair)]
    secrets: Vec<(String, String)>,
    /// A secret that processes get as an open descriptor, whose number the variable has
    #[arg(long = "secret-fd", value_name = "VARIABLE=FILE", value_parser = pair)]
    secret_fds: Vec<(String, String)>,
    /// Reads the whole claim from the standard input, as JSON
    #[arg(long, hide = true, conflicts_with_all = ["skills", "home", "env", "env_file", "secrets", "secret_fds"])]
    json: bool,
}

/// Has the pod's shim carry out the claim. Prints where each container has its files, one line for
/// each.
pub fn run(config: &NodeConfig, arguments: &Arguments) -> Result<()> {
    let claim = match arguments.json {
        true => serde_json::from_reader(io::stdin().lock()).context("read the claim")?,
        false => claim(arguments)?,
    };
    let tools = config.skills.fetch_timeout_secs + config.homes.tool_timeout_secs;
    let limit = LIMIT + Duration::from_secs(tools);
    let request = Request::ClaimPod(claim);
    let answer = ask::ask(config, &arguments.pod, &request, limit)?;
    let (_, Answer::Done { target, containers }) = answer else {
        bail!("pod {}: its shim answers something else", arguments.pod);
    };
    for container in containers {
        println!("{container} {}", target.display());
    }
    Ok(())
}

fn claim(arguments: &Arguments) -> Result<Claim> {
    let skills = Some(arguments.skills.join(",")).filter(|skills| !skills.is_empty());
    let annotations = [
        (SKILLS, skills),
        (HOME, arguments.home.clone()),
        (HOME_SIZE, arguments.home_size.clone()),
        (HOME_PATH, arguments.home_path.clone()),
    ];
    let annotations = annotations.into_iter();
    let annotations = annotations.filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let mut env = BTreeMap::new();
    for path in &arguments.env_file {
        let text = String::from_utf8(read(path)?);
        let text = text.with_context(|| format!("{} is not UTF-8", path.display()))?;
        let variables = env_file(&text).with_context(|| format!("{}", path.display()))?;
        env.extend(variables);
    }
    env.extend(arguments.env.iter().cloned());
    Ok(Claim {
        annotations: annotations.collect(),
        env,
        secrets: secrets(&arguments.secrets)?,
        secret_fds: secrets(&arguments.secret_fds)?,
        token: None,
    })
}

fn secrets(files: &[(String, String)]) -> Result<BTreeMap<String, Secret>> {
    let mut secrets = BTreeMap::new();
    for (name, file) in files {
        let secret = Secret(read(Path::new(file))?);
        ensure!(
            secrets.insert(name.clone(), secret).is_none(),
            "the secret {name:?} is named twice"
        );
    }
    Ok(secrets)
}

/// Reads a file, or the standard input if it is named `-`, up to just over what a claim can have.
fn read(path: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let most = MAX_BYTES as u64 + 1;
    let done = match path == Path::new("-") {
        true => io::stdin().lock().take(most).read_to_end(&mut content),
        false => fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut content)),
    };
    done.with_context(|| format!("read {}", path.display()))?;
    Ok(content)
}

/// Parses an env file as `kubectl create secret generic --from-env-file` does: lines `NAME=VALUE`,
/// whose values are taken as they are. Empty lines and lines that begin with `#` are left out.
fn env_file(text: &str) -> Result<BTreeMap<String, String>> {
    let lines = text.lines().map(str::trim_start).enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let pairs = lines.map(|(number, line)| {
        pair(line).map_err(|why| anyhow::anyhow!("line {}: {why}", number + 1))
    });
    pairs.collect()
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn env_file_has_a_variable_a_line() {
        let variables = env_file("# who\nUSER_NAME=anna\n\nKEY=a=b c\nEMPTY=\n").unwrap();
        let pairs = [("EMPTY", ""), ("KEY", "a=b c"), ("USER_NAME", "anna")];
        assert_eq!(
            variables.into_iter().collect::<Vec<_>>(),
            pairs.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }

    #[test]
    fn line_that_sets_nothing_is_named_by_its_number() {
        let error = env_file("A=1\nB\n").unwrap_err().to_string();
        assert_eq!(error, "line 2: \"B\" is not NAME=VALUE");
    }
}
