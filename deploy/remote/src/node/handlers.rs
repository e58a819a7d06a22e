//! Asks containerd which runtime handlers it has.

use std::{collections::HashMap, path::Path, time::Duration};

use anyhow::{Context, Result};
use containerd_client::tonic::{self, client::Grpc, transport::Channel};

/// The limit for the call.
const LIMIT: Duration = Duration::from_secs(10);

/// The part of Kubernetes' CRI, runtime.v1 in api.proto, that is asked for.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {
    #[prost(bool, tag = "1")]
    verbose: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

/// Prints the names of the runtime handlers, a JSON array of strings.
pub async fn run(socket: &Path) -> Result<()> {
    let asked = tokio::time::timeout(LIMIT, handlers(socket)).await;
    let handlers = asked
        .with_context(|| format!("containerd's CRI plugin does not answer within {LIMIT:?}"))??;
    println!("{}", serde_json::to_string(&handlers)?);
    Ok(())
}

/// Reads the runtime handlers from what containerd's CRI plugin says of its configuration
/// (internal/cri/server/status.go).
async fn handlers(socket: &Path) -> Result<Vec<String>> {
    let channel: Channel = containerd_client::connect(socket)
        .await
        .context("connect containerd")?;
    let mut client = Grpc::new(channel);
    client.ready().await.context("connect containerd")?;
    let path =
        tonic::codegen::http::uri::PathAndQuery::from_static("/runtime.v1.RuntimeService/Status");
    let request = tonic::Request::new(StatusRequest { verbose: true });
    let codec = tonic_prost::ProstCodec::<StatusRequest, StatusResponse>::default();
    let response = client.unary(request, path, codec).await;
    let response = response.map_err(|status| anyhow::anyhow!("{}", status.message()));
    let response = response.context(
        "containerd's CRI plugin, without which Kubernetes can't use it, does not answer",
    )?;
    let info = response.into_inner().info;
    let config = info.get("config").context("CRI's status has no config")?;
    let config: serde_json::Value = serde_json::from_str(config).context("CRI's status")?;
    let runtimes = config["containerd"]["runtimes"].as_object();
    Ok(runtimes
        .into_iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .collect())
}
