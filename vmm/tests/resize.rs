//! Tests a VM that grows and shrinks while it runs.

#![allow(clippy::unwrap_used)]

mod fixture;

use caisson_vmm::{Device, Error, Exclusive, Vmm};
use fixture::Fixture;

#[tokio::test]
async fn cpus_and_memory_grow_and_shrink_and_the_share_works_on() {
    let Some(fixture) = Fixture::with_script(
        "online() { echo $1 | tee /sys/devices/system/cpu/cpu[12]/online >/dev/null 2>&1; }
        size() { echo $(nproc) $(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo); }
        size > /out/small; echo end >> /out/small
        until [ -e /out/grown ]; do sleep 0.02; done
        online 1; size > /out/large
        mount -t tmpfs -o size=500m tmpfs /mnt
        dd if=/dev/zero of=/mnt/fill bs=1M count=300 2>/dev/null && tail -c 4194304 /mnt/fill > /out/copy
        rm /mnt/fill
        echo end >> /out/large
        until [ -e /out/shrunk ]; do sleep 0.02; done
        online 0; size > /out/less; echo end >> /out/less
        sleep 100",
    ) else {
        return;
    };
    let mut spec = fixture.spec();
    spec.max_cpus = 3;
    spec.max_memory = 1 << 30;
    let mut vm = fixture.vmm().boot(spec, Vec::new()).await.unwrap();
    vm.attach(Device::SharedDir {
        tag: "out".to_owned(),
        path: fixture.out(),
        read_only: false,
        exclusive: Exclusive::Nothing,
        user_namespace: None,
    })
    .await
    .unwrap();
    let size = |text: String| -> Vec<u64> {
        let numbers = text.split_whitespace();
        numbers.map(|number| number.parse().unwrap()).collect()
    };
    let small = size(fixture.said("small").await);

    vm.attach(Device::Cpus(3)).await.unwrap();
    let memory = vm.attach(Device::Memory(1 << 30)).await.unwrap();
    let too_many = vm.attach(Device::Cpus(4)).await.unwrap_err();
    let too_much = vm.attach(Device::Memory(1 << 31)).await.unwrap_err();
    std::fs::write(fixture.out().join("grown"), "").unwrap();
    let large = size(fixture.said("large").await);
    let copied = std::fs::metadata(fixture.out().join("copy")).unwrap().len();

    vm.attach(Device::Cpus(1)).await.unwrap();
    vm.detach(memory).await.unwrap();
    std::fs::write(fixture.out().join("shrunk"), "").unwrap();
    let less = size(fixture.said("less").await);
    vm.stop().await.unwrap();

    assert_eq!((small[0], large[0], less[0]), (1, 3, 1));
    assert_eq!(large[1], small[1] + 768);
    assert_eq!(less[1], small[1]);
    assert_eq!(copied, 4 << 20);
    assert!(matches!(too_many, Error::Size { wanted: 4, .. }));
    assert!(matches!(too_much, Error::Size { .. }));
}
