//! Includes by its source the code with which `caisson run` reads images.

// `caisson` uses what the targets do not call.
#![allow(dead_code)]

#[path = "../../../deploy/node/src/run/bundle.rs"]
mod bundle;
#[path = "../../../deploy/node/src/run/image/mod.rs"]
pub mod image;
#[path = "../../../deploy/node/src/run/layers.rs"]
pub mod layers;
