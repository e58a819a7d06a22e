//! Makes a namespace for the user's pods, with a Secret from each env file.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};

use crate::process;

/// Creates the namespace and the Secrets, or updates existing Secrets from the files. `kubectl` is
/// a command that has the cluster's kubeconfig; this function adds the arguments. Fails if a file
/// is not in the format of env files (`kubectl create secret generic --from-env-file`).
pub fn apply(
    kubectl: impl Fn() -> Command,
    namespace: &str,
    env_files: &[impl AsRef<Path>],
) -> Result<()> {
    // `create` alone refuses objects that exist already.
    let apply = |object: &mut Command| {
        let manifest = process::output(object.args(["--dry-run=client", "--output=yaml"]), "")?;
        process::output(kubectl().args(["apply", "--filename", "-"]), &manifest)
    };
    apply(kubectl().args(["create", "namespace", namespace]))
        .with_context(|| format!("the namespace {namespace}"))?;
    for file in env_files {
        let file = file.as_ref();
        let mut secret = kubectl();
        secret
            .args(["create", "secret", "generic", &name(file)?])
            .args(["--namespace", namespace, "--from-env-file"])
            .arg(file);
        apply(&mut secret).with_context(|| format!("a Secret of {}", file.display()))?;
    }
    Ok(())
}

/// Returns the Secret's name: the file's name without `.env`, or `env` for a file named `.env`.
fn name(file: &Path) -> Result<String> {
    let name = file.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{}: no file's name", file.display()))?;
    let stem = name.strip_suffix(".env").filter(|stem| !stem.is_empty());
    Ok(stem
        .unwrap_or_else(|| name.trim_start_matches('.'))
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_has_the_name_of_its_file() {
        for (file, secret) in [
            (".env", "env"),
            ("secrets/workspace-s3.env", "workspace-s3"),
            ("/tmp/keys", "keys"),
        ] {
            assert_eq!(name(Path::new(file)).unwrap(), secret);
        }
        assert!(name(Path::new("..")).is_err());
    }
}
