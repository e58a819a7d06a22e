//! Describes this runtime to containerd, which asks with `-info` (containerd, core/runtime/v2
//! `PluginInfo`). Since 2.0, containerd starts a container with id-mapped mounts only with a
//! runtime that declares support for them. It also tells the kubelet whether a handler has user
//! namespaces and recursive read-only mounts.

use containerd_shim::protos::{
    protobuf::{well_known_types::any::Any, Message, MessageField},
    types::introspection::{RuntimeInfo, RuntimeVersion},
};

/// containerd's name for the type of the features, whose value is JSON (OCI runtime spec,
/// features.md).
const TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
const FEATURES: &str = r#"{
    "ociVersionMin": "1.0.0",
    "ociVersionMax": "1.2.0",
    "mountOptions": ["bind", "rbind", "ro", "rro", "rw", "private", "rprivate", "slave", "rslave"],
    "linux": {
        "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
        "mountExtensions": { "idmap": { "enabled": true } }
    }
}"#;

/// Returns an encoded `RuntimeInfo`.
pub fn info() -> containerd_shim::protos::protobuf::Result<Vec<u8>> {
    let info = RuntimeInfo {
        name: caisson_node::config::RUNTIME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }),
        features: MessageField::some(Any {
            type_url: TYPE.to_owned(),
            value: FEATURES.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    info.write_to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_says_what_a_kubelet_wants_to_know_of_mounts() {
        let info = RuntimeInfo::parse_from_bytes(&info().unwrap()).unwrap();
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        assert_eq!(
            features["linux"]["mountExtensions"]["idmap"]["enabled"],
            true
        );
        let options = features["mountOptions"].as_array().unwrap();
        assert!(options.contains(&"rro".into()), "{options:?}");
        assert_eq!(info.name, caisson_node::config::RUNTIME);
    }
}
