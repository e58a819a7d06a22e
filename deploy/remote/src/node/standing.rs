//! Defines how a node stands, and what its node object should say of it: labels, condition and
//! event. It does no I/O.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::{
    api::core::v1::{Node, NodeCondition},
    jiff::Timestamp,
};
use serde_json::{json, Value};

use super::progress::Wanted;

/// The condition's type.
pub const CONDITION: &str = "CaissonReady";
/// The label that a node needs to get pods of the RuntimeClass.
pub const READY: &str = "caisson.dev/ready";
/// The label with the version that new pods get.
pub const VERSION: &str = "caisson.dev/version";
/// The label with what runs the VMs: `kvm` or `tcg`.
pub const ACCELERATOR: &str = "caisson.dev/accelerator";

/// The length to which a message is cut: those of conditions and events are no place for a log, and
/// validation limits those of events to 1,024 bytes.
const LONGEST_MESSAGE: usize = 1000;

/// How the node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Being installed for the first time; a node that has been ready stays ready meanwhile.
    Installing,
    /// A VM has run.
    Ready {
        /// `None` where it is not known yet.
        accelerator: Option<String>,
    },
    /// What was wanted, and what the command said.
    Failed {
        wanted: Wanted,
        why: String,
    },
    Removing,
    /// The node is as it was.
    Removed,
}

/// An event that `kubectl describe node` shows.
#[derive(Debug, PartialEq, Eq)]
pub struct NodeEvent {
    /// `Normal` or `Warning`.
    pub kind: &'static str,
    pub reason: &'static str,
    pub message: String,
}

/// The patches that make a node object say what it should; empty where it does already.
#[derive(Debug, Default, PartialEq)]
pub struct Patches {
    /// A merge patch of the node.
    pub labels: Option<Value>,
    /// A strategic merge patch of its status.
    pub status: Option<Value>,
}

impl Standing {
    /// Returns a failure of `wanted`, with the beginning of what was said.
    pub fn failed(wanted: Wanted, why: &str) -> Self {
        Self::Failed {
            wanted,
            why: shortened(why),
        }
    }

    /// Returns status, reason and message of the condition, or `None` where there is to be none.
    fn condition(&self) -> Option<(&'static str, &'static str, String)> {
        let text = |text: &str| text.to_owned();
        Some(match self {
            Self::Installing => ("False", "Installing", text("Caisson is being installed")),
            Self::Ready { accelerator } => {
                let version = env!("CARGO_PKG_VERSION");
                let message = match accelerator {
                    Some(name) => format!("Caisson {version} runs VMs by {name}"),
                    None => format!("Caisson {version} is installed"),
                };
                ("True", "Installed", message)
            }
            Self::Failed {
                wanted: Wanted::Installed,
                why,
            } => ("False", "InstallFailed", why.clone()),
            Self::Failed {
                wanted: Wanted::Removed,
                why,
            } => ("False", "UninstallFailed", why.clone()),
            Self::Removing => ("False", "Uninstalling", text("Caisson is being removed")),
            Self::Removed => return None,
        })
    }

    /// Returns all of Caisson's labels; `None` stands for a label that is to be absent.
    fn labels(&self) -> BTreeMap<&'static str, Option<&str>> {
        let (ready, version, accelerator) = match self {
            Self::Ready { accelerator } => (
                Some("true"),
                Some(env!("CARGO_PKG_VERSION")),
                accelerator.as_deref(),
            ),
            _ => (None, None, None),
        };
        [
            (READY, ready),
            (VERSION, version),
            (ACCELERATOR, accelerator),
        ]
        .into()
    }

    /// Returns the event for this standing, or `None` while something is going on.
    pub fn event(&self) -> Option<NodeEvent> {
        let (kind, reason) = match self {
            Self::Installing | Self::Removing => return None,
            Self::Ready { .. } => ("Normal", "CaissonInstalled"),
            Self::Removed => ("Normal", "CaissonUninstalled"),
            Self::Failed {
                wanted: Wanted::Installed,
                ..
            } => ("Warning", "CaissonInstallFailed"),
            Self::Failed {
                wanted: Wanted::Removed,
                ..
            } => ("Warning", "CaissonUninstallFailed"),
        };
        Some(NodeEvent {
            kind,
            reason,
            message: self.to_string(),
        })
    }

    /// Returns what is to change in `node`. A new installation changes nothing where the node has
    /// the condition already: a ready node stays ready while it gets another version.
    pub fn patches(&self, node: &Node, now: Timestamp) -> Patches {
        let there = condition_of(node);
        if *self == Self::Installing && there.is_some() {
            return Patches::default();
        }
        Patches {
            labels: self.labels_patch(node),
            status: self.status_patch(there, now),
        }
    }

    fn labels_patch(&self, node: &Node) -> Option<Value> {
        let there = |label: &str| node.metadata.labels.as_ref()?.get(label);
        let changes: BTreeMap<_, _> = self
            .labels()
            .into_iter()
            .filter(|(label, value)| there(label).map(String::as_str) != *value)
            .collect();
        // A null removes a label.
        (!changes.is_empty()).then(|| json!({ "metadata": { "labels": changes } }))
    }

    fn status_patch(&self, there: Option<&NodeCondition>, now: Timestamp) -> Option<Value> {
        let condition = match (self.condition(), there) {
            (None, None) => return None,
            (None, Some(_)) => json!({ "type": CONDITION, "$patch": "delete" }),
            (Some((status, reason, message)), there) => {
                let same_status = there.filter(|there| there.status == status);
                if same_status.is_some_and(|there| {
                    there.reason.as_deref() == Some(reason)
                        && there.message.as_deref() == Some(message.as_str())
                }) {
                    return None;
                }
                let since = same_status.and_then(|there| there.last_transition_time.as_ref());
                let since = since.map_or(now, |time| time.0);
                json!({
                    "type": CONDITION,
                    "status": status,
                    "reason": reason,
                    "message": message,
                    "lastHeartbeatTime": seconds(now),
                    "lastTransitionTime": seconds(since),
                })
            }
        };
        Some(json!({ "status": { "conditions": [condition] } }))
    }
}

/// Returns Caisson's condition of a node.
pub fn condition_of(node: &Node) -> Option<&NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|found| found.type_ == CONDITION)
}

/// Returns the beginning of a message, as much as a condition or an event can have.
pub fn shortened(message: &str) -> String {
    let fits = |(at, character): &(usize, char)| at + character.len_utf8() <= LONGEST_MESSAGE;
    let fitting = message.char_indices().take_while(fits);
    fitting.map(|(_, character)| character).collect()
}

/// Formats a time as the API writes it.
pub fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.condition()) {
            (Self::Failed { wanted, why }, _) => {
                let what = match wanted {
                    Wanted::Installed => "installed",
                    Wanted::Removed => "uninstalled",
                };
                write!(f, "Caisson could not be {what}: {why}")
            }
            (_, Some((_, _, message))) => f.write_str(&message),
            (_, None) => f.write_str("Caisson was uninstalled, the node is as it was"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().unwrap()
    }

    fn ready() -> Standing {
        Standing::Ready {
            accelerator: Some("kvm".to_owned()),
        }
    }

    fn node(labels: Value, conditions: Value) -> Node {
        let node =
            json!({ "metadata": { "labels": labels }, "status": { "conditions": conditions } });
        serde_json::from_value(node).unwrap()
    }

    fn other_condition() -> Value {
        json!({ "type": "Ready", "status": "True" })
    }

    fn our_condition(status: &str, reason: &str, message: &str) -> Value {
        json!({
            "type": CONDITION, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2025-01-01T00:00:00Z",
        })
    }

    /// A node that says that it is ready.
    fn ready_node() -> Node {
        let version = env!("CARGO_PKG_VERSION");
        let message = format!("Caisson {version} runs VMs by kvm");
        node(
            json!({ "a": "b", READY: "true", VERSION: version, ACCELERATOR: "kvm" }),
            json!([
                other_condition(),
                our_condition("True", "Installed", &message)
            ]),
        )
    }

    #[test]
    fn new_node_that_is_ready_gets_labels_and_condition() {
        let patches = ready().patches(&node(json!({}), json!([other_condition()])), now());
        let labels = &patches.labels.unwrap()["metadata"]["labels"];
        assert_eq!(labels[READY], "true");
        assert_eq!(labels[VERSION], env!("CARGO_PKG_VERSION"));
        assert_eq!(labels[ACCELERATOR], "kvm");
        let condition = &patches.status.unwrap()["status"]["conditions"][0];
        assert_eq!(condition["type"], CONDITION);
        assert_eq!(condition["status"], "True");
        assert_eq!(condition["lastTransitionTime"], "2026-01-02T03:04:05Z");
    }

    #[test]
    fn node_that_says_so_already_is_left_alone() {
        assert_eq!(ready().patches(&ready_node(), now()), Patches::default());
        let bare = node(json!({ "a": "b" }), json!([other_condition()]));
        assert_eq!(Standing::Removed.patches(&bare, now()), Patches::default());
    }

    #[test]
    fn label_that_somebody_took_away_is_put_back_alone() {
        let mut node = ready_node();
        node.metadata.labels.as_mut().unwrap().remove(READY);
        let patches = ready().patches(&node, now());
        let labels = json!({ "metadata": { "labels": { READY: "true" } } });
        assert_eq!(patches.labels, Some(labels));
        assert_eq!(patches.status, None);
    }

    #[test]
    fn failure_takes_the_labels_and_says_why() {
        let failed = Standing::failed(Wanted::Installed, "no QEMU: install qemu-system-x86");
        let patches = failed.patches(&ready_node(), now());
        let labels = json!({ READY: null, VERSION: null, ACCELERATOR: null });
        assert_eq!(patches.labels.unwrap()["metadata"]["labels"], labels);
        let condition = &patches.status.unwrap()["status"]["conditions"][0];
        assert_eq!(condition["status"], "False");
        assert_eq!(condition["reason"], "InstallFailed");
        assert_eq!(condition["message"], "no QEMU: install qemu-system-x86");
        let event = failed.event().unwrap();
        assert_eq!(
            (event.kind, event.reason),
            ("Warning", "CaissonInstallFailed")
        );
        assert!(event.message.ends_with("no QEMU: install qemu-system-x86"));
    }

    #[test]
    fn another_failure_keeps_the_time_of_the_first() {
        let node = node(
            json!({}),
            json!([our_condition("False", "InstallFailed", "one")]),
        );
        let patches = Standing::failed(Wanted::Installed, "two").patches(&node, now());
        let condition = &patches.status.unwrap()["status"]["conditions"][0];
        assert_eq!(condition["lastTransitionTime"], "2025-01-01T00:00:00Z");
        assert_eq!(condition["lastHeartbeatTime"], "2026-01-02T03:04:05Z");
    }

    #[test]
    fn ready_node_stays_ready_while_it_gets_another_version() {
        let patches = Standing::Installing.patches(&ready_node(), now());
        assert_eq!(patches, Patches::default());
    }

    #[test]
    fn new_node_says_that_it_is_being_installed() {
        let patches = Standing::Installing.patches(&node(json!({}), json!([])), now());
        assert_eq!(patches.labels, None);
        let condition = &patches.status.unwrap()["status"]["conditions"][0];
        assert_eq!(condition["reason"], "Installing");
    }

    #[test]
    fn removal_begins_with_the_labels_and_keeps_a_condition() {
        let patches = Standing::Removing.patches(&ready_node(), now());
        let labels = json!({ READY: null, VERSION: null, ACCELERATOR: null });
        assert_eq!(patches.labels.unwrap()["metadata"]["labels"], labels);
        let condition = &patches.status.unwrap()["status"]["conditions"][0];
        assert_eq!(condition["reason"], "Uninstalling");
    }

    #[test]
    fn removal_ends_without_labels_and_condition() {
        let patches = Standing::Removed.patches(&ready_node(), now());
        let gone = json!([{ "type": CONDITION, "$patch": "delete" }]);
        assert_eq!(patches.status.unwrap()["status"]["conditions"], gone);
        assert!(patches.labels.is_some());
    }

    #[test]
    fn message_that_is_too_long_is_cut_between_characters() {
        let Standing::Failed { why, .. } = Standing::failed(Wanted::Removed, &"ö".repeat(5000))
        else {
            panic!("not a failure");
        };
        assert_eq!(why.len(), LONGEST_MESSAGE);
    }
}
