//! How the container's init gets from libcontainer to its program.

use std::collections::HashMap;

use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use oci_spec::runtime::{Process, Spec};

use super::{program, report};

/// Executes `process`, which has the environment that the host asked for; libcontainer's copy has a `HOME` in any
/// case, since it would look one up in the container's own NSS modules.
#[derive(Clone)]
pub struct Init {
    pub process: Process,
}

impl Executor for Init {
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        let args = self.process.args().clone().unwrap_or_default();
        let name = args.first().map(String::as_str).unwrap_or_default();
        let env = self.process.env().clone().unwrap_or_default();
        program::find(name, &env).map(drop).map_err(|message| {
            report::last_words(&message);
            ExecutorValidationError::ArgValidationError(message)
        })
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        match program::execute(&self.process) {
            Ok(never) => match never {},
            Err(message) => {
                // The container has been started: its own stderr is all that is left.
                eprintln!("{message}");
                Err(ExecutorError::Other(message))
            }
        }
    }
}
