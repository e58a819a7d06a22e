//! The test harness, which runs containers and pods under a real containerd.
//!
//! A test describes its containers in terms of `ctr`:
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
//! - [`node`]: a containerd in a temporary folder; [`sweep`] removes what a crashed run left;
//! - [`command`]: programs with a time limit and their output;
//! - [`container`] and [`exec`]: `ctr run` and `ctr task …`; [`task`]: containerd's API where `ctr`
//!   has no command;
//! - [`cri`]: pods and their containers, as a kubelet asks for them;
//! - [`k8s`]: a cluster, used through `kubectl`;
//! - [`node_vm`]: a Debian node in a VM, with systemd and KVM;
//! - [`image`]: images made here, without network; [`fixture`]: the images that tests use by name;
//!   [`debian`]: images of Debian packages;
//! - [`skill`]: skills of a node; [`s3`], [`registry`], [`faults`]: the sources of skills, and
//!   their failures;
//! - [`exceptions`]: the failures allowed in other projects' tests; [`ginkgo`]: their reports;
//!   [`comparison`]: their results with runc and with Caisson;
//! - [`bridge`]: network namespaces as CNI leaves them; [`dns`]: a server of DNS;
//! - [`hostile`]: what a pod must not do to its node; [`gvisor`]: another runtime to compare with;
//! - [`leftovers`]: what Caisson leaves on the host; [`proc`]: `/proc` of the host's processes.

pub mod bridge;
pub mod command;
pub mod comparison;
pub mod config;
pub mod container;
pub mod cri;
pub mod debian;
pub mod dns;
pub mod events;
pub mod exceptions;
pub mod exec;
pub mod faults;
pub mod fixture;
pub mod ginkgo;
pub mod gvisor;
pub mod hostile;
pub mod k8s;
pub mod leftovers;
pub mod metrics;
pub mod node;
pub mod node_vm;
pub mod paths;
pub mod proc;
pub mod registry;
pub mod s3;
pub mod skill;
pub mod sweep;
pub mod task;
pub mod terminal;

pub use caisson_image as image;
pub use command::Output;
pub use container::{Container, ContainerBuilder, Runtime};
pub use leftovers::Leftovers;
pub use node::Node;
