//! Pure translation, no I/O: OCI spec, annotations and node configuration to what VM, what devices, what guest spec.
