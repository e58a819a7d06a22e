//! How `caisson run` reads images, by its own source.

// What the targets do not call is used in `caisson`.
#![allow(dead_code)]

#[path = "../../../deploy/node/src/run/bundle.rs"]
mod bundle;
#[path = "../../../deploy/node/src/run/image/mod.rs"]
pub mod image;
#[path = "../../../deploy/node/src/run/layers.rs"]
pub mod layers;
