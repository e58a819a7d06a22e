//! The container's machine is not the host's, and has the size of its limits.

use anyhow::Result;
use caisson_tests::{Node, Runtime};

#[test]
fn runc_container_kernel_is_the_hosts() -> Result<()> {
    let node = Node::shared();
    let output = node
        .container("busybox")
        .runtime(Runtime::Runc)
        .args(["uname", "-r"])
        .run()?
        .ok()?;
    assert_eq!(output.line(), host_kernel()?);
    Ok(())
}

fn host_kernel() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/osrelease")?
        .trim()
        .to_owned())
}
