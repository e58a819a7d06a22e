//! The agent's service, driven as the shim drives it.
//!
//! By default over `caisson-agent --fake` on this host (needs root). With `CAISSON_TEST_VSOCK=<socket of
//! vhost-device-vsock>`, `CAISSON_TEST_SECRET=<the VM's secret in hex>` and `CAISSON_TEST_SHARE=<directory shared with tag "pod">` the same tests run in a VM that somebody else has booted.

#![allow(clippy::unwrap_used)]

mod devices;
mod door;
mod guest;
mod lifecycle;
mod pod;
mod process;
mod streams;
mod submount;
