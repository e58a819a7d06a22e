//! Makes the template that the VMs of this node start from.

use std::{
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use caisson_node::{accelerator, config, host::error::OnFile, templates};
use caisson_oci::NodeConfig;
use caisson_protocol::agent::{self as proto, attach_request::Device as GuestDevice};
use caisson_vmm::{Device, VmSpec, Vmm};
use tokio::time::timeout;

use crate::{
    error::{Error, Result},
    logger::stage,
    machine::{plug_both, Bare},
    network,
    rehearsal::rehearse,
    share::Share,
};

/// The time limit for a rehearsal, under emulation on a busy node.
const REHEARSAL: Duration = Duration::from_secs(120);

/// Makes the template of this node's VMs, unless there is one.
pub async fn build() -> Result<()> {
    let config = config::load()?;
    let accelerator = accelerator::choose(&config).await?;
    let spec = templates::bare(&config, accelerator)?;
    make(&config, &accelerator::qemu(&config), &spec).await
}

/// Makes the template for VMs like `spec`, unless there is one or another process makes it.
pub async fn make(config: &NodeConfig, vmm: &dyn Vmm, spec: &VmSpec) -> Result<()> {
    let started = Instant::now();
    let rehearse = |vm, place| async move {
        let recorded = record(config, vmm, vm, place).await;
        recorded.map_err(|error| error.chain())
    };
    if templates::make(config, vmm, spec, rehearse).await? {
        stage(&spec.id, "template", started);
    }
    Ok(())
}

/// Has a VM do what a pod asks for, and stops it.
async fn record(config: &NodeConfig, vmm: &dyn Vmm, spec: VmSpec, place: PathBuf) -> Result<()> {
    let share = Share::create(&place)?;
    let grown = (templates::SIZE.memory_mib + config.vm.default_memory_mib) << 20;
    let most = spec.max_memory;
    let grown = grown.min(most);
    let mut bare = Bare::start_from(vmm, config, spec, &share).await?;
    let vm = bare.vm();
    let rehearsed = async {
        let agent = bare.greet().await?;
        agent.configure("rehearsal", None).await?;
        let card = network::rehearsal::card().await?;
        plug_both(&vm, &agent, card.vm, card.guest).await?;
        let memory = GuestDevice::Memory(proto::MemorySize {
            bytes: grown,
            most_bytes: most,
            ..Default::default()
        });
        plug_both(&vm, &agent, Device::Memory(grown), memory).await?;
        rehearse(config, &place, &share, &vm, &agent).await?;
        bare.plug_the_rest(&agent).await;
        // Nothing of this guest needs to be kept.
        let _ = agent.shutdown().await;
        Ok(())
    };
    let rehearsed = timeout(REHEARSAL, rehearsed).await;
    vm.stop().await?;
    rehearsed.unwrap_or_else(|_| {
        let late = io::ErrorKind::TimedOut.into();
        Err(Error::file("rehearse for", "the template")(late))
    })
}
