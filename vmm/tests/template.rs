//! Tests VMs that start from a template instead of booting.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::{fs::File, path::PathBuf, time::Duration};

use caisson_vmm::{
    qemu::{QemuConfig, QemuVmm},
    Device, Exclusive, Secret, Template, Translations, VmSpec, Vmm,
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
        template: Some(Template {
            machine: template,
            translations: Translations::Own,
        }),
        secret: Secret::random().unwrap(),
        ..fixture.spec()
    }
}

/// A fixture whose QEMU can make templates, which Debian 12's can't.
fn fixture_with_own_qemu() -> Option<Fixture> {
    let fixture = Fixture::with_agent().filter(|found| !found.config.qemu.starts_with("/usr"));
    if fixture.is_none() {
        eprintln!("not tested: needs `cargo xtask machine` and `cargo xtask dist`");
    }
    fixture
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
    let Some(fixture) = fixture_with_own_qemu() else {
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
            exclusive: Exclusive::Nothing,
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

#[tokio::test]
async fn translations_of_one_machine_serve_another() {
    let Some(fixture) = fixture_with_own_qemu() else {
        return;
    };
    let template = template(&fixture).await;
    let file = fixture.dir.path().join("translations");
    File::create(&file).unwrap();
    let vmm = fixture.vmm();
    for (name, translations, is_mapped) in [
        ("one", Translations::To(file.clone()), false),
        ("two", Translations::From(file.clone()), true),
    ] {
        let mut spec = spec(&fixture, name, template.clone());
        spec.template.as_mut().unwrap().translations = translations;
        let mut vm = vmm.boot(spec, Vec::new()).await.unwrap();
        vm.connect(1024, ANSWER).await.unwrap();
        let pids = vm.pids();
        let (_, pid) = pids.iter().find(|(role, _)| role == "qemu").unwrap();
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        assert_eq!(maps.contains("/translations\n"), is_mapped, "{maps}");
        vm.stop().await.unwrap();
        assert!(file.metadata().unwrap().len() > 1 << 20);
    }
}

#[tokio::test]
async fn machine_starts_without_translations_of_something_else() {
    let Some(fixture) = fixture_with_own_qemu() else {
        return;
    };
    let template = template(&fixture).await;
    let mut spec = spec(&fixture, "one", template.clone());
    spec.template.as_mut().unwrap().translations = Translations::From(template);
    let mut vm = fixture.vmm().boot(spec, Vec::new()).await.unwrap();
    vm.connect(1024, ANSWER).await.unwrap();
    vm.stop().await.unwrap();
}
