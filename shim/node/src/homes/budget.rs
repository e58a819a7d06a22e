//! Enforces the limits on homes: the size of a single home, and the total size of the homes of a
//! namespace and of the node (`[homes]` of the configuration).

use std::collections::BTreeMap;

use caisson_oci::NodeConfig;
use serde::{Deserialize, Serialize};

use super::error::HomeError;

/// The limits of a node, in MiB; 0 means no limit.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    largest: u64,
    node: u64,
    namespace: u64,
    namespaces: BTreeMap<String, u64>,
}

/// A request for a new home, or for a larger size of an existing one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub namespace: String,
    /// None for an ephemeral home.
    pub name: Option<String>,
    /// In bytes.
    pub size: u64,
}

/// The total sizes of homes, in bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub node: u64,
    /// The part of `node` that ephemeral homes take.
    pub ephemeral: u64,
    pub namespaces: BTreeMap<String, u64>,
}

impl Limits {
    pub fn new(config: &NodeConfig) -> Self {
        let homes = &config.homes;
        Self {
            largest: homes.max_size_mib,
            node: homes.node_budget_mib,
            namespace: homes.namespace_budget_mib,
            namespaces: homes.namespace_budgets_mib.clone(),
        }
    }

    /// The node's budget, in MiB.
    pub fn node(&self) -> Option<u64> {
        some(self.node)
    }

    /// The budget of a namespace, in MiB.
    pub fn namespace(&self, name: &str) -> Option<u64> {
        let own = self.namespaces.get(name);
        some(*own.unwrap_or(&self.namespace))
    }

    /// Checks a claim against the limits, given the sizes of the other homes.
    pub fn check(&self, claim: &Claim, others: &Usage) -> Result<(), HomeError> {
        let name = || match &claim.name {
            Some(name) => format!("{}/{name}", claim.namespace),
            None => format!("ephemeral in {}", claim.namespace),
        };
        let asked = mib(claim.size);
        if let Some(largest) = some(self.largest).filter(|largest| asked > *largest) {
            return Err(HomeError::TooLarge {
                home: name(),
                asked,
                largest,
            });
        }
        let of_namespace = others.namespaces.get(&claim.namespace);
        let key = match self.namespaces.contains_key(&claim.namespace) {
            true => format!("namespace_budgets_mib.{}", claim.namespace),
            false => "namespace_budget_mib".to_owned(),
        };
        let budgets = [
            (
                format!("the namespace {}", claim.namespace),
                key,
                self.namespace(&claim.namespace),
                *of_namespace.unwrap_or(&0),
            ),
            (
                "this node".to_owned(),
                "node_budget_mib".to_owned(),
                self.node(),
                others.node,
            ),
        ];
        for (whose, key, budget, used) in budgets {
            let used = mib(used);
            if let Some(budget) = budget.filter(|budget| used.saturating_add(asked) > *budget) {
                return Err(HomeError::OverBudget {
                    home: name(),
                    asked,
                    whose,
                    used,
                    budget,
                    key,
                });
            }
        }
        Ok(())
    }
}

impl Usage {
    pub fn add(&mut self, namespace: &str, size: u64) {
        self.node += size;
        *self.namespaces.entry(namespace.to_owned()).or_default() += size;
    }
}

fn some(limit: u64) -> Option<u64> {
    (limit != 0).then_some(limit)
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
