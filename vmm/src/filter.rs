//! Seccomp filters that are lists of what is allowed.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// The flags of clone(2) that make namespaces, of which a user namespace needs no capability.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS) as u64;

/// A system call that is allowed where an argument, by its number, is as the condition says.
pub(crate) type Rule = (libc::c_long, u8, SeccompCmpOp, u64);

/// A filter that allows `calls`, threads, and calls by any of `rules`.
///
/// What is not allowed fails with ENOSYS and kills nobody: a libc that the list does not know takes
/// another way, as on an old kernel. So glibc does from `clone3`, whose flags no filter can see, to
/// `clone`.
pub(crate) fn allow(calls: &[libc::c_long], rules: &[Rule]) -> Result<BpfProgram, BackendError> {
    let mut allowed: BTreeMap<_, Vec<_>> = calls.iter().map(|&call| (call, Vec::new())).collect();
    let threads = (
        libc::SYS_clone,
        0,
        SeccompCmpOp::MaskedEq(NEW_NAMESPACES | libc::CLONE_THREAD as u64),
        libc::CLONE_THREAD as u64,
    );
    for (call, argument, operator, value) in [threads].iter().chain(rules) {
        let length = SeccompCmpArgLen::Dword;
        let condition = SeccompCondition::new(*argument, length, operator.clone(), *value)?;
        let rule = SeccompRule::new(vec![condition])?;
        allowed.entry(*call).or_default().push(rule);
    }
    let not_allowed = SeccompAction::Errno(libc::ENOSYS as u32);
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(allowed, not_allowed, SeccompAction::Allow, architecture)?.try_into()
}
