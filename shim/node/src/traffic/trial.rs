//! Tries on this host what a pod's network needs.

use std::{io, net::Ipv4Addr, os::fd::AsFd};

use caisson_oci::Egress;

use super::{
    egress::Filter,
    guard,
    netlink::Netlink,
    tc::{self, Hook},
};

/// The first interface of every network namespace.
const LOOPBACK: u32 = 1;

/// Tries what holds a guest to its addresses, in a network namespace that is gone afterwards.
///
/// # Errors
/// What the kernel says where it lacks cls_bpf or act_mirred, or the caller CAP_SYS_ADMIN.
pub fn try_anti_spoofing() -> io::Result<()> {
    in_a_namespace(|netlink| {
        let program = guard::program([0; 6], &[Ipv4Addr::LOCALHOST.into()]);
        tc::redirect_if(netlink, LOOPBACK, &program, LOOPBACK)
    })
}

/// Tries what holds a pod to its egress, as [`try_anti_spoofing`] does.
///
/// # Errors
/// What the kernel says where it lacks eBPF or cls_bpf, or the caller CAP_BPF.
pub fn try_egress() -> io::Result<()> {
    in_a_namespace(|netlink| {
        let filter = Filter::new(&Egress::Deny, &[])?;
        filter.inward()?;
        let program = filter.outward(true, None)?;
        tc::run_first(netlink, LOOPBACK, program.as_fd())
    })
}

/// Does something with a network namespace whose loopback has hooks.
fn in_a_namespace(
    work: impl FnOnce(&mut Netlink) -> io::Result<()> + Send + 'static,
) -> io::Result<()> {
    let tried = std::thread::spawn(|| {
        // SAFETY: touches no memory. The thread ends in the new namespace, which then goes, too.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut netlink = Netlink::open()?;
        tc::hook(&mut netlink, LOOPBACK, Hook::Ingress)?;
        work(&mut netlink)
    });
    let died = |_| Err(io::Error::other("the thread that tried it died"));
    tried.join().unwrap_or_else(died)
}
