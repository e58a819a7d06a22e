//! Builds `ctr task exec` command lines.

use std::{fmt, process::Command, time::Duration};

use anyhow::Result;

use crate::{
    command::{self, Output, Running, Stdin},
    container::Container,
    node::LIMIT,
};

/// A further process in a running container.
#[must_use]
pub struct ExecBuilder<'c> {
    container: &'c Container<'c>,
    id: String,
    flags: Vec<String>,
    args: Vec<String>,
    stdin: Option<Vec<u8>>,
    limit: Duration,
}

impl<'c> ExecBuilder<'c> {
    pub(crate) fn new<I, S>(container: &'c Container<'_>, id: String, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self {
            container,
            id,
            flags: Vec::new(),
            args: args.into_iter().map(Into::into).collect(),
            stdin: None,
            limit: LIMIT,
        }
    }

    /// Returns the exec id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Adds a flag of `ctr task exec` with its value.
    pub fn flag(mut self, flag: &str, value: impl fmt::Display) -> Self {
        self.flags.extend([flag.to_owned(), value.to_string()]);
        self
    }

    /// Adds a flag without a value.
    pub fn switch(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Sets the bytes for standard input, which is closed after them.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Sets how long [`ExecBuilder::run`] may take.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs the process to its end.
    pub fn run(self) -> Result<Output> {
        let limit = self.limit;
        self.spawn()?.finish(limit)
    }

    /// Starts the process, which keeps running beside the test.
    pub fn spawn(mut self) -> Result<Running> {
        let (node, container) = (self.container.node, self.container.id());
        let stdin = self
            .stdin
            .take()
            .map(|bytes| Stdin::for_process(bytes, node, container, &self.id));
        command::spawn(&mut self.command(), stdin)
    }

    /// Returns the `ctr task exec` command, for a test that starts it itself.
    pub fn command(&self) -> Command {
        let mut ctr = self.container.node.ctr_command();
        ctr.args(["tasks", "exec", "--exec-id", &self.id])
            .args(&self.flags);
        ctr.arg(&self.container.id).args(&self.args);
        ctr
    }
}
