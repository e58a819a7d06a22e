//! Executes the program of a container in the init that libcontainer has made.

use std::collections::HashMap;

use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use oci_spec::runtime::{Process, Spec};

use super::{program, report};

/// Executes `process`, which has the environment that the host asked for. libcontainer's copy
/// always has a `HOME`: without one, libcontainer would look it up with the container's own NSS
/// modules.
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
                // The container has been started, so its own stderr is the only place left for the
                // message.
                eprintln!("{message}");
                Err(ExecutorError::Other(message))
            }
        }
    }
}
