//! Tests on a real Kubernetes with `kubectl`: `make test-k8s`.

mod deployments;
mod errors;
mod examples;
mod features;
mod kubectl;
mod limits;
mod local;
mod ordinary;
mod services;
