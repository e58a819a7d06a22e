//go:build tools

// Package tools names what `cargo xtask test-tools --gvisor` builds, so that go.mod and go.sum cover it.
package tools

import (
	_ "gvisor.dev/gvisor/runsc"
	_ "gvisor.dev/gvisor/shim"
)
