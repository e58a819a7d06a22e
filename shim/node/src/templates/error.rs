use crate::{host::error::FileError, state::StateError};

/// What can go wrong with a template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The state folder of the template's VM can't be made.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its VM failed.
    #[error("the template's VM")]
    Vm(#[from] caisson_vmm::Error),
    /// An operation on a file or folder failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// No template has that name.
    #[error("no template {0}")]
    Missing(String),
}

pub(super) type Result<T> = std::result::Result<T, TemplateError>;
