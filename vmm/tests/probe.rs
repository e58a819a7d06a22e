//! Tests the choice of the accelerator.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::time::{Duration, Instant};

use caisson_vmm::{
    qemu::{probe_kvm, PROBE_LIMIT},
    Accelerator,
};
use fixture::Fixture;

#[tokio::test]
async fn probe_chooses_an_accelerator_within_its_limit_and_leaves_nothing() {
    let Some(fixture) = Fixture::with_agent() else {
        return;
    };
    let started = Instant::now();
    let result = probe_kvm(&fixture.config, &fixture.spec(), PROBE_LIMIT).await;
    let result = result.unwrap();
    eprintln!("{result:?}");

    assert!(started.elapsed() < PROBE_LIMIT + Duration::from_secs(2));
    assert!(!result.reason.is_empty());
    let left = std::fs::read_dir(&fixture.spec().dir).unwrap().count();
    assert_eq!(left, 0);
    let text = serde_json::to_string(&result).unwrap();
    let name = match result.accelerator {
        Accelerator::Kvm => "\"kvm\"",
        Accelerator::Tcg => "\"tcg\"",
    };
    assert!(text.contains(name), "{text}");
    assert_eq!(
        serde_json::from_str::<caisson_vmm::qemu::ProbeResult>(&text).unwrap(),
        result
    );
}
