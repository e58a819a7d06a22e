//! Makes QEMU's objects for devices. Everything is JSON or a descriptor, nothing an option string.

use std::{fs::File, os::fd::OwnedFd, path::Path, time::Duration};

use serde_json::{json, Value};

use super::{ports::Port, qmp::Qmp};
use crate::{driver::vsock::VsockDevice, Error, Result};

/// The time limit for a guest to let go of a device.
const UNPLUG_LIMIT: Duration = Duration::from_secs(10);

/// The interval between two checks whether the guest drives a device.
const DRIVER_POLL: Duration = Duration::from_millis(20);
/// How long the daemon behind a device may take to notice that the guest drives the device, and how
/// long a guest that says when it listens is waited for. Who connects before then costs the guest
/// time that it needs for its start.
const DRIVER_GRACE: Duration = Duration::from_secs(1);

/// The object of QEMU's behind a device, which is removed after the device.
#[derive(Debug, Clone)]
pub(crate) enum Backend {
    Chardev(String),
    Block { node: String, fdset: u64 },
    Netdev(String),
    Object(&'static str),
    None,
}

/// Gives QEMU a vhost-user connection as the chardev `id`.
pub(crate) async fn add_vhost_user(qmp: &Qmp, id: &str, connection: OwnedFd) -> Result<Backend> {
    qmp.pass(id, connection).await?;
    let address = json!({ "type": "fd", "data": { "str": id } });
    let backend = json!({
        "type": "socket",
        "data": { "addr": address, "server": false },
    });
    let arguments = json!({ "id": id, "backend": backend });
    qmp.execute("chardev-add", arguments).await?;
    Ok(Backend::Chardev(id.to_owned()))
}

/// Gives QEMU the control channel. Also returns the device's properties.
pub(crate) async fn add_vsock(qmp: &Qmp, device: VsockDevice) -> Result<(Backend, Value)> {
    match device {
        VsockDevice::Daemon(connection) => {
            let backend = add_vhost_user(qmp, "vsock", connection).await?;
            let properties = json!({ "driver": "vhost-user-vsock-pci", "chardev": "vsock" });
            Ok((backend, properties))
        }
        VsockDevice::Kernel(device, cid) => {
            qmp.pass("vsock", device).await?;
            let properties = json!({
                "driver": "vhost-vsock-pci",
                "vhostfd": "vsock",
                "guest-cid": cid,
            });
            Ok((Backend::None, properties))
        }
    }
}

/// Resolves when the guest drives a virtio device, or when that can't be determined any more.
pub(crate) async fn driver_is_up(qmp: Qmp, id: &str) {
    let path = json!({ "path": format!("/machine/peripheral/{id}/virtio-backend") });
    while let Ok(status) = qmp.execute("x-query-virtio-status", path.clone()).await {
        let statuses = status["status"]["statuses"].as_array();
        let is_up = |status: &Value| {
            status
                .as_str()
                .is_some_and(|text| text.starts_with("VIRTIO_CONFIG_S_DRIVER_OK"))
        };
        if statuses.is_some_and(|statuses| statuses.iter().any(is_up)) {
            break;
        }
        tokio::time::sleep(DRIVER_POLL).await;
    }
    tokio::time::sleep(DRIVER_GRACE).await;
}

/// Opens an image and gives QEMU its descriptor as the block node `id`.
pub(crate) async fn add_block(
    qmp: &Qmp,
    id: &str,
    path: &Path,
    read_only: bool,
) -> Result<Backend> {
    let failed = |source| Error::File {
        what: "open disk",
        path: path.to_owned(),
        source,
    };
    let file = File::options()
        .read(true)
        .write(!read_only)
        .open(path)
        .map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    let driver = match std::os::unix::fs::FileTypeExt::is_block_device(&kind) {
        true => "host_device",
        false => "file",
    };
    let fdset = qmp.add_file(file).await?;
    let backend = Backend::Block {
        node: id.to_owned(),
        fdset,
    };
    // What the guest discards becomes a hole in the file, which takes no space. On a block device
    // that takes an ioctl, which the filter of system calls does not allow.
    let discard = match driver == "file" && !read_only {
        true => "unmap",
        false => "ignore",
    };
    let arguments = json!({
        "node-name": id,
        "driver": "raw",
        "read-only": read_only,
        "auto-read-only": false,
        "discard": discard,
        "file": {
            "driver": driver,
            "filename": format!("/dev/fdset/{fdset}"),
            // The same image may be in many VMs at once; write access is decided above.
            "locking": "off",
            "read-only": read_only,
            "auto-read-only": false,
            "discard": discard,
        },
    });
    if let Err(error) = qmp.execute("blockdev-add", arguments).await {
        remove_backend(qmp, &backend).await;
        return Err(error.into());
    }
    Ok(backend)
}

/// Gives QEMU a tap as the netdev `id`. The host's kernel moves its packets if `vhost` is
/// `/dev/vhost-net`.
pub(crate) async fn add_tap(
    qmp: &Qmp,
    id: &str,
    tap: OwnedFd,
    vhost: Option<OwnedFd>,
) -> Result<Backend> {
    qmp.pass(id, tap).await?;
    let mut arguments = json!({ "type": "tap", "id": id, "fd": id, "vhost": vhost.is_some() });
    if let Some(vhost) = vhost {
        let name = format!("vhost-{id}");
        qmp.pass(&name, vhost).await?;
        arguments["vhostfd"] = json!(name);
    }
    qmp.execute("netdev_add", arguments).await?;
    Ok(Backend::Netdev(id.to_owned()))
}

/// Plugs a device into a port. On failure removes its backend. `properties` are the device's own.
pub(crate) async fn plug(
    qmp: &Qmp,
    id: &str,
    port: &Port,
    backend: &Backend,
    properties: Value,
) -> Result<()> {
    let device = port.with(id, properties);
    let plugged = qmp.execute("device_add", device).await;
    if plugged.is_err() {
        remove_backend(qmp, backend).await;
    }
    plugged?;
    Ok(())
}

/// Unplugs a device and removes its backend, once the guest has let go of it.
pub(crate) async fn unplug(qmp: &Qmp, id: &str, backend: &Backend) -> Result<()> {
    let device = id.to_owned();
    let deleted = qmp
        .expect(move |event| event.name == "DEVICE_DELETED" && event.data["device"] == device)
        .await?;
    qmp.execute("device_del", json!({ "id": id })).await?;
    match tokio::time::timeout(UNPLUG_LIMIT, deleted).await {
        Ok(_) => remove_backend(qmp, backend).await,
        Err(_) => {
            return Err(Error::TimedOut {
                what: format!("unplugging device {id}"),
                limit: UNPLUG_LIMIT,
            })
        }
    }
    Ok(())
}

/// Removes the backend of a device that is not there. What QEMU keeps goes with the VM.
async fn remove_backend(qmp: &Qmp, backend: &Backend) {
    let remove = async |command: &str, id: &str| {
        let removed = qmp.execute(command, json!({ "id": id })).await;
        removed.map(drop)
    };
    let removed = match backend {
        Backend::Chardev(id) => remove("chardev-remove", id).await,
        Backend::Block { node, fdset } => {
            let node = json!({ "node-name": node });
            // This fails if the node was never made.
            let _ = qmp.execute("blockdev-del", node).await;
            qmp.remove_file(*fdset).await
        }
        Backend::Netdev(id) => remove("netdev_del", id).await,
        Backend::Object(id) => remove("object-del", id).await,
        Backend::None => return,
    };
    if let Err(error) = removed {
        log::debug!(error = error.to_string().as_str(); "a device's backend stays until the VM's end");
    }
}
