//! Tests VMs that start from a template instead of booting.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::{fs::File, path::PathBuf, time::Duration};

use caisson_vmm::{
    qemu::{QemuConfig, QemuVmm},
    Device, Secret, VmSpec, Vmm,
};
use fixture::Fixture;

const ANSWER: Duration = Duration::from_secs(10);

/// Makes a template of the fixture's guest.
async fn template(fixture: &Fixture) -> PathBuf {
    let path = fixture.dir.path().join("template");
    File::create(&path).unwrap();
    fixture
        .vmm()
        .make_template(fixture.spec(), &path)
        .await
        .unwrap();
    path
}

fn spec(fixture: &Fixture, name: &str, template: PathBuf) -> VmSpec {
    let dir = fixture.dir.path().join(name);
    std::fs::create_dir(&dir).unwrap();
    VmSpec {
        id: name.to_owned(),
        dir,
        template: Some(template),
        secret: Secret::random().unwrap(),
        ..fixture.spec()
    }
}

/// Whether the fixture's QEMU can make templates. Debian 12's can't.
fn is_own(fixture: &Fixture) -> bool {
    !fixture.config.qemu.starts_with("/usr")
}

#[tokio::test]
async fn template_of_a_qemu_that_is_too_old_is_refused_with_a_reason() {
    let Some(fixture) = Fixture::with_agent() else {
        return;
    };
    let config = QemuConfig {
        qemu: "/usr/bin/qemu-system-x86_64".into(),
        ..fixture.config.clone()
    };
    let path = fixture.dir.path().join("template");
    File::create(&path).unwrap();
    let vmm = QemuVmm::new(config);
    let made = vmm.make_template(fixture.spec(), &path).await;
    let error = made.unwrap_err().to_string();
    assert!(error.contains("mapped-ram"), "{error}");
}

#[tokio::test]
async fn machines_from_one_template_answer_side_by_side() {
    let Some(fixture) = Fixture::with_agent().filter(is_own) else {
        eprintln!("not tested: needs `cargo xtask machine` and `cargo xtask dist`");
        return;
    };
    let template = template(&fixture).await;
    let vmm = fixture.vmm();
    let mut machines = Vec::new();
    for name in ["one", "two"] {
        let spec = spec(&fixture, name, template.clone());
        let share = Device::SharedDir {
            tag: "pod".to_owned(),
            path: fixture.out(),
            read_only: false,
            user_namespace: None,
        };
        let vm = vmm.boot(spec, vec![share]).await.unwrap();
        vm.connect(1024, ANSWER).await.unwrap();
        machines.push(vm);
    }
    for vm in &machines {
        vm.connect(1024, ANSWER).await.unwrap();
    }
    for mut vm in machines {
        vm.stop().await.unwrap();
    }
}
