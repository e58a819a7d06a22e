//go:build tools

// Package tools names what `cargo xtask cluster-tools` builds, so that go.mod and go.sum cover it.
package tools

import _ "github.com/coredns/coredns"
