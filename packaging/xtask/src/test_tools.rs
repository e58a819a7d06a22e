//! `cargo xtask test-tools`: builds what the tests and the bench compare with and Debian 12 does
//! not have. It comes from the Go modules under `packaging/test-tools`, whose go.mod and go.sum are
//! the pins; containerd 1.7 comes from Debian 13. `cargo xtask cluster-tools` builds Kubernetes in
//! the same way. None of this is shipped or installed.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{bail, Context, Result};

use crate::{
    apt::{Kind, Release},
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

/// gVisor's shim, what it would not start with here, and what it is built with instead: it gives
/// itself an oom score that takes CAP_SYS_RESOURCE, which tests may run without.
const GVISOR_SHIM: &str = "gvisor.dev/gvisor/shim";
const GVISOR_SHIM_EDIT: (&str, &str, &str) = (
    "vendor/gvisor.dev/gvisor/pkg/shim/v1/manager.go",
    "oomScoreMax = -999",
    "oomScoreMax = 0",
);

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

/// Checks a dashboard against Grafana's schema.
const GRAFANA_DASHBOARD: Tool = Tool {
    module: "grafana-dashboard",
    to: "chart",
    packages: &["."],
    tags: "",
    cgo: false,
    name: Some("grafana-dashboard"),
    ldflags: "",
};

/// The controller of agent-sandbox.
const AGENT_SANDBOX: Tool = Tool {
    module: "agent-sandbox",
    to: "agent-sandbox",
    packages: &["sigs.k8s.io/agent-sandbox/cmd/agent-sandbox-controller"],
    tags: "",
    cgo: false,
    name: None,
    ldflags: "",
};

/// Enforces NetworkPolicies.
const KUBE_ROUTER: Tool = Tool {
    module: "kube-router",
    to: "kube-router",
    packages: &["github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"],
    tags: "",
    cgo: false,
    name: None,
    ldflags: "",
};

/// The command of CRI, as an administrator of a node has it.
const CRICTL: Tool = Tool {
    module: "cri-tools",
    to: "cri-tools",
    packages: &["sigs.k8s.io/cri-tools/cmd/crictl"],
    tags: "",
    cgo: false,
    name: None,
    ldflags: "",
};

/// The tests of CRI by the same project.
const CRITEST: &str = "sigs.k8s.io/cri-tools/cmd/critest";

/// Runs containers as Docker's command does, and brings their network by hooks.
const NERDCTL: Tool = Tool {
    module: "nerdctl",
    to: "nerdctl",
    packages: &["github.com/containerd/nerdctl/v2/cmd/nerdctl"],
    tags: "",
    cgo: false,
    name: None,
    ldflags: "",
};

/// Kubernetes' own end-to-end tests, the program that runs several of them at once, and a program
/// of their images.
const E2E: &str = "k8s.io/kubernetes/test/e2e";
const E2E_PROGRAMS: Tool = Tool {
    module: "kubernetes",
    to: "conformance",
    packages: &[
        "github.com/onsi/ginkgo/v2/ginkgo",
        "k8s.io/kubernetes/test/images/agnhost",
    ],
    tags: "",
    cgo: false,
    name: None,
    ldflags: KUBERNETES_VERSION,
};

/// The program of another of their images, which critest has too.
const NONEWPRIVS: Tool = Tool {
    module: "kubernetes",
    to: "conformance",
    packages: &["k8s.io/kubernetes/test/images/nonewprivs"],
    tags: "",
    cgo: false,
    name: Some("nonewprivs"),
    ldflags: "",
};

/// Files of a module, and where they go below `target/cache/tools`.
struct Files {
    /// The folder of `packaging/test-tools` whose go.sum has the module.
    pinned_by: &'static str,
    module: &'static str,
    files: &'static [(&'static str, &'static str)],
}

/// The description of Kubernetes' API.
const API: Files = Files {
    pinned_by: "kubernetes",
    module: "k8s.io/kubernetes",
    files: &[("api/openapi-spec/swagger.json", "kubernetes/swagger.json")],
};

/// The descriptions of the Prometheus Operator's objects.
const OPERATOR: Files = Files {
    pinned_by: "prometheus-operator",
    module: "github.com/prometheus-operator/prometheus-operator",
    files: &[
        (
            "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
            "chart/servicemonitors.yaml",
        ),
        (
            "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
            "chart/prometheusrules.yaml",
        ),
    ],
};

/// How that controller is installed.
const AGENT_SANDBOX_MANIFESTS: Files = Files {
    pinned_by: "agent-sandbox",
    module: "sigs.k8s.io/agent-sandbox",
    files: &[
        (
            "k8s/crds/agents.x-k8s.io_sandboxes.yaml",
            "agent-sandbox/k8s/crds/agents.x-k8s.io_sandboxes.yaml",
        ),
        (
            "k8s/crds/extensions.agents.x-k8s.io_sandboxclaims.yaml",
            "agent-sandbox/k8s/crds/extensions.agents.x-k8s.io_sandboxclaims.yaml",
        ),
        (
            "k8s/crds/extensions.agents.x-k8s.io_sandboxtemplates.yaml",
            "agent-sandbox/k8s/crds/extensions.agents.x-k8s.io_sandboxtemplates.yaml",
        ),
        (
            "k8s/crds/extensions.agents.x-k8s.io_sandboxwarmpools.yaml",
            "agent-sandbox/k8s/crds/extensions.agents.x-k8s.io_sandboxwarmpools.yaml",
        ),
        ("k8s/controller.yaml", "agent-sandbox/k8s/controller.yaml"),
        (
            "k8s/extensions-rbac.generated.yaml",
            "agent-sandbox/k8s/extensions-rbac.generated.yaml",
        ),
        (
            "k8s/extensions.controller.yaml",
            "agent-sandbox/k8s/extensions.controller.yaml",
        ),
        ("k8s/extensions.yaml", "agent-sandbox/k8s/extensions.yaml"),
        (
            "k8s/rbac.generated.yaml",
            "agent-sandbox/k8s/rbac.generated.yaml",
        ),
    ],
};

/// What the image of the end-to-end tests has beside its program.
const CERTIFICATE: Files = Files {
    pinned_by: "kubernetes",
    module: "k8s.io/kubernetes",
    files: &[
        (
            "test/images/agnhost/porter/localhost.crt",
            "conformance/bin/localhost.crt",
        ),
        (
            "test/images/agnhost/porter/localhost.key",
            "conformance/bin/localhost.key",
        ),
    ],
};

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
    /// For `cargo xtask run cri-integration` and `cargo xtask run critest`.
    Integration,
    /// For `cri_posix`.
    Posix,
    /// For `chart`, and nothing beside it.
    Chart,
    /// For `node_vm`.
    Crictl,
    /// For `nerdctl`.
    Nerdctl,
}

/// Builds containerd 2.1, runc and the `further` tools; unpacks containerd 1.7.
pub fn build(dirs: &Dirs, further: Further) -> Result<()> {
    if further == Further::Chart {
        build_tool(dirs, &HELM)?;
        build_tool(dirs, &GRAFANA_DASHBOARD)?;
        copy_from_module(dirs, &OPERATOR)?;
        return copy_from_module(dirs, &API);
    }
    build_tool(dirs, &CONTAINERD)?;
    build_tool(dirs, &RUNC)?;
    unpack_containerd_1_7(dirs)?;
    match further {
        Further::Nothing | Further::Chart => Ok(()),
        Further::Gvisor => build_gvisor(dirs),
        Further::Integration => {
            build_integration(dirs)?;
            build_critest(dirs)
        }
        Further::Posix => build_posix(dirs),
        Further::Crictl => build_tool(dirs, &CRICTL),
        Further::Nerdctl => build_tool(dirs, &NERDCTL),
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

/// Builds what a cluster consists of, and what the tests add to it.
pub fn build_add_ons(dirs: &Dirs) -> Result<()> {
    build_cluster(dirs)?;
    build_tool(dirs, &KUBE_ROUTER)?;
    build_tool(dirs, &AGENT_SANDBOX)?;
    copy_from_module(dirs, &AGENT_SANDBOX_MANIFESTS)
}

/// Builds what a cluster consists of and what `cargo xtask run conformance` runs on it.
pub fn build_conformance(dirs: &Dirs) -> Result<()> {
    build_cluster(dirs)?;
    build_tool(dirs, &E2E_PROGRAMS)?;
    build_tool(dirs, &NONEWPRIVS)?;
    copy_from_module(dirs, &CERTIFICATE)?;
    build_tests(
        dirs,
        &E2E_PROGRAMS,
        E2E,
        &bin(dirs, &E2E_PROGRAMS).join("e2e.test"),
    )
}

/// Copies files from a module, which Go checks against the sums of the module that pins it.
fn copy_from_module(dirs: &Dirs, wanted: &Files) -> Result<()> {
    let Files {
        pinned_by,
        module: name,
        files,
    } = wanted;
    let tools = dirs.cache.join("tools");
    if files.iter().all(|(_, to)| tools.join(to).exists()) {
        return Ok(());
    }
    let mut download = Command::new(go());
    download
        .args(["mod", "download", "-json", name])
        .current_dir(module(dirs, pinned_by))
        .env("GOTOOLCHAIN", "auto");
    eprintln!("  {pinned_by}: getting the module {name} ...");
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
    let bin = bin(dirs, &CONTAINERD);
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

/// Builds critest, and the one program of its images that busybox can't stand in for.
fn build_critest(dirs: &Dirs) -> Result<()> {
    build_tool(dirs, &NONEWPRIVS)?;
    let bin = bin(dirs, &CRICTL);
    files::make_dir(&bin)?;
    build_tests(dirs, &CRICTL, CRITEST, &bin.join("critest"))
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

fn build_gvisor(dirs: &Dirs) -> Result<()> {
    build_tool(dirs, &GVISOR)?;
    let shim = bin(dirs, &GVISOR).join("containerd-shim-runsc-v1");
    let stamp = format!("{}{GVISOR_SHIM_EDIT:?}", pins(dirs, &GVISOR)?);
    once(&bin(dirs, &GVISOR).join(".gvisor-shim"), &stamp, || {
        build_gvisor_shim(dirs, &shim)
    })
}

fn build_gvisor_shim(dirs: &Dirs, shim: &Path) -> Result<()> {
    // Go builds no edited file of its cache of modules, so the module gets a copy of them.
    let copy = tempfile::tempdir_in(dirs.cache.join("tools"))
        .context("make a folder for gVisor's module")?;
    for file in ["go.mod", "go.sum", "tools.go"] {
        let from = module(dirs, GVISOR.module).join(file);
        files::copy(&from, &copy.path().join(file))?;
    }
    let mut vendor = Command::new(go());
    vendor
        .args(["mod", "vendor"])
        .current_dir(copy.path())
        .env("GOTOOLCHAIN", "auto");
    step::run(&dirs.log, "gvisor-vendor", &mut vendor)?;
    let (file, from, to) = GVISOR_SHIM_EDIT;
    let file = copy.path().join(file);
    let source = files::read_text(&file)?;
    if !source.contains(from) {
        bail!("{} does not contain `{from}`", file.display());
    }
    files::write(&file, source.replace(from, to).as_bytes(), 0o644)?;
    let mut build = Command::new(go());
    build
        .args(["build", "-mod=vendor", "-trimpath", "-buildvcs=false"])
        .args(["-ldflags", "-s -w", "-o"])
        .arg(shim)
        .arg(GVISOR_SHIM)
        .current_dir(copy.path())
        .env("GOTOOLCHAIN", "auto")
        .env("CGO_ENABLED", "0");
    step::run(&dirs.log, "gvisor-shim", &mut build)
}

fn build_tool(dirs: &Dirs, tool: &Tool) -> Result<()> {
    let stamp = format!("{}{tool:?}", pins(dirs, tool)?);
    let stamp_name = tool.name.unwrap_or(tool.module);
    let stamp_path = bin(dirs, tool).join(format!(".{stamp_name}"));
    once(&stamp_path, &stamp, || compile(dirs, tool))
}

/// Builds what is not there, or was built from something else than `stamp` says.
fn once(stamp_path: &Path, stamp: &str, build: impl FnOnce() -> Result<()>) -> Result<()> {
    if std::fs::read_to_string(stamp_path).is_ok_and(|old| old == stamp) {
        return Ok(());
    }
    build()?;
    files::write(stamp_path, stamp.as_bytes(), 0o644)
}

fn bin(dirs: &Dirs, tool: &Tool) -> PathBuf {
    dirs.cache.join("tools").join(tool.to).join("bin")
}

/// Returns the texts of go.mod and go.sum, and of the module's own program if it has one.
fn pins(dirs: &Dirs, tool: &Tool) -> Result<String> {
    let module = module(dirs, tool.module);
    let texts = ["go.mod", "go.sum"].map(|file| files::read_text(&module.join(file)));
    let mut texts: String = texts.into_iter().collect::<Result<_>>()?;
    texts += &std::fs::read_to_string(module.join("main.go")).unwrap_or_default();
    Ok(texts)
}

fn compile(dirs: &Dirs, tool: &Tool) -> Result<()> {
    let bin = bin(dirs, tool);
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
        .current_dir(module(dirs, tool.module))
        // A module that wants a newer Go gets it from Go's proxy, checked like any module.
        .env("GOTOOLCHAIN", "auto")
        .env("CGO_ENABLED", if tool.cgo { "1" } else { "0" });
    step::run(&dirs.log, tool.module, &mut build)
}

/// Unpacks Debian 13's package, whose binaries run on Debian 12 unchanged.
fn unpack_containerd_1_7(dirs: &Dirs) -> Result<()> {
    let bin = dirs.cache.join("tools/containerd-1.7/bin");
    if bin.join("containerd").exists() {
        return Ok(());
    }
    let (name, wanted) = DEBIAN_13;
    files::make_dir(&dirs.cache.join("tools"))?;
    let temp = tempfile::tempdir_in(dirs.cache.join("tools")).context("make a folder for apt")?;
    let release = Release::open(&dirs.log, name, temp.path())?;
    let version = release.newest("containerd", Kind::Binary)?;
    if !version.starts_with(wanted) {
        bail!("Debian's {name} has containerd {version}, wanted is {wanted}x");
    }
    let deb = release.download("containerd", &version, Kind::Binary)?;
    let package = temp.path().join("package");
    let mut unpack = Command::new("dpkg");
    unpack.arg("-x").arg(&deb).arg(&package);
    step::run(&dirs.log, "containerd-1.7", &mut unpack)?;
    for program in ["ctr", "containerd-shim-runc-v2", "containerd"] {
        files::copy(&package.join("usr/bin").join(program), &bin.join(program))?;
    }
    Ok(())
}

fn go() -> &'static str {
    if Path::new(BACKPORT).exists() {
        BACKPORT
    } else {
        "go"
    }
}
