//! Tests Caisson on a Debian node with systemd, cgroup v2 and KVM, installed from its Debian
//! package: `make test-node`. `CAISSON_TEST_DEBIAN` names the release.
//!
//! The tests of a run share one VM and take turns. Each leaves no pod behind, and finds Caisson
//! installed or installs it (`site`). Nothing here shows how fast something is: the VM is emulated,
//! and its guests are guests of that.

mod containers;
mod kills;
mod package;
mod pod;
mod reboot;
mod site;
mod suites;
mod systemd;
