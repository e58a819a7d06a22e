//go:build tools

// Package tools belongs to a module that only pins the Prometheus Operator: `cargo xtask test-tools
// --chart` copies the schemas of its objects out of it and builds nothing.
package tools
