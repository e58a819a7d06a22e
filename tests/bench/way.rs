//! The ways in which a pod gets what it runs in, each on a node of its own.

use std::time::Duration;

use anyhow::Result;
use caisson_tests::{
    command,
    cri::{CriNode, PodBuilder},
    gvisor, node, Node, Runtime,
};
use serde_json::json;

use crate::run_true;

/// How long a member of the pool may take to be ready.
const READY: Duration = Duration::from_secs(120);

/// A runtime, and how its pods start, on a containerd of their own.
pub struct Way {
    pub name: &'static str,
    pub node: CriNode,
    pub runtime: Runtime,
    pool: u32,
}

impl Way {
    /// Sets up the ways that are compared. The first is runc's, and the second gVisor's, if it is
    /// there.
    pub fn all() -> Result<Vec<Self>> {
        let mut ways = vec![Self::runc()?];
        if gvisor::is_there() {
            ways.push(Self::new(
                "gVisor (runsc, systrap)",
                Runtime::Gvisor,
                false,
                0,
            )?);
        } else {
            println!("gVisor is not there: cargo xtask test-tools --gvisor");
        }
        ways.push(Self::new(
            "Caisson, the VM boots",
            Runtime::Caisson,
            false,
            0,
        )?);
        ways.push(Self::from_a_template()?);
        ways.push(Self::new(
            "Caisson, from the pool",
            Runtime::Caisson,
            true,
            1,
        )?);
        Ok(ways)
    }

    /// Sets up runc's way.
    pub fn runc() -> Result<Self> {
        Self::new("runc", Runtime::Runc, false, 0)
    }

    /// Sets up a way in which each VM starts from the template when its pod does.
    pub fn from_a_template() -> Result<Self> {
        Self::new("Caisson, from a template", Runtime::Caisson, true, 0)
    }

    /// Sets up a way whose pool has as many VMs ready as pods start at once.
    pub fn from_a_pool_of(pods: u32) -> Result<Self> {
        Self::new(
            "Caisson, from a pool that has one for each",
            Runtime::Caisson,
            true,
            pods,
        )
    }

    fn new(name: &'static str, runtime: Runtime, templates: bool, pool: u32) -> Result<Self> {
        let node = CriNode::start_with(|config| {
            config["vm"]["templates"] = templates.into();
            config["pool"] = json!({ "size": pool });
        })?;
        node.image("busybox")?;
        let way = Self {
            name,
            node,
            runtime,
            pool,
        };
        if templates {
            let mut build = node::caisson(&way.node)?;
            let built = command::run(build.args(["template", "build"]), None, READY)?;
            built.ok()?;
        }
        // The first start of a node finds out about KVM, and has the first member of a pool born.
        way.run_true()?;
        Ok(way)
    }

    /// Runs a container with `ctr` until it has ended.
    pub fn run_true(&self) -> Result<()> {
        run_true(&self.node, self.runtime)
    }

    /// Begins building a pod.
    pub fn pod(&self) -> PodBuilder<'_> {
        self.node.pod().runtime(self.runtime)
    }

    /// Waits until the next start would find what it needs.
    pub fn get_ready(&self) -> Result<()> {
        if self.pool == 0 {
            return Ok(());
        }
        command::poll("the members of the pool", READY, || {
            let list = command::run(node::caisson(&self.node).ok()?.arg("list"), None, READY);
            let list = list.ok()?.text();
            let ready = list
                .lines()
                .filter(|line| line.contains(" in pool "))
                .count();
            (ready >= self.pool as usize).then_some(())
        })
    }

    /// Removes what the node has on the host.
    pub fn remove(&self) {
        let node: &Node = &self.node;
        node.remove();
    }
}
