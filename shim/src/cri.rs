//! The CRI messages that containerd passes on to a shim, generated from
//! `proto/pod_sandbox_config.proto`.

#![allow(clippy::all, clippy::unwrap_used)] // in the generated code

include!(concat!(env!("OUT_DIR"), "/cri/mod.rs"));
