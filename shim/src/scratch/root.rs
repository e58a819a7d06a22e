//! Plugs in the disk of a container's root. The guest mounts an overlay: the lower layer is the
//! image, which is shared read-only, and the upper one is on the disk.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use caisson_node::host::{
    error::{FileError, OnFile},
    folder::{descriptor_path, Folder},
};
use caisson_oci::scratch::Fit;
use caisson_protocol::agent::{self as proto, attach_request::Device as GuestDevice};
use caisson_vmm::Device;
use containerd_shim::protos::types::mount::Mount;

use super::image;
use crate::{block, plug::Plug};

/// The folder below the disk's place where the guest has the root.
const ROOT: &str = "root";

/// The layers of a root, as containerd's snapshotter `overlayfs` has them.
#[derive(Debug)]
pub struct Layers {
    /// The mount that shows all lower layers.
    pub lower: Mount,
    /// The folder of the upper one.
    upper: PathBuf,
}

impl Layers {
    /// Finds the layers of a root. The text says why they can't be told apart.
    pub fn of(mounts: &[Mount]) -> Result<Self, &'static str> {
        let [mount] = mounts else {
            return Err("is none or several mounts of containerd's");
        };
        if mount.type_ != "overlay" {
            return Err("is not of containerd's snapshotter overlayfs");
        }
        let (mut lower, mut upper) = (None, None);
        for option in &mount.options {
            match option.split_once('=') {
                Some(("lowerdir", layers)) => lower = Some(layers),
                Some(("upperdir", layer)) => upper = Some(layer),
                Some(("workdir", _)) | Some(("index", "off")) => {}
                // Such as those for other users (uidmap) and for files that may be lost (volatile).
                _ => return Err("is an overlay with further options"),
            }
        }
        let (Some(lower), Some(upper)) = (lower, upper) else {
            return Err("is an overlay without a layer to write to");
        };
        Ok(Self {
            lower: shown(lower),
            upper: upper.into(),
        })
    }

    /// Whether the upper layer can be on a disk. Once containers have written in it on the host, it
    /// can't.
    pub fn fit(&self) -> Fit {
        let Ok(folder) = Folder::open(&self.upper) else {
            return Fit::No("has an upper layer that can't be opened");
        };
        if image::is_there(&folder) {
            return Fit::Made;
        }
        match folder.entries().map(|mut entries| entries.next().is_none()) {
            Ok(true) => Fit::Free,
            _ => Fit::No("has files in its upper layer already"),
        }
    }

    /// Returns both halves of plugging in the disk. `lower` is where the guest has the lower layer.
    pub async fn plug(&self, container: &str, lower: &Path) -> Result<Plug, FileError> {
        let failed = FileError::file("look at the upper layer", &self.upper);
        let upper = fs::metadata(&self.upper).map_err(failed)?;
        let file = image::open(&self.upper).await?;
        let serial = block::root_serial(container);
        Ok(Plug {
            vm: Device::Disk {
                serial: serial.clone(),
                path: descriptor_path(&file),
                read_only: false,
            },
            guest: GuestDevice::Disk(proto::Disk {
                serial,
                fs_type: "ext4".to_owned(),
                root: true,
                discard: true,
                overlay: Some(proto::Overlay {
                    lower: lower.display().to_string(),
                    owner: Some(proto::Owner {
                        mode: upper.mode() & 0o7777,
                        uid: upper.uid(),
                        gid: upper.gid(),
                        ..Default::default()
                    })
                    .into(),
                    ..Default::default()
                })
                .into(),
                ..Default::default()
            }),
            hold: Some(file),
        })
    }
}

/// Returns the path at which the guest has the root.
pub fn place(container: &str) -> PathBuf {
    block::root_place(container).join(ROOT)
}

/// Returns the mount that shows lower layers alone, which nobody can write to.
fn shown(lower: &str) -> Mount {
    let (kind, source, options) = match lower.contains(':') {
        true => {
            let layers = format!("lowerdir={lower}");
            ("overlay", "overlay", vec!["ro".to_owned(), layers])
        }
        // An overlay has at least two layers.
        false => ("bind", lower, vec!["ro".to_owned(), "bind".to_owned()]),
    };
    Mount {
        type_: kind.to_owned(),
        source: source.to_owned(),
        options,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: &[&str]) -> Mount {
        Mount {
            type_: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        }
    }

    const WHOLE: [&str; 4] = ["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b"];

    #[test]
    fn lower_layers_are_shown_without_the_upper_one() {
        let layers = Layers::of(&[overlay(&WHOLE)]).unwrap();
        assert_eq!(layers.lower.options, ["ro", "lowerdir=/a:/b"]);
        assert_eq!(layers.upper, Path::new("/u"));
    }

    #[test]
    fn single_lower_layer_is_shown_as_a_folder() {
        let layers = Layers::of(&[overlay(&["workdir=/w", "upperdir=/u", "lowerdir=/a"])]).unwrap();
        assert_eq!(
            (layers.lower.type_.as_str(), layers.lower.source.as_str()),
            ("bind", "/a")
        );
    }

    #[test]
    fn root_that_is_no_plain_overlay_has_no_layers() {
        let more = |option| [&WHOLE[..], &[option]].concat();
        for mounts in [
            vec![],
            vec![overlay(&WHOLE), overlay(&WHOLE)],
            vec![overlay(&more("volatile"))],
            vec![overlay(&more("uidmap=0:1:1"))],
            vec![overlay(&["lowerdir=/a:/b"])],
            vec![Mount {
                type_: "bind".to_owned(),
                ..overlay(&["rw", "rbind"])
            }],
        ] {
            assert!(Layers::of(&mounts).is_err(), "{mounts:?}");
        }
    }

    #[test]
    fn upper_layer_that_was_written_on_the_host_fits_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let upper = format!("upperdir={}", dir.path().display());
        let layers = Layers::of(&[overlay(&["workdir=/w", &upper, "lowerdir=/a"])]).unwrap();
        assert_eq!(layers.fit(), Fit::Free);
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(matches!(layers.fit(), Fit::No(_)));
    }
}
