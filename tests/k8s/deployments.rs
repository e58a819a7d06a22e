//! Deployments: what the RuntimeClass changes in one, and a rolling update.
