//go:build tools

// Package tools belongs to a module that only pins kube-router: `cargo xtask cluster-tools
// --add-ons` builds it.
package tools

import _ "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"
