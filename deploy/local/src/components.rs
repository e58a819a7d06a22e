//! Writes the configuration files and command lines of a cluster's programs. Sizes are those of one
//! small machine.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    layout::Layout,
    network::{DNS_SERVICE, POD_SUBNET, SERVICE_SUBNET},
    pki::{API_PORT, NODE},
    programs::Programs,
};

/// The image of a pod's sandbox.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10";
/// The variable that every process of a cluster has in its environment, set to the cluster's
/// folder. The processes are found by it.
pub const MARK: &str = "CAISSON_CLUSTER";

/// What the supervisor keeps running.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The network namespace's file.
    pub namespace: std::path::PathBuf,
    /// The folder for the output of each program, `<name>.log`.
    pub logs: std::path::PathBuf,
    pub components: Vec<Component>,
}

/// One program.
#[derive(Debug, Serialize, Deserialize)]
pub struct Component {
    pub name: String,
    pub command: Vec<String>,
    pub env: BTreeMap<String, String>,
}

/// Writes the components' configuration files and returns what is to be run. `node` is the node's
/// address.
pub fn write(layout: &Layout, programs: &Programs, node: &str) -> Result<Plan> {
    for dir in [
        "log",
        "log/pods",
        "etcd",
        "kubelet",
        "run",
        "root",
        "caisson",
        "state",
        "store/skills",
        "store/homes",
        "volumes",
    ] {
        fs::create_dir_all(layout.path(dir)).with_context(|| layout.text(dir))?;
    }
    fs::write(layout.path("resolv.conf"), "")?;
    write_json(&layout.path("kubelet.json"), &kubelet(layout, node))?;
    write_json(&layout.path("proxy.json"), &proxy(layout))?;
    let at = |below: &str| layout.text(below);
    let pki = |file: &str| layout.text(&format!("pki/{file}"));
    let kubernetes = |name: &str, args: Vec<String>| component(layout, programs, name, args);
    let components = vec![
        kubernetes(
            "etcd",
            vec![
                flag("data-dir", at("etcd")),
                flag("listen-client-urls", "https://127.0.0.1:2379"),
                flag("advertise-client-urls", "https://127.0.0.1:2379"),
                flag("listen-peer-urls", "http://127.0.0.1:2380"),
                flag("client-cert-auth", "true"),
                flag("trusted-ca-file", pki("etcd-ca.crt")),
                flag("cert-file", pki("etcd.crt")),
                flag("key-file", pki("etcd.key")),
                // Nothing in this cluster is worth waiting for the disk.
                flag("unsafe-no-fsync", "true"),
                flag("log-level", "warn"),
            ],
        ),
        kubernetes(
            "kube-apiserver",
            vec![
                flag("advertise-address", node),
                flag("secure-port", API_PORT.to_string()),
                flag("etcd-servers", "https://127.0.0.1:2379"),
                flag("etcd-cafile", pki("etcd-ca.crt")),
                flag("etcd-certfile", pki("etcd-client.crt")),
                flag("etcd-keyfile", pki("etcd-client.key")),
                flag("client-ca-file", pki("ca.crt")),
                flag("tls-cert-file", pki("apiserver.crt")),
                flag("tls-private-key-file", pki("apiserver.key")),
                flag("kubelet-client-certificate", pki("apiserver-kubelet.crt")),
                flag("kubelet-client-key", pki("apiserver-kubelet.key")),
                flag("kubelet-certificate-authority", pki("ca.crt")),
                flag("kubelet-preferred-address-types", "InternalIP"),
                flag("authorization-mode", "Node,RBAC"),
                flag("enable-admission-plugins", "NodeRestriction"),
                // For MutatingAdmissionPolicy, which is alpha in 1.33.
                flag("feature-gates", "MutatingAdmissionPolicy=true"),
                flag(
                    "runtime-config",
                    "admissionregistration.k8s.io/v1alpha1=true",
                ),
                flag("allow-privileged", "true"),
                flag("service-cluster-ip-range", SERVICE_SUBNET),
                flag(
                    "service-account-issuer",
                    "https://kubernetes.default.svc.cluster.local",
                ),
                flag(
                    "service-account-signing-key-file",
                    pki("service-accounts.key"),
                ),
                flag("service-account-key-file", pki("service-accounts.pub")),
                // The metrics server learns from these for whom the API server asks it.
                flag("proxy-client-cert-file", pki("front-proxy-client.crt")),
                flag("proxy-client-key-file", pki("front-proxy-client.key")),
                flag("requestheader-client-ca-file", pki("front-proxy-ca.crt")),
                flag("requestheader-allowed-names", "front-proxy-client"),
                flag("requestheader-username-headers", "X-Remote-User"),
                flag("requestheader-group-headers", "X-Remote-Group"),
                flag("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
                flag("profiling", "false"),
            ],
        ),
        kubernetes(
            "kube-controller-manager",
            vec![
                flag("kubeconfig", at("controller-manager.conf")),
                flag("use-service-account-credentials", "true"),
                flag(
                    "service-account-private-key-file",
                    pki("service-accounts.key"),
                ),
                flag("root-ca-file", pki("ca.crt")),
                flag("cluster-signing-cert-file", pki("ca.crt")),
                flag("cluster-signing-key-file", pki("ca.key")),
                flag("cluster-cidr", POD_SUBNET),
                // Volumes for PersistentVolumeClaims, made on the node.
                flag("enable-hostpath-provisioner", "true"),
                flag("flex-volume-plugin-dir", at("volume-plugins")),
                flag("bind-address", "127.0.0.1"),
                flag("leader-elect", "false"),
            ],
        ),
        kubernetes(
            "kube-scheduler",
            vec![
                flag("kubeconfig", at("scheduler.conf")),
                flag("bind-address", "127.0.0.1"),
                flag("leader-elect", "false"),
            ],
        ),
        containerd(layout, programs),
        kubernetes(
            "kubelet",
            vec![
                flag("config", at("kubelet.json")),
                flag("kubeconfig", at("kubelet.conf")),
                flag("root-dir", at("kubelet")),
                flag("cert-dir", at("kubelet/pki")),
                flag("hostname-override", NODE),
                flag("node-ip", node),
            ],
        ),
        kubernetes("kube-proxy", vec![flag("config", at("proxy.json"))]),
    ];
    Ok(Plan {
        namespace: layout.network_namespace(),
        logs: layout.path("log"),
        components,
    })
}

fn component(layout: &Layout, programs: &Programs, name: &str, args: Vec<String>) -> Component {
    let mut command = vec![programs.kubernetes(name).display().to_string()];
    command.extend(args);
    Component {
        name: name.to_owned(),
        command,
        env: environment(layout, programs),
    }
}

fn containerd(layout: &Layout, programs: &Programs) -> Component {
    let mut env = environment(layout, programs);
    env.insert(
        "CAISSON_CONFIG".into(),
        layout.caisson_config().display().to_string(),
    );
    Component {
        name: "containerd".into(),
        command: vec![
            programs.containerd("containerd").display().to_string(),
            flag("config", layout.containerd_config().display().to_string()),
        ],
        env,
    }
}

fn environment(layout: &Layout, programs: &Programs) -> BTreeMap<String, String> {
    [
        (MARK.to_owned(), layout.dir().display().to_string()),
        ("PATH".to_owned(), programs.path()),
    ]
    .into()
}

fn flag(name: &str, value: impl AsRef<str>) -> String {
    format!("--{name}={}", value.as_ref())
}

/// KubeletConfiguration, kubelet.config.k8s.io/v1beta1.
fn kubelet(layout: &Layout, node: &str) -> serde_json::Value {
    let at = |below: &str| layout.text(below);
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node,
        "containerRuntimeEndpoint": format!("unix://{}", layout.containerd_socket().display()),
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": at("pki/ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": at("pki/kubelet-server.crt"),
        "tlsPrivateKeyFile": at("pki/kubelet-server.key"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", layout.mark()),
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "resolvConf": at("resolv.conf"),
        "failSwapOn": false,
        // Without CAP_SYS_RESOURCE the score can't be lowered, and the kubelet would not start.
        "oomScoreAdj": 0,
        "podLogsDir": at("log/pods"),
        "volumePluginDir": at("volume-plugins"),
        // The disk is the developer's: neither pods nor images are removed because it is nearly
        // full.
        "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%" },
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "5s",
        "syncFrequency": "10s",
        "registerNode": true,
    })
}

/// KubeProxyConfiguration, kubeproxy.config.k8s.io/v1alpha1.
fn proxy(layout: &Layout) -> serde_json::Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": layout.text("proxy.conf") },
        "mode": "iptables",
        "clusterCIDR": POD_SUBNET,
        "hostnameOverride": NODE,
        "bindAddress": "0.0.0.0",
        "healthzBindAddress": "127.0.0.1:10256",
        // Leave the machine's own limits as they are.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
        "iptables": { "minSyncPeriod": "0s", "syncPeriod": "30s" },
    })
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    fs::write(path, format!("{value:#}\n")).with_context(|| path.display().to_string())
}
