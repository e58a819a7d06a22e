//! The certificate of the server of metrics: the one in a folder, as a Secret is mounted, or one
//! that the agent signs for itself, as a kubelet does by default.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use anyhow::{Context, Result};
use tokio_rustls::{
    rustls::{
        pki_types::{pem::PemObject, CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
        ServerConfig,
    },
    TlsAcceptor,
};

/// The names of a Secret of the type kubernetes.io/tls.
const FILES: [&str; 2] = ["tls.crt", "tls.key"];

/// The server's certificate. Follows the files where it is from a folder.
pub struct Certificate {
    folder: Option<PathBuf>,
    current: Mutex<Current>,
}

struct Current {
    /// When the file of the certificate was last changed.
    changed: Option<SystemTime>,
    acceptor: TlsAcceptor,
}

impl Certificate {
    /// Reads the certificate in a folder, or makes one for an address.
    pub fn new(folder: Option<&Path>, address: IpAddr) -> Result<Self> {
        let current = match folder {
            Some(folder) => read(folder)?,
            None => Current {
                changed: None,
                acceptor: self_signed(address)?,
            },
        };
        Ok(Self {
            folder: folder.map(Path::to_owned),
            current: Mutex::new(current),
        })
    }

    /// Returns what the next connection is accepted with.
    pub fn acceptor(&self) -> Result<TlsAcceptor> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = &self.folder {
            if changed(folder) != current.changed {
                match read(folder) {
                    Ok(new) => *current = new,
                    // The old one serves until the files fit together again.
                    Err(error) => eprintln!("the certificate for metrics: {error:#}"),
                }
            }
        }
        Ok(current.acceptor.clone())
    }
}

fn read(folder: &Path) -> Result<Current> {
    let changed = changed(folder);
    let [certificate, key] = FILES.map(|name| folder.join(name));
    let of = |path: &Path| format!("read {}", path.display());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&certificate)
        .with_context(|| of(&certificate))?
        .collect();
    let chain = chain.with_context(|| of(&certificate))?;
    let key = PrivateKeyDer::from_pem_file(&key).with_context(|| of(&key))?;
    Ok(Current {
        changed,
        acceptor: acceptor(chain, key)?,
    })
}

fn changed(folder: &Path) -> Option<SystemTime> {
    let file = fs::metadata(folder.join(FILES[0]));
    file.and_then(|file| file.modified()).ok()
}

fn self_signed(address: IpAddr) -> Result<TlsAcceptor> {
    let made = rcgen::generate_simple_self_signed([address.to_string()]);
    let made = made.context("make a certificate for metrics")?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    acceptor(vec![made.cert.der().clone()], key.into())
}

fn acceptor(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<TlsAcceptor> {
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("the certificate for metrics does not fit its key")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn install_provider() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }

    /// Writes a certificate and its key, changed so many seconds after 1970.
    fn write(folder: &Path, seconds: u64) {
        let made = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let key = made.signing_key.serialize_pem();
        fs::write(folder.join(FILES[1]), key).unwrap();
        write_certificate(folder, &made.cert.pem(), seconds);
    }

    fn write_certificate(folder: &Path, text: &str, seconds: u64) {
        let path = folder.join(FILES[0]);
        fs::write(&path, text).unwrap();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(at).unwrap();
    }

    #[test]
    fn certificate_that_was_renewed_is_taken_and_one_that_cannot_be_read_is_not() {
        install_provider();
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 1);
        let address = "127.0.0.1".parse().unwrap();
        let certificate = Certificate::new(Some(dir.path()), address).unwrap();
        let seen = || certificate.current.lock().unwrap().changed;
        let first = seen();
        write_certificate(dir.path(), "nonsense", 2);
        certificate.acceptor().unwrap();
        assert_eq!(seen(), first);
        write(dir.path(), 3);
        certificate.acceptor().unwrap();
        assert_ne!(seen(), first);
    }

    #[test]
    fn folder_without_a_certificate_is_named() {
        install_provider();
        let address = "127.0.0.1".parse().unwrap();
        let made = Certificate::new(Some(Path::new("/nowhere")), address);
        let error = made.err().unwrap().to_string();
        assert!(error.contains("/nowhere/tls.crt"), "{error}");
    }

    #[test]
    fn certificate_is_made_for_an_address_where_there_is_no_folder() {
        install_provider();
        Certificate::new(None, "10.0.0.7".parse().unwrap()).unwrap();
        Certificate::new(None, "fd00::7".parse().unwrap()).unwrap();
    }
}
