//go:build tools

// Package tools belongs to a module that only pins the controller of agent-sandbox: `cargo xtask
// cluster-tools --add-ons` builds it.
package tools

import _ "sigs.k8s.io/agent-sandbox/cmd/agent-sandbox-controller"
