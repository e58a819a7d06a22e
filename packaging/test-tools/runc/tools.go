//go:build tools

// Package tools names what `cargo xtask test-tools` builds, so that go.mod and go.sum cover it.
package tools

import _ "github.com/opencontainers/runc"
