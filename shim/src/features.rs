//! What `-info` tells containerd of this runtime (containerd, core/runtime/v2 `PluginInfo`): since 2.0 it starts no container with
//! id-mapped mounts by a runtime that does not say that it knows them.

use containerd_shim::protos::{
    protobuf::{well_known_types::any::Any, Message, MessageField},
    types::introspection::{RuntimeInfo, RuntimeVersion},
};

/// containerd's name of the type, whose values are JSON (OCI runtime spec, features.md).
const TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
const FEATURES: &str = r#"{
    "ociVersionMin": "1.0.0",
    "ociVersionMax": "1.2.0",
    "linux": {
        "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
        "mountExtensions": { "idmap": { "enabled": true } }
    }
}"#;

/// A `RuntimeInfo`, encoded.
pub fn info() -> containerd_shim::protos::protobuf::Result<Vec<u8>> {
    let info = RuntimeInfo {
        name: crate::RUNTIME.to_owned(),
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
    fn info_says_that_mounts_can_be_mapped() {
        let info = RuntimeInfo::parse_from_bytes(&info().unwrap()).unwrap();
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        assert_eq!(
            features["linux"]["mountExtensions"]["idmap"]["enabled"],
            true
        );
        assert_eq!(info.name, crate::RUNTIME);
    }
}
