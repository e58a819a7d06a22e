//! Serves the node's metrics to Prometheus by HTTPS, as the kubelet serves its own.
//!
//! `/metrics` has what `caisson metrics` prints on the node, and the agent's own [`health`].
//! [`access`] decides who may read it; [`certificate`] has what the server shows for itself.
//! `/healthz` is for everybody.

mod access;
mod certificate;
mod health;

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
    Method, Request, Response, StatusCode,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::Client;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore},
    time::timeout,
};

use self::{
    access::{Access, Verdict},
    certificate::Certificate,
};
use super::host;

pub use health::Health;

/// The time limit for the handshake of a connection, and for the head of each request.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may last in all: Prometheus keeps one open between its scrapes.
const CONNECTION: Duration = Duration::from_secs(600);
/// The most connections at once. Others wait.
const MOST: usize = 32;
/// The time limit for `caisson metrics`. Prometheus gives a scrape 10 seconds by default.
const COLLECTION: Duration = Duration::from_secs(8);
/// The pause after a connection could not be accepted, such as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What the server needs of the node and of its pod.
pub struct Place {
    /// The pod's address.
    pub address: IpAddr,
    pub port: u16,
    /// A folder with `tls.crt` and `tls.key`. Without one, the certificate is self-signed.
    pub tls: Option<PathBuf>,
    /// The process whose mount namespace is the node's.
    pub process: u32,
    /// The installed `caisson`, on the node.
    pub program: PathBuf,
}

struct Server {
    access: Access,
    certificate: Certificate,
    health: Health,
    place: Place,
    /// Held while `caisson metrics` runs, so that it runs once at a time.
    collecting: Mutex<()>,
}

/// Serves for ever.
///
/// # Errors
/// If the port is taken or the certificate can't be read.
pub async fn serve(place: Place, client: Client, health: Health) -> Result<Infallible> {
    let address = SocketAddr::new(place.address, place.port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("serve metrics at {address} (--metrics-port)"))?;
    let server = Arc::new(Server {
        access: Access::new(client),
        certificate: Certificate::new(place.tls.as_deref(), place.address)?,
        health,
        place,
        collecting: Mutex::default(),
    });
    println!("metrics are at https://{address}/metrics");
    let connections = Arc::new(Semaphore::new(MOST));
    loop {
        let permit = connections.clone().acquire_owned().await?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("accept a connection for metrics: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let server = server.clone();
        tokio::spawn(async move {
            // A client that leaves early or speaks no TLS is no event.
            let _ = timeout(CONNECTION, server.connected(stream)).await;
            drop(permit);
        });
    }
}

impl Server {
    async fn connected(self: Arc<Self>, stream: TcpStream) -> Result<()> {
        let acceptor = self.certificate.acceptor()?;
        let stream = timeout(HEAD, acceptor.accept(stream)).await??;
        let service = service_fn(|request| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .serve_connection(TokioIo::new(stream), service)
            .await?;
        Ok(())
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is possible");
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok"),
            access::PATH => {
                let answer = self.metrics(&request).await;
                self.health.answered(answer.status().as_u16());
                answer
            }
            _ => text(StatusCode::NOT_FOUND, "there are /metrics and /healthz"),
        }
    }

    async fn metrics(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let header = request.headers().get(header::AUTHORIZATION);
        let token = header.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let verdict = match token {
            Some(token) => self.access.check(token).await,
            None => Ok(Verdict::Unknown),
        };
        match verdict {
            Ok(Verdict::Allowed) => {
                let mut answer = text(StatusCode::OK, &self.collect().await);
                let format = HeaderValue::from_static(prometheus::TEXT_FORMAT);
                answer.headers_mut().insert(header::CONTENT_TYPE, format);
                answer
            }
            Ok(Verdict::Unknown) => {
                let mut answer = text(
                    StatusCode::UNAUTHORIZED,
                    "a bearer token of this cluster is needed",
                );
                let scheme = HeaderValue::from_static("Bearer");
                answer
                    .headers_mut()
                    .insert(header::WWW_AUTHENTICATE, scheme);
                answer
            }
            Ok(Verdict::Denied(user)) => text(
                StatusCode::FORBIDDEN,
                &format!(
                    "{user} may not get {}: bind it to a ClusterRole with this nonResourceURL",
                    access::PATH
                ),
            ),
            Err(error) => {
                eprintln!("who asks for metrics: {error:#}");
                text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the API server does not say who may get this; the agent's log says why",
                )
            }
        }
    }

    /// Returns the metrics of the node, as far as they can be had now, and the agent's own.
    async fn collect(&self) -> String {
        let began = Instant::now();
        let collected = timeout(COLLECTION, async {
            let _one = self.collecting.lock().await;
            let Place {
                process, program, ..
            } = &self.place;
            host::ask(*process, program, &["metrics".into()]).await
        });
        let node = match collected.await {
            Ok(Ok(text)) => Some(text),
            Ok(Err(error)) => {
                eprintln!("caisson metrics: {error:#}");
                None
            }
            Err(_) => {
                eprintln!("caisson metrics: not within {COLLECTION:?}");
                None
            }
        };
        self.health.collected(node.is_some(), began.elapsed());
        let mut text = node.unwrap_or_default();
        if !text.is_empty() {
            text.push('\n');
        }
        text + &self.health.text()
    }
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}
