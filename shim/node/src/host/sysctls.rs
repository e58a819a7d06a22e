//! Reads the kernel parameters of the node that hold for its containers, too.

use std::{collections::BTreeMap, fs, path::Path};

/// The parameters that belong to no namespace and are larger on a larger machine, or that an
/// administrator raises for all: sysctl/fs.rst, sysctl/kernel.rst, sysctl/net.rst, sysctl/vm.rst
/// and sysctl/user.rst of the kernel's documentation, and keyrings(7). The memory and the workloads
/// of a node decide them, and a program finds them there wherever it runs.
const NAMES: [&str; 28] = [
    "fs.aio-max-nr",
    "fs.epoll.max_user_watches",
    "fs.file-max",
    "fs.inotify.max_queued_events",
    "fs.inotify.max_user_instances",
    "fs.inotify.max_user_watches",
    "fs.nr_open",
    "fs.pipe-max-size",
    "fs.pipe-user-pages-soft",
    "kernel.keys.maxbytes",
    "kernel.keys.maxkeys",
    "kernel.keys.root_maxbytes",
    "kernel.keys.root_maxkeys",
    "kernel.pid_max",
    "kernel.threads-max",
    "net.core.optmem_max",
    "net.core.rmem_max",
    "net.core.wmem_max",
    "net.netfilter.nf_conntrack_max",
    "user.max_cgroup_namespaces",
    "user.max_ipc_namespaces",
    "user.max_mnt_namespaces",
    "user.max_net_namespaces",
    "user.max_pid_namespaces",
    "user.max_time_namespaces",
    "user.max_user_namespaces",
    "user.max_uts_namespaces",
    "vm.max_map_count",
];

/// Returns those that this node has, by their names in sysctl(8).
pub fn of_the_node() -> BTreeMap<&'static str, u64> {
    let read = |name: &'static str| {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        let value = fs::read_to_string(path).ok()?;
        Some((name, value.trim().parse().ok()?))
    };
    NAMES.into_iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_as_numbers() {
        let parameters = of_the_node();
        assert!(parameters["kernel.pid_max"] >= 300, "{parameters:?}");
        assert!(parameters["vm.max_map_count"] > 0);
    }
}
