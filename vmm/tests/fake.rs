//! Tests the fake, with the real agent.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::{fs, path::Path, time::Duration};

use caisson_vmm::{fake::FakeVmm, Device, EndReason, Error, Exclusive, Vmm};
use fixture::Fixture;

#[tokio::test]
async fn fake_serves_the_agent_s_ports_and_keeps_devices_until_they_go() {
    let Some(fixture) = Fixture::with_agent() else {
        return;
    };
    let Some(agent) = Fixture::fake_agent() else {
        return;
    };
    let spec = fixture.spec();
    let mut vm = FakeVmm::new(agent)
        .boot(spec.clone(), Vec::new())
        .await
        .unwrap();
    vm.connect(1024, Duration::from_secs(10)).await.unwrap();
    let share = |tag: &str| Device::SharedDir {
        tag: tag.to_owned(),
        path: fixture.out(),
        read_only: false,
        exclusive: Exclusive::Nothing,
        user_namespace: None,
    };
    fs::write(fixture.out().join("file"), "").unwrap();
    let id = vm.attach(share("pod")).await.unwrap();
    let twice = vm.attach(share("pod")).await;
    let outside = vm.attach(share("../pod")).await;
    let seen = spec.dir.join("devices/pod/file").exists();
    vm.detach(id).await.unwrap();
    let seen_later = spec.dir.join("devices/pod").symlink_metadata().is_ok();
    let pids = vm.pids();
    vm.stop().await.unwrap();

    assert!(matches!(twice, Err(Error::InvalidDevice { .. })));
    assert!(matches!(outside, Err(Error::InvalidDevice { .. })));
    assert!(seen && !seen_later);
    assert_eq!(vm.wait().await, EndReason::Stopped);
    assert!(!Path::new(&format!("/proc/{}", pids[0].1)).exists());
}
