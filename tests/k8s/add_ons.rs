//! Tests pods beside what clusters have in addition to Kubernetes: the controller of agent-sandbox
//! and kube-router. `make test-k8s`, with a cluster of its own, which has claims.

mod agent_sandbox;
mod network_policy;
mod workspace_full;
