//go:build tools

// Package tools names what `cargo xtask cluster-tools` builds, so that go.mod and go.sum cover it.
package tools

import _ "sigs.k8s.io/metrics-server/cmd/metrics-server"
