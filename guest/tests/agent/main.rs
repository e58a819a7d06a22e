//! Tests the agent's service, driven as the shim drives it.
//!
//! By default the tests run over `caisson-agent --fake` on this host (needs root). To run the same
//! tests in a VM that was booted outside of the tests, set `CAISSON_TEST_VSOCK=<socket of
//! vhost-device-vsock>`, `CAISSON_TEST_SECRET=<the VM's secret in hex>` and
//! `CAISSON_TEST_SHARE=<directory shared with tag "pod">`.

#![allow(clippy::unwrap_used)]

mod devices;
mod door;
mod guest;
mod lifecycle;
mod pod;
mod process;
mod streams;
mod submount;
