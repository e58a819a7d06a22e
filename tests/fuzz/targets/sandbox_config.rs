//! Fuzzes CRI's PodSandboxConfig and the sandbox that is made of it.
#![no_main]

use caisson_fuzz::{memory, told};
use caisson_oci::{annotations::PREFIX, pod, spec::Spec, Role};
use caisson_shim::{cri::pod_sandbox_config::PodSandboxConfig, sandbox::spec};
use libfuzzer_sys::fuzz_target;
use protobuf::Message;

const MAX_TOLD: usize = 2048;
const LIMIT: usize = 32 << 20;

fuzz_target!(|bytes: &[u8]| memory::bounded(LIMIT, || check(bytes)));

fn check(bytes: &[u8]) {
    let Ok(config) = PodSandboxConfig::parse_from_bytes(bytes) else {
        return;
    };
    let network = if config.hostname.len() % 2 == 0 {
        "/run/netns/cni-1"
    } else {
        ""
    };
    let text = spec::of("s1", &config, network).to_string();
    let spec: Spec = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(Role::of(&spec).expect("a role"), Role::Sandbox);
    let annotations = spec.annotations().clone().unwrap_or_default();
    for (key, value) in &config.annotations {
        let kept = annotations.get(key);
        let own = key.starts_with("io.kubernetes.cri.");
        assert!(
            own || key.starts_with(PREFIX) == (kept == Some(value)),
            "{key:?}"
        );
    }
    match pod::sandbox(&spec) {
        Ok(sandbox) => {
            assert!(sandbox.sysctls.len() <= 256);
            assert!(sandbox
                .network
                .iter()
                .all(|path| path.as_os_str() == network));
        }
        Err(error) => assert!(told(&error).len() <= MAX_TOLD, "a long error"),
    }
}
