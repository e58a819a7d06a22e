//! Mounts the roots of containers into the shared folder.

use std::{io, os::fd::AsFd, path::Path};

use caisson_node::host::{
    bind::{self, Bind, Detached, PLAIN},
    error::OnFile,
    folder::Folder,
    id_map,
};
use containerd_shim::{mount::mount_rootfs, protos::types::mount::Mount};

use super::{error::ShareError, layers::Layers, Share, ROOTFS};

impl Share {
    /// Mounts a container's root: the mounts of containerd's request on top of one another or, if
    /// there are none, the folder that the spec names.
    pub async fn mount_rootfs(
        &self,
        container: &str,
        mounts: Vec<Mount>,
        folder: &Path,
    ) -> Result<(), ShareError> {
        let target = self.rootfs(container);
        let make = || {
            let own = self.shared.make_folder(container)?;
            own.make_folder(ROOTFS)?;
            io::Result::Ok(own)
        };
        let own = make().map_err(ShareError::file("create", &target))?;
        if mounts.is_empty() {
            if !folder.is_dir() {
                return Err(ShareError::file("use root.path", folder)(
                    io::ErrorKind::NotADirectory.into(),
                ));
            }
            let whole = Bind {
                recursive: true,
                ..PLAIN
            };
            let mounted =
                Detached::clone_of(folder, whole).and_then(|root| root.mount(own.place(ROOTFS)?));
            return mounted.map_err(ShareError::file("mount", target));
        }
        let layers = Layers {
            pod: self.pod.clone(),
            container: container.to_owned(),
        };
        // Uses a thread of its own, since mounting with long overlay options changes the thread's
        // working directory.
        let (done, result) = tokio::sync::oneshot::channel();
        let place = target.clone();
        std::thread::spawn(move || {
            let mut mounts = mounts.iter();
            drop(done.send(mounts.try_for_each(|m| mount_one(m, &own, &place, &layers))));
        });
        result
            .await
            .unwrap_or_else(|_| Err(failed_mount(&target, "the mounting thread ended")))
    }
}

/// Mounts one of containerd's mounts over a container's root. Supports the options with which
/// containerd's snapshotters choose the owners of the files. `target` is the root's path, for
/// errors.
fn mount_one(
    m: &Mount,
    container: &Folder,
    target: &Path,
    layers: &Layers,
) -> Result<(), ShareError> {
    let non_empty = |text| Some(text).filter(|t: &&str| !t.is_empty());
    let mut options = m.options.clone();
    let ids = id_map::take(&mut options)
        .map_err(|reason| failed_mount(target, &reason))?
        .transpose()
        .map_err(ShareError::file("map the users of", target))?;
    let mapped = match &ids {
        // The upper layer belongs to the container alone and is written with its ids.
        Some(ids) if m.type_ == "overlay" => Some(layers.mount(&mut options, ids)?),
        _ => None,
    };
    // Nobody else can change what is in the container's folder, so the name leads to the shim's own
    // folder.
    let place = container.path().join(ROOTFS);
    mount_rootfs(non_empty(&m.type_), non_empty(&m.source), &options, place).map_err(|source| {
        ShareError::Mount {
            target: target.to_owned(),
            source: Box::new(source),
        }
    })?;
    let root = container.folder(ROOTFS);
    let root = root.map_err(ShareError::file("open", target))?;
    bind::set(&root, false, bind::INERT, 0)
        .map_err(ShareError::file("set the flags of", target))?;
    match (ids, mapped) {
        (Some(ids), None) => {
            let how = Bind {
                ids: Some(ids.as_fd()),
                ..PLAIN
            };
            let mapped = Detached::clone_of(&root.path(), how)
                .and_then(|root| root.mount(container.place(ROOTFS)?));
            mapped.map_err(ShareError::file("map the users of", target))
        }
        _ => Ok(()),
    }
}

fn failed_mount(target: &Path, reason: &str) -> ShareError {
    ShareError::Mount {
        target: target.to_owned(),
        source: Box::new(containerd_shim::Error::Other(reason.to_owned())),
    }
}
