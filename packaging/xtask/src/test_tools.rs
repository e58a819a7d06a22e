//! `cargo xtask test-tools`: builds what the tests and the bench compare with and Debian 12 does
//! not have. It comes from the Go modules under `packaging/test-tools`, whose go.mod and go.sum are
//! the pins; containerd 1.7 comes from Debian 13. `cargo xtask cluster-tools` builds Kubernetes in
//! the same way. None of this is shipped or installed.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{bail, Context, Result};

use crate::{
    dirs::Dirs,
    files,
    helpers::{self, Build},
    step,
};

/// Debian's backported Go. `packaging/setup` installs it only if the PATH has none that is new
/// enough.
const BACKPORT: &str = "/usr/lib/go-1.23/bin/go";

/// A set of binaries built from one module of `packaging/test-tools`.
#[derive(Debug)]
struct Tool {
    /// The module's folder.
    module: &'static str,
    /// The folder under `target/cache/tools` whose `bin` gets the binaries.
    to: &'static str,
    packages: &'static [&'static str],
    tags: &'static str,
    cgo: bool,
    /// The program's name, if it is not that of its (only) package.
    name: Option<&'static str>,
    /// Flags for the linker, in addition to `-s -w`.
    ldflags: &'static str,
}

const CONTAINERD: Tool = Tool {
    module: "containerd",
    to: "containerd-2.1",
    packages: &[
        "github.com/containerd/containerd/v2/cmd/containerd",
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        "github.com/containerd/containerd/v2/cmd/ctr",
    ],
    tags: "no_btrfs",
    cgo: false,
    name: None,
    ldflags: "",
};

const RUNC: Tool = Tool {
    module: "runc",
    to: "containerd-2.1",
    packages: &["github.com/opencontainers/runc"],
    tags: "seccomp",
    cgo: true,
    name: None,
    ldflags: "",
};

const GVISOR: Tool = Tool {
    module: "gvisor",
    to: "gvisor",
    packages: &["gvisor.dev/gvisor/runsc"],
    tags: "",
    // With cgo, runsc dies in the empty root that it gives itself.
    cgo: false,
    name: None,
    ldflags: "",
};

/// The version as in go.mod; charts and tests ask for it.
const KUBERNETES_VERSION: &str = "-X k8s.io/component-base/version.gitVersion=v1.33.4";

/// A whole Kubernetes, for `make cluster`.
const KUBERNETES: [Tool; 5] = [
    Tool {
        module: "etcd",
        to: "kubernetes",
        packages: &["go.etcd.io/etcd/server/v3"],
        tags: "",
        cgo: false,
        name: Some("etcd"),
        ldflags: "",
    },
    Tool {
        module: "kubernetes",
        to: "kubernetes",
        packages: &[
            "k8s.io/kubernetes/cmd/kube-apiserver",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
            "k8s.io/kubernetes/cmd/kube-proxy",
            "k8s.io/kubernetes/cmd/kube-scheduler",
            "k8s.io/kubernetes/cmd/kubectl",
            "k8s.io/kubernetes/cmd/kubelet",
            "./pause",
        ],
        tags: "",
        cgo: false,
        name: None,
        ldflags: KUBERNETES_VERSION,
    },
    Tool {
        module: "coredns",
        to: "kubernetes",
        packages: &["github.com/coredns/coredns"],
        tags: "",
        cgo: false,
        name: None,
        ldflags: "",
    },
    Tool {
        module: "metrics-server",
        to: "kubernetes",
        packages: &["sigs.k8s.io/metrics-server/cmd/metrics-server"],
        tags: "",
        cgo: false,
        name: None,
        ldflags: "",
    },
    HELM,
];

const HELM: Tool = Tool {
    module: "helm",
    to: "kubernetes",
    packages: &["helm.sh/helm/v3/cmd/helm"],
    tags: "",
    cgo: false,
    name: None,
    ldflags: "",
};

/// Kubernetes' own end-to-end tests, the program that runs several of them at once, and two
/// programs of their images.
const E2E: &str = "k8s.io/kubernetes/test/e2e";
const E2E_PROGRAMS: Tool = Tool {
    module: "kubernetes",
    to: "conformance",
    packages: &[
        "github.com/onsi/ginkgo/v2/ginkgo",
        "k8s.io/kubernetes/test/images/agnhost",
        "k8s.io/kubernetes/test/images/nonewprivs",
    ],
    tags: "",
    cgo: false,
    name: None,
    ldflags: KUBERNETES_VERSION,
};

/// The module with the files that the cluster is built from, and where they go below
/// `target/cache/tools`: the API's description, and what the image of the end-to-end tests has
/// beside its program.
const MODULE: &str = "k8s.io/kubernetes";
const API: (&str, &str) = ("api/openapi-spec/swagger.json", "kubernetes/swagger.json");
const CERTIFICATE: [(&str, &str); 2] = [
    (
        "test/images/agnhost/porter/localhost.crt",
        "conformance/bin/localhost.crt",
    ),
    (
        "test/images/agnhost/porter/localhost.key",
        "conformance/bin/localhost.key",
    ),
];

/// The Debian release that has containerd 1.7, and the beginning of that version.
const DEBIAN_13: (&str, &str) = ("trixie", "1.7.");

/// containerd's own CRI tests, of the same version.
const INTEGRATION: &str = "github.com/containerd/containerd/v2/integration";
/// The programs that those tests run: a CNI plugin and a shim that fail on purpose, and one that
/// looks at `lo`.
const FAILPOINTS: [&str; 3] = [
    "github.com/containerd/containerd/v2/integration/failpoint/cmd/cni-bridge-fp",
    "github.com/containerd/containerd/v2/integration/failpoint/cmd/containerd-shim-runc-fp-v1",
    "github.com/containerd/containerd/v2/integration/failpoint/cmd/loopback-v2",
];

/// Checks of file systems, built from their crates.
const POSIX: [(&str, &str); 2] = [("fsx", "0.3.2"), ("pjdfstest", "0.2.2")];

/// What is built beside containerd and runc.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Further {
    Nothing,
    /// For the bench.
    Gvisor,
    /// For `cargo xtask run cri-integration`.
    Integration,
    /// For `cri_home_posix`.
    Posix,
    /// For `chart`, and nothing beside it.
    Chart,
}

/// Builds containerd 2.1, runc and the `further` tools; unpacks containerd 1.7.
pub fn build(dirs: &Dirs, further: Further) -> Result<()> {
    if further == Further::Chart {
        build_tool(dirs, &HELM)?;
        return copy_from_module(dirs, &[API]);
    }
    build_tool(dirs, &CONTAINERD)?;
    build_tool(dirs, &RUNC)?;
    unpack_containerd_1_7(dirs)?;
    match further {
        Further::Nothing | Further::Chart => Ok(()),
        Further::Gvisor => build_tool(dirs, &GVISOR),
        Further::Integration => build_integration(dirs),
        Further::Posix => build_posix(dirs),
    }
}

/// Builds what a cluster of one node consists of, containerd and runc included.
pub fn build_cluster(dirs: &Dirs) -> Result<()> {
    build_tool(dirs, &CONTAINERD)?;
    build_tool(dirs, &RUNC)?;
    KUBERNETES
        .iter()
        .try_for_each(|tool| build_tool(dirs, tool))
}

/// Builds what a cluster consists of and what `cargo xtask run conformance` runs on it.
pub fn build_conformance(dirs: &Dirs) -> Result<()> {
    build_cluster(dirs)?;
    build_tool(dirs, &E2E_PROGRAMS)?;
    copy_from_module(dirs, &CERTIFICATE)?;
    build_tests(
        dirs,
        &E2E_PROGRAMS,
        E2E,
        &dirs
            .cache
            .join("tools")
            .join(E2E_PROGRAMS.to)
            .join("bin/e2e.test"),
    )
}

/// Copies files from the module of Kubernetes, which Go checks against the sums of the cluster's
/// module.
fn copy_from_module(dirs: &Dirs, files: &[(&str, &str)]) -> Result<()> {
    let tools = dirs.cache.join("tools");
    if files.iter().all(|(_, to)| tools.join(to).exists()) {
        return Ok(());
    }
    let mut download = Command::new(go());
    download
        .args(["mod", "download", "-json", MODULE])
        .current_dir(module(dirs, "kubernetes"))
        .env("GOTOOLCHAIN", "auto");
    eprintln!("  kubernetes: getting the module {MODULE} ...");
    let said: serde_json::Value = serde_json::from_slice(&step::output(&mut download)?)
        .context("understand go mod download")?;
    let dir = said["Dir"]
        .as_str()
        .context("go mod download names no Dir")?;
    files
        .iter()
        .try_for_each(|(path, to)| files::copy(&Path::new(dir).join(path), &tools.join(to)))
}

fn build_integration(dirs: &Dirs) -> Result<()> {
    let bin = dirs.cache.join("tools").join(CONTAINERD.to).join("bin");
    build_tests(
        dirs,
        &CONTAINERD,
        INTEGRATION,
        &bin.join("integration.test"),
    )?;
    let mut build = Command::new(go());
    build
        .args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false"])
        .args(["-tags", CONTAINERD.tags, "-o"])
        .arg(&bin)
        .args(FAILPOINTS)
        .current_dir(module(dirs, CONTAINERD.module))
        .env("CGO_ENABLED", "0");
    step::run(&dirs.log, "failpoints", &mut build)
}

/// Builds the tests of a package as a program, from the module of `tool` and with its flags. Go's
/// own cache makes this quick if nothing has changed.
fn build_tests(dirs: &Dirs, tool: &Tool, package: &str, to: &Path) -> Result<()> {
    let mut build = Command::new(go());
    build
        .args(["test", "-c", "-mod=readonly", "-trimpath"])
        .args(["-ldflags", &format!("-s -w {}", tool.ldflags)])
        .args(["-tags", tool.tags, "-o"])
        .arg(to)
        .arg(package)
        .current_dir(module(dirs, tool.module))
        .env("GOTOOLCHAIN", "auto");
    step::run(
        &dirs.log,
        package.rsplit('/').next().unwrap_or(package),
        &mut build,
    )
}

fn module(dirs: &Dirs, name: &str) -> PathBuf {
    dirs.root.join("packaging/test-tools").join(name)
}

fn build_posix(dirs: &Dirs) -> Result<()> {
    let bin = dirs.cache.join("tools/posix/bin");
    for (name, version) in POSIX {
        let built = helpers::installed(dirs, name, version, Build::Release)?;
        files::copy(&built, &bin.join(name))?;
    }
    Ok(())
}

fn build_tool(dirs: &Dirs, tool: &Tool) -> Result<()> {
    let module = module(dirs, tool.module);
    let bin = dirs.cache.join("tools").join(tool.to).join("bin");
    let stamp_path = bin.join(format!(".{}", tool.module));
    let stamp = [
        files::read_text(&module.join("go.mod"))?,
        files::read_text(&module.join("go.sum"))?,
        format!("{tool:?}"),
    ]
    .concat();
    if std::fs::read_to_string(&stamp_path).is_ok_and(|old| old == stamp) {
        return Ok(());
    }
    files::make_dir(&bin)?;
    let go = go();
    if Command::new(go).arg("version").output().is_err() {
        bail!(
            "no `go` on the PATH: {} is built with Go 1.23 or later, which `packaging/setup test` brings",
            tool.module
        );
    }
    let mut build = Command::new(go);
    build
        .args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false"])
        .args(["-ldflags", &format!("-s -w {}", tool.ldflags)])
        .args(["-tags", tool.tags, "-o"])
        .arg(tool.name.map_or(bin.clone(), |name| bin.join(name)))
        .args(tool.packages)
        .current_dir(&module)
        // A module that wants a newer Go gets it from Go's proxy, checked like any module.
        .env("GOTOOLCHAIN", "auto")
        .env("CGO_ENABLED", if tool.cgo { "1" } else { "0" });
    step::run(&dirs.log, tool.module, &mut build)?;
    files::write(&stamp_path, stamp.as_bytes(), 0o644)
}

/// Unpacks Debian 13's package, whose binaries run on Debian 12 unchanged. apt gets lists and a
/// cache of its own, so that this machine's stay those of Debian 12; it checks the signatures as
/// usual.
fn unpack_containerd_1_7(dirs: &Dirs) -> Result<()> {
    let bin = dirs.cache.join("tools/containerd-1.7/bin");
    if bin.join("containerd").exists() {
        return Ok(());
    }
    let (release, version) = DEBIAN_13;
    files::make_dir(&dirs.cache.join("tools"))?;
    let temp = tempfile::tempdir_in(dirs.cache.join("tools")).context("make a folder for apt")?;
    let temp = temp.path();
    let mirror = debian_mirror()?;
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let source = format!("deb [signed-by={keys}] {mirror} {release} main\n");
    files::write(&temp.join("sources.list"), source.as_bytes(), 0o644)?;
    files::make_dir(&temp.join("lists/partial"))?;
    files::make_dir(&temp.join("archives/partial"))?;
    // dpkg's own status would list what is installed here.
    files::write(&temp.join("status"), b"", 0o644)?;
    let apt_get = |step: &str, args: &[&str]| {
        let mut command = Command::new("apt-get");
        for (option, value) in [
            ("Dir::Etc::sourcelist", temp.join("sources.list")),
            ("Dir::Etc::sourceparts", "-".into()),
            ("Dir::State::lists", temp.join("lists")),
            ("Dir::State::status", temp.join("status")),
            ("Dir::Cache", temp.to_owned()),
            // The sandbox user can't write into the checkout.
            ("APT::Sandbox::User", "root".into()),
        ] {
            let mut setting = OsString::from(format!("{option}="));
            setting.push(value);
            command.arg("-o").arg(setting);
        }
        step::run(&dirs.log, step, command.args(args).current_dir(temp))
    };
    apt_get("apt-update-debian-13", &["update"])?;
    apt_get("containerd-1.7-download", &["download", "containerd"])?;
    let deb = std::fs::read_dir(temp)
        .context("look at the download")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
        .context("apt-get download left no .deb")?;
    let name = deb.file_name().unwrap_or_default().to_string_lossy();
    if !name.starts_with(&format!("containerd_{version}")) {
        bail!("Debian's {release} has {name}, wanted is {version}x");
    }
    let mut unpack = Command::new("dpkg");
    unpack.arg("-x").arg(&deb).arg(temp.join("package"));
    step::run(&dirs.log, "containerd-1.7", &mut unpack)?;
    for program in ["ctr", "containerd-shim-runc-v2", "containerd"] {
        files::copy(
            &temp.join("package/usr/bin").join(program),
            &bin.join(program),
        )?;
    }
    Ok(())
}

/// Returns the mirror that apt uses for Debian 12; it has every release.
fn debian_mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(SITE) $(RELEASE)"])
        .arg("Created-By: Packages")
        .stdin(Stdio::null())
        .output()
        .context("start apt-get")?;
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let site = lines.lines().find_map(|line| {
        let site = line.strip_suffix(" bookworm")?;
        (!site.contains("security")).then(|| site.to_owned())
    });
    site.context("found no Debian 12 mirror in apt's sources, for containerd 1.7")
}

fn go() -> &'static str {
    if Path::new(BACKPORT).exists() {
        BACKPORT
    } else {
        "go"
    }
}
