//! Tests a VM from its boot to its end.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::time::Duration;

use caisson_vmm::{Device, EndReason, Exclusive, Vmm};
use fixture::{Fixture, CREDENTIALS};

fn status(pid: u32, key: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

#[tokio::test]
async fn booted_guest_answers_and_its_processes_are_confined_until_they_are_gone() {
    let Some(fixture) = Fixture::with_agent() else {
        return;
    };
    let mut vm = fixture
        .vmm()
        .boot(fixture.spec(), Vec::new())
        .await
        .unwrap();
    let path = fixture.out();
    vm.attach(Device::SharedDir {
        tag: "pod".to_owned(),
        path,
        read_only: false,
        exclusive: Exclusive::Nothing,
        user_namespace: None,
    })
    .await
    .unwrap();
    vm.connect(1024, Duration::from_secs(30)).await.unwrap();

    let processes = vm.pids();
    let roles: Vec<&str> = processes.iter().map(|(role, _)| role.as_str()).collect();
    assert_eq!(roles, ["qemu", "vsock", "virtiofsd-pod"]);
    for (role, pid) in &processes[..2] {
        let uid = format!("{0}\t{0}\t{0}\t{0}", CREDENTIALS.uid);
        assert_eq!(status(*pid, "Uid"), uid, "{role}");
        let gid = format!("{0}\t{0}\t{0}\t{0}", CREDENTIALS.gid);
        assert_eq!(status(*pid, "Gid"), gid, "{role}");
        assert_eq!(status(*pid, "Groups"), "", "{role}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(*pid, set), "0000000000000000", "{role} {set}");
        }
        assert_eq!(status(*pid, "Seccomp"), "2", "{role}");
        assert_eq!(status(*pid, "NoNewPrivs"), "1", "{role}");
    }

    vm.stop().await.unwrap();
    assert_eq!(vm.wait().await, EndReason::Stopped);
    for (role, pid) in processes {
        let gone = !std::path::Path::new(&format!("/proc/{pid}")).exists();
        assert!(gone, "{role} is still there");
    }
}

/// vhost-device-vsock 0.3.0 would carry nothing any more if the connection were given up meanwhile.
#[tokio::test]
async fn guest_that_has_no_time_for_a_while_is_connected_to_later() {
    let Some(fixture) = Fixture::with_agent() else {
        return;
    };
    let mut vm = fixture
        .vmm()
        .boot(fixture.spec(), Vec::new())
        .await
        .unwrap();
    vm.connect(1024, Duration::from_secs(30)).await.unwrap();
    let vmm = vm.pids()[0].1 as i32;
    // SAFETY: the pid of a child that is not reaped while its value lives.
    unsafe { libc::kill(vmm, libc::SIGSTOP) };
    let impatient = vm.connect(1024, Duration::from_millis(1500)).await;
    // SAFETY: as above.
    unsafe { libc::kill(vmm, libc::SIGCONT) };
    let patient = vm.connect(1024, Duration::from_secs(30)).await;
    vm.stop().await.unwrap();

    assert!(impatient.is_err());
    patient.unwrap();
}
