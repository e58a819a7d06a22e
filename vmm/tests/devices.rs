//! Tests devices as the guest sees them.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
    process::Command,
};

use caisson_vmm::{Device, Error, Exclusive, Vm, Vmm};
use fixture::{tap, Fixture};

/// A name that would be several options in an option string.
const HOSTILE: &str = "a,readonly=off,b=c\n-device d";

async fn share(vm: &mut Box<dyn Vm>, tag: &str, path: &Path, read_only: bool) {
    let tag = tag.to_owned();
    let path = path.to_owned();
    vm.attach(Device::SharedDir {
        tag,
        path,
        read_only,
        exclusive: Exclusive::Nothing,
        user_namespace: None,
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn shared_directories_have_the_host_s_files_and_what_is_mounted_there_later() {
    let Some(fixture) = Fixture::with_script(
        "until mount -t virtiofs ro /mnt 2>/dev/null; do sleep 0.02; done
        cat /mnt/hello > /out/log
        (touch /mnt/no 2>&1) | grep -o Read-only >> /out/log
        cd /out
        echo x > owned; chown 1234:4321 owned; chmod 4751 owned
        mkfifo fifo
        ln -s owned symlink; ln owned hardlink
        mknod device c 1 3 2>/dev/null || echo no device nodes >> log
        until [ -e /out/sub/later ]; do sleep 0.02; done
        cat /out/sub/later >> log
        echo end >> log
        sleep 100",
    ) else {
        return;
    };
    let read_only = fixture.dir.path().join(HOSTILE);
    fs::create_dir(&read_only).unwrap();
    fs::write(read_only.join("hello"), "from the host\n").unwrap();
    let out = fixture.out();
    fs::create_dir(out.join("sub")).unwrap();
    let mount = |arguments: &[&str], path: &Path| {
        let status = Command::new("mount").args(arguments).arg(path).status();
        assert!(status.unwrap().success());
    };
    mount(&["--bind", out.to_str().unwrap()], &out);
    mount(&["--make-shared"], &out);

    let mut vm = fixture
        .vmm()
        .boot(fixture.spec(), Vec::new())
        .await
        .unwrap();
    share(&mut vm, "out", &out, false).await;
    share(&mut vm, "ro", &read_only, true).await;
    mount(&["-t", "tmpfs", "tmpfs"], &out.join("sub"));
    fs::write(out.join("sub/later"), "mounted later\n").unwrap();
    let said = fixture.said("log").await;
    vm.stop().await.unwrap();
    let owned = fs::symlink_metadata(out.join("owned")).unwrap();
    let fifo = fs::symlink_metadata(out.join("fifo")).unwrap();
    let unmounted = Command::new("umount").arg("-R").arg(&out).status();
    assert!(unmounted.unwrap().success());

    assert_eq!(
        said,
        "from the host\nRead-only\nno device nodes\nmounted later\n"
    );
    assert_eq!((owned.uid(), owned.gid()), (1234, 4321));
    assert_eq!(owned.mode() & 0o7777, 0o4751);
    assert_eq!(owned.nlink(), 2);
    assert!(fifo.file_type().is_fifo());
}

#[tokio::test]
async fn disks_are_found_by_serial_and_read_only_ones_can_t_be_written() {
    let Some(fixture) = Fixture::with_script(
        "wait_disk() { until name=$(grep -l \"^$1\\$\" /sys/block/*/serial 2>/dev/null); do sleep 0.02; done
            name=${name#/sys/block/}; disk=/dev/${name%/serial}; }
        wait_disk ro
        head -c 4 $disk > /out/log; echo >> /out/log
        (echo bad > $disk) 2>/dev/null || echo write refused >> /out/log
        wait_disk rw
        printf good > /tmp/good; dd if=/tmp/good of=$disk conv=notrunc,fsync 2>/dev/null
        echo end >> /out/log
        until [ -e /out/unplug ]; do sleep 0.02; done
        while grep -q '^ro$' /sys/block/*/serial; do sleep 0.02; done
        echo end > /out/unplugged
        sleep 100",
    ) else {
        return;
    };
    let image = fixture.dir.path().join(HOSTILE);
    fs::write(&image, [b'r'; 1 << 16]).unwrap();
    let writable = fixture.dir.path().join("rw");
    fs::write(&writable, [b'w'; 1 << 16]).unwrap();
    let disk = |serial: &str, path: &Path, read_only| Device::Disk {
        serial: serial.to_owned(),
        path: path.to_owned(),
        read_only,
    };

    let mut vm = fixture
        .vmm()
        .boot(fixture.spec(), Vec::new())
        .await
        .unwrap();
    share(&mut vm, "out", &fixture.out(), false).await;
    let id = vm.attach(disk("ro", &image, true)).await.unwrap();
    vm.attach(disk("rw", &writable, false)).await.unwrap();
    let said = fixture.said("log").await;
    let twice = vm.attach(disk("ro", &image, true)).await;
    fs::write(fixture.out().join("unplug"), "").unwrap();
    vm.detach(id.clone()).await.unwrap();
    fixture.said("unplugged").await;
    let gone = vm.detach(id.clone()).await;
    let again = vm.attach(disk("ro", &image, true)).await;
    vm.stop().await.unwrap();

    assert_eq!(said, "rrrr\nwrite refused\n");
    assert_eq!(&fs::read(&writable).unwrap()[..6], b"goodww");
    assert_eq!(fs::read(&image).unwrap(), [b'r'; 1 << 16]);
    assert!(matches!(twice, Err(Error::InvalidDevice { .. })));
    assert!(matches!(gone, Err(Error::UnknownDevice(_))));
    assert_eq!(again.unwrap(), id);
}

#[tokio::test]
async fn device_that_can_t_be_made_is_refused_and_the_vm_goes_on() {
    let Some(fixture) = Fixture::with_script("echo end > /out/log; sleep 100") else {
        return;
    };
    let mut vm = fixture
        .vmm()
        .boot(fixture.spec(), Vec::new())
        .await
        .unwrap();
    let missing = |serial: &str| Device::Disk {
        serial: serial.to_owned(),
        path: "/nonexistent".into(),
        read_only: true,
    };
    let file = vm.attach(missing("x")).await.unwrap_err();
    let long = vm.attach(missing(&"x".repeat(21))).await.unwrap_err();
    let name = vm.attach(missing("x,y=z")).await.unwrap_err();
    share(&mut vm, "out", &fixture.out(), false).await;
    fixture.said("log").await;
    vm.stop().await.unwrap();

    assert_eq!(file.to_string(), "open disk /nonexistent");
    assert!(long.to_string().contains("too long"), "{long}");
    assert!(name.to_string().contains("other characters"), "{name}");
}

#[tokio::test]
async fn network_card_has_the_address_and_mtu_that_were_given() {
    let Some(fixture) = Fixture::with_script(
        "until [ -e /sys/class/net/eth0 ]; do sleep 0.02; done
        cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu > /out/log
        echo end >> /out/log
        sleep 100",
    ) else {
        return;
    };
    let mut vm = fixture
        .vmm()
        .boot(fixture.spec(), Vec::new())
        .await
        .unwrap();
    share(&mut vm, "out", &fixture.out(), false).await;
    let card = Device::Network {
        tap: tap(),
        vhost: None,
        mac: [2, 0, 0, 0, 0xab, 1],
        mtu: 1400,
    };
    let id = vm.attach(card).await.unwrap();
    let said = fixture.said("log").await;
    let detached = vm.detach(id).await;
    vm.stop().await.unwrap();

    assert_eq!(said, "02:00:00:00:ab:01\n1400\n");
    detached.unwrap();
}
