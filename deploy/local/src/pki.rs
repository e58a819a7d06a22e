//! Makes the cluster's certificates and the kubeconfigs that carry them. RBAC's bootstrap roles
//! identify each component by the names in its certificate (kubernetes.io, "PKI certificates and
//! requirements").

use std::{fs, net::IpAddr, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use crate::{layout::Layout, network};

/// The node's name in the cluster.
pub const NODE: &str = "local";
/// Port of the API server.
pub const API_PORT: u16 = 6443;

/// Writes everything below `pki/` and the kubeconfigs; `node` is the node's address.
pub fn write(layout: &Layout, node: &str) -> Result<()> {
    let dir = layout.path("pki");
    fs::create_dir_all(&dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
    let ca = Authority::new(&dir, "ca")?;
    // An authority of its own: whoever may speak to the API server must not be able to speak to its
    // store.
    let etcd = Authority::new(&dir, "etcd-ca")?;
    etcd.issue(&dir, "etcd", Subject::new("etcd").at("127.0.0.1"))?;
    etcd.issue(&dir, "etcd-client", Subject::new("kube-apiserver"))?;
    // Signs the certificate with which the API server, in its users' names, asks the servers behind
    // it, such as the metrics server.
    let front = Authority::new(&dir, "front-proxy-ca")?;
    front.issue(
        &dir,
        "front-proxy-client",
        Subject::new("front-proxy-client"),
    )?;
    let api = Subject::new("kube-apiserver")
        .at("kubernetes")
        .at("kubernetes.default")
        .at("kubernetes.default.svc")
        .at("kubernetes.default.svc.cluster.local")
        .at("localhost")
        .at("127.0.0.1")
        .at(network::API_SERVICE)
        .at(node);
    ca.issue(&dir, "apiserver", api)?;
    ca.issue(
        &dir,
        "apiserver-kubelet",
        Subject::new("kube-apiserver-kubelet-client"),
    )?;
    ca.issue(&dir, "kubelet-server", Subject::new(NODE).at(NODE).at(node))?;
    // This key signs the tokens of ServiceAccounts.
    let tokens = KeyPair::generate()?;
    write_key(&dir.join("service-accounts.key"), &tokens)?;
    fs::write(dir.join("service-accounts.pub"), tokens.public_key_pem())?;

    let server = format!("https://{node}:{API_PORT}");
    for (file, subject) in [
        ("kubeconfig", Subject::new("admin").of("system:masters")),
        (
            "controller-manager.conf",
            Subject::new("system:kube-controller-manager"),
        ),
        ("scheduler.conf", Subject::new("system:kube-scheduler")),
        ("proxy.conf", Subject::new("system:kube-proxy")),
        (
            "kubelet.conf",
            Subject::new(&format!("system:node:{NODE}")).of("system:nodes"),
        ),
    ] {
        let name = file.replace(".conf", "-client");
        ca.issue(&dir, &name, subject)?;
        let pem = |file: String| layout.text(&format!("pki/{file}"));
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": layout.mark(), "cluster": {
                "server": server, "certificate-authority": pem("ca.crt".into()),
            } }],
            "users": [{ "name": name, "user": {
                "client-certificate": pem(format!("{name}.crt")), "client-key": pem(format!("{name}.key")),
            } }],
            "contexts": [{ "name": layout.mark(), "context": { "cluster": layout.mark(), "user": name } }],
            "current-context": layout.mark(),
        });
        write_private(&layout.path(file), &format!("{config:#}\n"))?;
    }
    Ok(())
}

/// What a certificate names, and where it may serve.
struct Subject {
    name: String,
    group: Option<String>,
    addresses: Vec<String>,
}

impl Subject {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            group: None,
            addresses: Vec::new(),
        }
    }

    fn of(mut self, group: &str) -> Self {
        self.group = Some(group.to_owned());
        self
    }

    fn at(mut self, address: &str) -> Self {
        self.addresses.push(address.to_owned());
        self
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(dir: &Path, name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let certificate = params
            .self_signed(&key)
            .with_context(|| format!("sign {name}"))?;
        fs::write(dir.join(format!("{name}.crt")), certificate.pem())?;
        // The controller manager signs requests with it.
        write_key(&dir.join(format!("{name}.key")), &key)?;
        Ok(Self {
            issuer: Issuer::new(params, key),
        })
    }

    /// Writes `name.crt` and `name.key`.
    fn issue(&self, dir: &Path, name: &str, subject: Subject) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished(&subject.name, subject.group.as_deref());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        for address in &subject.addresses {
            params
                .subject_alt_names
                .push(match address.parse::<IpAddr>() {
                    Ok(ip) => SanType::IpAddress(ip),
                    Err(_) => SanType::DnsName(address.as_str().try_into()?),
                });
        }
        let certificate = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("sign {name}"))?;
        fs::write(dir.join(format!("{name}.crt")), certificate.pem())?;
        write_key(&dir.join(format!("{name}.key")), &key)
    }
}

fn distinguished(name: &str, group: Option<&str>) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    if let Some(group) = group {
        distinguished.push(DnType::OrganizationName, group);
    }
    distinguished
}

fn write_key(path: &Path, key: &KeyPair) -> Result<()> {
    write_private(path, &key.serialize_pem())
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| path.display().to_string())
}
