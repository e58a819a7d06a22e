//! On a real Kubernetes, by `kubectl`: `make test-k8s`.

mod deployments;
mod errors;
mod examples;
mod kubectl;
mod limits;
mod local;
mod services;
