//go:build tools

// Package tools names what `cargo xtask test-tools` builds, so that go.mod and go.sum cover it. `go install
// package@version` can't be used: it refuses modules with exclude directives.
package tools

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
	_ "github.com/containerd/containerd/v2/cmd/ctr"
	_ "github.com/containerd/containerd/v2/integration"
	_ "github.com/containerd/containerd/v2/integration/failpoint/cmd/cni-bridge-fp"
	_ "github.com/containerd/containerd/v2/integration/failpoint/cmd/containerd-shim-runc-fp-v1"
	_ "github.com/containerd/containerd/v2/integration/failpoint/cmd/loopback-v2"
)
