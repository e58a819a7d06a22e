# What the guest's machine may have, in QEMU's own names: configs/devices/x86_64-softmmu/ with
# --without-default-devices. Nothing else is compiled, so that a guest can reach nothing else.

# The board, and the slots that devices are plugged into
CONFIG_Q35=y
CONFIG_PCIE_PORT=y
CONFIG_PCI_BRIDGE=y
CONFIG_PCIE_PCI_BRIDGE=y
CONFIG_SERIAL_ISA=y

# What the shim plugs in
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_NET=y
CONFIG_VIRTIO_SERIAL=y
CONFIG_VIRTIO_RNG=y
CONFIG_VIRTIO_BALLOON=y
CONFIG_VIRTIO_MEM=y
CONFIG_VHOST_USER_FS=y
CONFIG_VHOST_USER_VSOCK=y
CONFIG_VHOST_VSOCK=y

# Tells a clone that it is another machine
CONFIG_ACPI_VMGENID=y
