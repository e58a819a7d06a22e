//! containerd on one side, the VM of a pod on the other.
