//! Seccomp filters that list the allowed system calls.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// The flags of clone(2) that make namespaces. For a user namespace no capability is needed.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS) as u64;

/// A system call that is allowed if the argument with this number meets the condition.
pub(crate) type Rule = (libc::c_long, u8, SeccompCmpOp, u64);

/// Makes a filter that allows `calls`, threads, and the calls that any of `rules` allows.
///
/// Other calls fail with ENOSYS and kill nobody, so a libc that the list does not know falls back
/// as on an old kernel. For example, glibc falls back from `clone3`, whose flags no filter can see,
/// to `clone`.
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
