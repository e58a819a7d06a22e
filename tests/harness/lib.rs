//! The harness of the tests under real containerd.
//!
//! A test says what it wants in the words of `ctr`:
//!
//! ```no_run
//! use caisson_tests::{Node, Runtime};
//!
//! let node = Node::shared();
//! let output = node.container("busybox").memory_mib(256).args(["uname", "-r"]).run()?;
//! let c = node.container("busybox").runtime(Runtime::Runc).args(["sleep", "1000"]).start()?;
//! c.exec(["uname", "-r"])?;
//! c.kill("SIGTERM")?;
//! c.wait()?;
//! # anyhow::Ok(())
//! ```
//!
//! - [`node`]: a containerd of our own in a temporary folder; [`sweep`] removes what a crashed run left;
//! - [`command`]: a program with an end of time, and what it printed;
//! - [`container`] and [`exec`]: `ctr run` and `ctr task …`; [`task`]: what `ctr` has no words for, by containerd's API;
//! - [`cri`]: pods and their containers, as a kubelet asks for them;
//! - [`k8s`]: a cluster, by `kubectl`;
//! - [`image`]: images made here, without network; [`fixture`]: those that tests use by name; [`debian`]: those of Debian packages;
//! - [`skill`]: skills of a node; [`s3`], [`registry`], [`faults`]: where they come from, and how that goes wrong;
//! - [`exceptions`]: what may fail of tests that are not ours;
//! - [`bridge`]: network namespaces as CNI leaves them;
//! - [`hostile`]: what a pod may not do to its node;
//! - [`leftovers`]: what of ours is on the host; [`proc`]: `/proc` of a process of the host.

pub mod bridge;
pub mod command;
pub mod config;
pub mod container;
pub mod cri;
pub mod debian;
pub mod events;
pub mod exceptions;
pub mod exec;
pub mod faults;
pub mod fixture;
pub mod hostile;
pub mod k8s;
pub mod leftovers;
pub mod node;
pub mod paths;
pub mod proc;
pub mod registry;
pub mod s3;
pub mod skill;
pub mod sweep;
pub mod task;
pub mod terminal;

pub use caisson_local::image;
pub use command::Output;
pub use container::{Container, ContainerBuilder, Runtime};
pub use leftovers::Leftovers;
pub use node::Node;
