//go:build tools

// Package tools names what `cargo xtask test-tools --nerdctl` builds, so that go.mod and go.sum
// cover it.
package tools

import _ "github.com/containerd/nerdctl/v2/cmd/nerdctl"
