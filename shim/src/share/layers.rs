//! Mounts the lower layers of a container's overlay with different owners, until the overlay has
//! been mounted on top of them.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use caisson_node::host::{
    bind::{Bind, Detached, PLAIN},
    error::{FileError, OnFile},
    folder::Folder,
};

/// The folder in the pod's folder where the layers are mounted in the meantime.
const LAYERS: &str = "layers";

/// A container whose overlay's lower layers get different owners.
pub struct Layers {
    /// The pod's state folder.
    pub pod: PathBuf,
    pub container: String,
}

/// The mounted layers of [`Layers`]. Dropping it unmounts them.
pub struct MappedLayers {
    all: Folder,
    container: String,
}

impl Layers {
    /// Mounts the layers and changes `lowerdir` in the options to name the mounts.
    pub fn mount(&self, options: &mut [String], ids: &OwnedFd) -> Result<MappedLayers, FileError> {
        let path = self.pod.join(LAYERS);
        let make = || Folder::open(&self.pod)?.make_folder(LAYERS);
        let mapped = MappedLayers {
            all: make().map_err(FileError::file("create", &path))?,
            container: self.container.clone(),
        };
        let folder = mapped.all.make_folder(&self.container);
        let folder = folder.map_err(FileError::file("create", &path))?;
        let how = Bind {
            ids: Some(ids.as_fd()),
            ..PLAIN
        };
        for option in options {
            let Some(lower) = option.strip_prefix("lowerdir=") else {
                continue;
            };
            let mut places = Vec::new();
            for (number, layer) in lower.split(':').map(Path::new).enumerate() {
                let name = number.to_string();
                let mounted = Detached::clone_of(layer, how)
                    .and_then(|layer| layer.mount(folder.make_folder(&name)?));
                mounted.map_err(FileError::file("map the users of", layer))?;
                places.push(self.pod.join(LAYERS).join(&self.container).join(name));
            }
            let places: Vec<_> = places.iter().map(|p| p.display().to_string()).collect();
            *option = format!("lowerdir={}", places.join(":"));
        }
        Ok(mapped)
    }
}

impl Drop for MappedLayers {
    fn drop(&mut self) {
        // The overlay has clones of its own. Whatever is left is removed with the pod's folder.
        if let Err(error) = self.all.remove(&self.container) {
            log::warn!(container = self.container.as_str(); "layers of a root stay: {error}");
        }
    }
}
