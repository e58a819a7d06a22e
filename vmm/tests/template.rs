//! Tests VMs that start from a template instead of booting.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::{fs::File, path::PathBuf, time::Duration};

use caisson_vmm::{Device, Secret, VmSpec, Vmm};
use fixture::Fixture;
use tokio::time::Instant;

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

#[tokio::test]
async fn machines_from_one_template_answer_side_by_side() {
    let Some(fixture) = Fixture::with_agent() else {
        return;
    };
    let template = template(&fixture).await;
    let vmm = fixture.vmm();
    let mut machines = Vec::new();
    for name in ["one", "two"] {
        let started = Instant::now();
        let spec = spec(&fixture, name, template.clone());
        let mut vm = vmm.boot(spec).await.unwrap();
        println!("{name}: {:?} to run", started.elapsed());
        vm.attach(Device::SharedDir {
            tag: "pod".to_owned(),
            path: fixture.out(),
            read_only: false,
            user_namespace: None,
        })
        .await
        .unwrap();
        println!("{name}: {:?} to the share", started.elapsed());
        vm.connect(1024, ANSWER).await.unwrap();
        println!("{name}: {:?} to the answer", started.elapsed());
        machines.push(vm);
    }
    for vm in &machines {
        vm.connect(1024, ANSWER).await.unwrap();
    }
    for mut vm in machines {
        vm.stop().await.unwrap();
    }
}
