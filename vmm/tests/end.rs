//! Tests how a VM ends.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::{path::Path, time::Duration};

use caisson_vmm::{Device, EndReason, Error, Exclusive, Vm, Vmm};
use fixture::Fixture;

async fn booted(fixture: &Fixture) -> Box<dyn Vm> {
    let mut vm = fixture
        .vmm()
        .boot(fixture.spec(), Vec::new())
        .await
        .unwrap();
    vm.attach(Device::SharedDir {
        tag: "out".to_owned(),
        path: fixture.out(),
        read_only: false,
        exclusive: Exclusive::Nothing,
        user_namespace: None,
    })
    .await
    .unwrap();
    vm
}

async fn end_of(vm: &dyn Vm) -> EndReason {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, vm.wait()).await.unwrap()
}

fn kill(vm: &dyn Vm, role: &str) {
    let (_, pid) = vm.pids().into_iter().find(|(r, _)| r == role).unwrap();
    // SAFETY: the pid of a child that is not reaped while its value lives.
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
}

#[tokio::test]
async fn guest_that_panics_or_powers_off_ends_with_its_last_words() {
    for (last_words, last_deed) in [
        ("sysrq: Trigger a crash", "echo c > /proc/sysrq-trigger"),
        ("goodbye", "echo goodbye; poweroff -f"),
    ] {
        let script = format!("echo 7 > /proc/sysrq-trigger; {last_deed}; sleep 100");
        let Some(fixture) = Fixture::with_script(&script) else {
            return;
        };
        let mut vm = booted(&fixture).await;
        let EndReason::GuestEnded(text) = end_of(&*vm).await else {
            panic!("not the guest's end");
        };
        assert!(text.contains(last_words), "{text}");
        let late = vm.connect(1, Duration::from_secs(20)).await;
        assert!(matches!(late, Err(Error::Ended(_))));
        vm.stop().await.unwrap();
    }
}

#[tokio::test]
async fn death_of_any_process_is_the_vm_s_end() {
    let Some(fixture) = Fixture::with_script("echo end > /out/up; sleep 100") else {
        return;
    };
    for victim in ["qemu", "vsock", "virtiofsd-out"] {
        let mut vm = booted(&fixture).await;
        kill(&*vm, victim);
        let EndReason::ProcessDied { role, how } = end_of(&*vm).await else {
            panic!("not a process's death");
        };
        assert_eq!(role, victim);
        assert_eq!(how, "killed by signal 9");
        vm.stop().await.unwrap();
        std::fs::remove_dir_all(fixture.dir.path().join("vm")).unwrap();
        std::fs::create_dir(fixture.dir.path().join("vm")).unwrap();
    }
}

#[tokio::test]
async fn vm_that_is_dropped_leaves_no_process() {
    let Some(fixture) = Fixture::with_script("sleep 100") else {
        return;
    };
    let vm = booted(&fixture).await;
    let processes = vm.pids();
    drop(vm);
    for (role, pid) in processes {
        let path = format!("/proc/{pid}");
        for _ in 0..500 {
            if !Path::new(&path).exists() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!Path::new(&path).exists(), "{role} is still there");
    }
}

#[tokio::test]
async fn vm_that_can_t_start_says_why() {
    let Some(fixture) = Fixture::with_agent() else {
        return;
    };
    let error = |fixture: &Fixture, change: &dyn Fn(&mut caisson_vmm::VmSpec)| {
        let mut spec = fixture.spec();
        change(&mut spec);
        let vmm = fixture.vmm();
        async move {
            let booted = vmm.boot(spec.clone(), Vec::new()).await;
            let _ = std::fs::remove_dir_all(spec.dir.join("vsock"));
            booted.err().unwrap()
        }
    };
    let kernel = error(&fixture, &|spec| spec.guest.kernel = "/no/kernel".into()).await;
    assert_eq!(kernel.to_string(), "open kernel /no/kernel");
    let not_a_kernel = error(&fixture, &|spec| {
        spec.guest.kernel = spec.guest.initramfs.clone();
    })
    .await;
    assert!(
        matches!(&not_a_kernel, Error::ProcessDied { role, .. } if role == "qemu"),
        "{not_a_kernel:?}"
    );
    let memory = error(&fixture, &|spec| {
        spec.memory = 1 << 50;
        spec.max_memory = 1 << 50;
    })
    .await;
    assert!(
        matches!(&memory, Error::ProcessDied { how, .. } if how.contains("memory")),
        "{memory:?}"
    );
    let mut missing = Fixture::with_agent().unwrap();
    missing.config.qemu = "/no/qemu".into();
    let qemu = error(&missing, &|_| {}).await;
    assert_eq!(qemu.to_string(), "find QEMU /no/qemu");
}

/// The sysctl belongs to a user namespace. So this test makes a user namespace in which there can
/// be no other, and runs the next test there.
#[test]
fn vm_does_not_start_where_there_is_no_user_namespace_for_virtiofsd() {
    let program = std::env::current_exe().unwrap();
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" --ignored --exact boots_without";
    let output = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", script])
        .arg(program)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[tokio::test]
#[ignore = "run by the test before"]
async fn boots_without() {
    let Some(fixture) = Fixture::with_agent() else {
        return;
    };
    let error = fixture
        .vmm()
        .boot(fixture.spec(), Vec::new())
        .await
        .err()
        .unwrap();
    assert!(matches!(error, Error::UserNamespace(_)), "{error:?}");
    let todo = "sysctl user.max_user_namespaces";
    assert!(error.to_string().contains(todo), "{error}");
}
