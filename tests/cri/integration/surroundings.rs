//! Provides what containerd's own tests need on a node beyond what the other suites have there.
//! These are images by names that every client resolves; the runtime `runc-fp`, whose shim and CNI
//! plugin fail on purpose; and programs. `docker` makes an archive, and `containerd`, which some
//! tests start themselves, has to keep to this node's network and images.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{ensure, Context, Result};
use caisson_oci::config::merge;
use caisson_tests::cri::{network, registry::Registry, CriNode, NAMESPACE};
use serde_json::{json, Value};
use toml::Table;

/// For each image, the tests' name, the name in the registry, and the image that is served.
const IMAGES: [(&str, &str, &str); 7] = [
    ("BusyBox", "containerd/busybox:1.36", "hub-busybox"),
    ("Alpine", "containerd/alpine:3.14.0", "busybox"),
    ("Nginx", "containerd/nginx:1.27.0", "busybox"),
    (PAUSE, "pause:3.10", "pause"),
    (
        "ResourceConsumer",
        "e2e-test-images/resource-consumer:1.10",
        "resource-consumer",
    ),
    (
        "VolumeCopyUp",
        "containerd/volume-copy-up:2.2",
        "volume-copy-up",
    ),
    (
        "VolumeOwnership",
        "containerd/volume-ownership:2.1",
        "volume-ownership",
    ),
];
const PAUSE: &str = "Pause";

/// The CNI plugin of `runc-fp`, which calls `bridge`.
const FAILPOINT_PLUGIN: &str = "cni-bridge-fp";

/// The program that a test mounts from `/usr/local/bin`.
const INSTALLED: &str = "loopback-v2";

/// What the test program gets on its command line and in its environment.
pub struct Surroundings {
    /// The file for `--image-list`.
    pub image_list: PathBuf,
    /// `PATH`.
    pub path: String,
}

impl Surroundings {
    /// Publishes the images and restarts the node's containerd with the configuration that it
    /// needs.
    pub fn make(node: &CriNode, registry: &Registry) -> Result<Self> {
        // Some tests pull with clients of their own, which don't read a `hosts.toml`, so public
        // names can't be used.
        let full = |name: &str| format!("{}/{name}", registry.address());
        let mut list = Table::new();
        for (key, name, fixture) in IMAGES {
            registry.publish(fixture, &full(name))?;
            list.insert(key.into(), full(name).into());
        }
        let image_list = node.dir().join("image-list.toml");
        fs::write(&image_list, toml::to_string(&list)?)?;
        let pause = list[PAUSE].as_str().unwrap_or_default();

        let config = configure(node, pause)?;
        node.stop_containerd(false)?;
        node.start_containerd()?;
        node.pull(pause)?;

        let programs = node.dir().join("bin");
        fs::create_dir_all(&programs)?;
        write_docker(node, &programs.join("docker"))?;
        write_containerd(node, config, &programs.join("containerd"))?;
        Ok(Self {
            image_list,
            path: format!("{}:{}", programs.display(), node.path()),
        })
    }
}

/// Adds `runc-fp` to containerd's configuration, as containerd's `script/test/utils.sh` does, and
/// the tests' pause image, which they expect to be pinned. Returns the whole configuration.
fn configure(node: &CriNode, pause: &str) -> Result<Table> {
    let bin = node.version().checked_bin()?;
    ensure!(
        bin.join(FAILPOINT_PLUGIN).exists(),
        "no {FAILPOINT_PLUGIN} in {}: cargo xtask test-tools --integration",
        bin.display()
    );
    let conf_dir = failpoint_network(node.dir())?;
    let path = node.dir().join("containerd.toml");
    let mut config: Table = fs::read_to_string(&path)?.parse()?;
    let more = json!({
        "io.containerd.cri.v1.images": { "pinned_images": { "sandbox": pause } },
        "io.containerd.cri.v1.runtime": {
            "cni": { "bin_dirs": [network::PLUGINS, bin] },
            "containerd": { "runtimes": { "runc-fp": {
                "runtime_type": "io.containerd.runc-fp.v1",
                "pod_annotations": ["io.containerd.runtime.v2.shim.failpoint.*"],
                "cni_conf_dir": conf_dir,
                "cni_max_conf_num": 1,
            } } },
        },
    });
    let plugins = config
        .get_mut("plugins")
        .and_then(toml::Value::as_table_mut);
    merge(
        plugins.context("containerd.toml has no plugins")?,
        Table::try_from(more)?,
    );
    fs::write(&path, toml::to_string(&config)?)?;
    Ok(config)
}

/// Configures the node's own network, with its bridge and addresses, for the plugin that can fail.
/// Returns the folder.
fn failpoint_network(dir: &Path) -> Result<PathBuf> {
    let text = fs::read_to_string(network::conf_file(dir))?;
    let mut conf: Value = serde_json::from_str(&text)?;
    let plugin = &mut conf["plugins"][0];
    plugin["type"] = FAILPOINT_PLUGIN.into();
    plugin["capabilities"] = json!({ "io.kubernetes.cri.pod-annotations": true });
    let conf_dir = dir.join("cni-failpoint");
    fs::create_dir_all(&conf_dir)?;
    fs::write(conf_dir.join("10-bridge.conflist"), conf.to_string())?;
    Ok(conf_dir)
}

/// Writes a `docker` with `docker pull` and `docker save`, of which one test needs an archive. It
/// uses the node's own containerd.
fn write_docker(node: &CriNode, path: &Path) -> Result<()> {
    let ctr = node.version().bin().join("ctr");
    let script = format!(
        r#"#!/bin/sh -e
ctr="{} --address {} --namespace {NAMESPACE}"
case $1 in
pull) $ctr images pull --plain-http "$2" ;;
save) $ctr images export "$4" "$2" ;;
*) exit 2 ;;
esac
"#,
        ctr.display(),
        node.socket().display(),
    );
    write_program(path, &script)
}

/// Writes a `containerd` for tests that start it with their own configuration. It adds the plugin
/// settings of this node, and sees as installed what a test mounts from `/usr/local/bin`.
fn write_containerd(node: &CriNode, mut config: Table, path: &Path) -> Result<()> {
    config.retain(|key, _| ["version", "disabled_plugins", "plugins"].contains(&key));
    let imported = node.dir().join("imported.toml");
    fs::write(&imported, toml::to_string(&config)?)?;
    let bin = node.version().bin();
    let installed = node.dir().join("installed");
    fs::create_dir_all(&installed)?;
    fs::copy(bin.join(INSTALLED), installed.join(INSTALLED)).context(INSTALLED)?;
    let script = format!(
        r#"#!/bin/sh -e
if [ -z "$INSTALLED" ]; then
    INSTALLED=yes exec unshare --mount "$0" "$@"
fi
mount -t overlay -o lowerdir=/usr/local/bin:{} overlay /usr/local/bin
last=
for argument; do
    if [ "$last" = --config ] && ! grep -q ^imports "$argument"; then
        sed -i '1i imports = ["{}"]' "$argument"
    fi
    last=$argument
done
exec {} "$@"
"#,
        installed.display(),
        imported.display(),
        bin.join("containerd").display(),
    );
    write_program(path, &script)
}

fn write_program(path: &Path, script: &str) -> Result<()> {
    fs::write(path, script)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
