//! Makes homes for pods, and grows them, within the budgets.

use std::fs::{self, File};

use super::{
    budget::Claim,
    claims::Claimed,
    error::HomeError,
    image::{self, Tools},
    store::{retry, Holder, HomeStore},
};
use crate::host::error::OnFile;

impl HomeStore {
    /// Makes a home without a name for a pod.
    pub(super) fn ephemeral(
        &self,
        namespace: &str,
        size: Option<u64>,
        pod: &str,
        tools: &Tools,
    ) -> Result<(File, Claimed), HomeError> {
        let claim = Claim {
            namespace: namespace.to_owned(),
            name: None,
            size: size.unwrap_or(self.default_size),
        };
        let claimed = self.claim(&claim, pod)?;
        let path = claimed.image();
        let image = image::make(path, claim.size, tools)?;
        fs::remove_file(path).map_err(HomeError::file("remove", path))?;
        Ok((image, claimed))
    }

    /// Locks a home for `holder`. Makes it if it does not exist, and grows it if it is smaller than
    /// `size`.
    pub(super) fn persistent(
        &self,
        namespace: &str,
        name: &str,
        size: Option<u64>,
        holder: &Holder,
        tools: &Tools,
    ) -> Result<File, HomeError> {
        let folder = self.folder(namespace, name);
        let path = folder.join("image");
        let claim = |size| {
            let claim = Claim {
                namespace: namespace.to_owned(),
                name: Some(name.to_owned()),
                size,
            };
            self.claim(&claim, holder.id.as_deref().unwrap_or_default())
        };
        let image = loop {
            match self.lock(namespace, name, holder) {
                Err(HomeError::Missing(_)) => {}
                locked => break locked?,
            }
            let size = size.unwrap_or(self.default_size);
            let claimed = claim(size)?;
            fs::create_dir_all(&folder).map_err(HomeError::file("create", &folder))?;
            image::make(claimed.image(), size, tools)?;
            match image::name(claimed.image(), &path) {
                // Another pod was faster, or the folder was removed.
                Err(error) if retry(&error) => {}
                named => named.map_err(HomeError::file("create", &path))?,
            }
        };
        let has = image
            .metadata()
            .map_err(HomeError::file("read", &path))?
            .len();
        if let Some(size) = size.filter(|size| *size > has) {
            let _claimed = claim(size)?;
            image::grow(&image, size, tools)?;
        }
        Ok(image)
    }
}
