//! Presets: settings of the node for the pods of one runtime handler. They replace the node's own
//! key by key, after all files have been read.
//!
//! ```toml
//! [presets.strict.hypervisor]
//! accelerator = "kvm"
//!
//! [presets.strict.policy]
//! privileges = []
//! ```
//!
//! A pod chooses its preset by its RuntimeClass, and no annotation changes a setting. Hence only
//! [`KEYS`] can be set: the others say what the node has, which all of its pods share.

use crate::{error::shorten, Error, NodeConfig, Result};

/// The keys and whole tables that a preset can set.
pub const KEYS: &[&str] = &[
    "homes.max_size_mib",
    "homes.size_mib",
    "hypervisor.accelerator",
    "log",
    "network",
    "policy",
    "pool.size",
    "vm",
];

/// The most characters of a preset's name: a handler's name is a DNS label with it.
const MAX_NAME: usize = 40;

impl NodeConfig {
    /// Returns the configuration for the pods of a preset.
    pub fn with_preset(&self, name: &str) -> Result<Self> {
        let refuse = |reason: String| Error::Preset {
            preset: shorten(name),
            reason,
        };
        if !is_name(name) {
            return Err(refuse(format!(
                "a preset's name has 1 to {MAX_NAME} lower-case letters, digits and '-'"
            )));
        }
        let Some(preset) = self.presets.get(name) else {
            return Err(refuse(
                "the node has no such preset; add the table, or reinstall what names the preset"
                    .to_owned(),
            ));
        };
        if let Some(key) = keys(preset).find(|key| !is_settable(key)) {
            return Err(refuse(format!(
                "{} is not a setting of a preset; these are: {}",
                shorten(&key),
                KEYS.join(", ")
            )));
        }
        let reason = |error: &dyn std::error::Error| refuse(error.to_string());
        let mut merged = toml::Table::try_from(self).map_err(|error| reason(&error))?;
        merged.remove("presets");
        forget_devices(&mut merged, preset);
        crate::config::merge(&mut merged, preset.clone());
        let config: Self = merged
            .try_into()
            .map_err(|error: toml::de::Error| refuse(error.message().to_owned()))?;
        config.check().map_err(|error| reason(&error))?;
        if config.pool.size != 0 && config.pool.size != self.pool.size {
            return Err(refuse(
                "pool.size is 0, so that its pods take no VM from the node's pool, or left out"
                    .to_owned(),
            ));
        }
        Ok(Self {
            preset: Some(name.to_owned()),
            ..config
        })
    }
}

fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=MAX_NAME).contains(&name.len())
        && name.chars().all(plain)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Returns the dotted keys of the two upper levels.
fn keys(preset: &toml::Table) -> impl Iterator<Item = String> + '_ {
    preset.iter().flat_map(|(table, value)| match value {
        toml::Value::Table(inner) => inner.keys().map(|key| format!("{table}.{key}")).collect(),
        _ => vec![table.clone()],
    })
}

fn is_settable(key: &str) -> bool {
    let table = key.split_once('.').map(|(table, _)| table);
    KEYS.iter()
        .any(|known| *known == key || table == Some(*known))
}

/// Removes what the node's policy says of single devices, if the preset says something of all.
/// Otherwise the more specific entry would decide.
fn forget_devices(node: &mut toml::Table, preset: &toml::Table) {
    let annotations = |table: &toml::Table| {
        let table = table.get("policy")?.get("annotations")?.as_table()?;
        Some(table.keys().cloned().collect::<Vec<_>>())
    };
    let said = annotations(preset).unwrap_or_default();
    let of_node = node
        .get_mut("policy")
        .and_then(|policy| policy.get_mut("annotations"));
    if let Some(of_node) = of_node.and_then(toml::Value::as_table_mut) {
        let is_of = |key: &str| key.split_once('=').map(|(key, _)| key.to_owned());
        of_node.retain(|key, _| is_of(key).is_none_or(|key| !said.contains(&key)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{annotations, config::Accelerator};

    fn config(text: &str) -> Result<NodeConfig> {
        NodeConfig::parse(&[("config.toml".to_owned(), text.to_owned())])
    }

    #[test]
    fn preset_replaces_its_keys_and_keeps_the_nodes() {
        let node = config(
            "[vm]\ndefault_cpus = 2\n[homes]\nsize_mib = 64\n\
             [presets.strict]\nhypervisor.accelerator = 'kvm'\nvm.limit_cpus = 1",
        )
        .unwrap();
        let strict = node.with_preset("strict").unwrap();
        assert_eq!(strict.hypervisor.accelerator, Accelerator::Kvm);
        assert_eq!(strict.vm.limit_cpus, Some(1));
        assert_eq!((strict.vm.default_cpus, strict.homes.size_mib), (2, 64));
        assert_eq!(strict.preset.as_deref(), Some("strict"));
        assert_eq!(node.hypervisor.accelerator, Accelerator::Auto);
        assert_eq!((node.vm.limit_cpus, node.preset), (None, None));
    }

    #[test]
    fn preset_decides_for_all_devices_where_the_node_has_allowed_one() {
        let node = config(
            "[policy.annotations]\n'caisson.dev/devices=fuse' = ['ci']\n'caisson.dev/home' = []\n\
             [presets.strict.policy.annotations]\n'caisson.dev/devices' = []\n\
             [presets.plain.policy.annotations]\n'caisson.dev/home' = ['*']",
        )
        .unwrap();
        let allows = |preset: &str, key: &str, value: &str| {
            let given = [(key.to_owned(), value.to_owned())].into();
            let policy = node.with_preset(preset).unwrap().policy;
            policy.check_annotations(&given, "ci").is_ok()
        };
        assert!(!allows("strict", annotations::DEVICES, "fuse"));
        assert!(allows("plain", annotations::DEVICES, "fuse"));
        assert!(!allows("strict", annotations::HOME, "ephemeral"));
        assert!(allows("plain", annotations::HOME, "ephemeral"));
    }

    #[test]
    fn setting_that_a_preset_cannot_have_is_refused_by_preset_and_key() {
        for (text, part) in [
            ("state_dir = '/x'", "state_dir is not a setting of a preset"),
            ("hypervisor.qemu = '/x'", "hypervisor.qemu is not a setting"),
            ("homes.node_budget_mib = 1", "homes.node_budget_mib is not"),
            ("vm.nosuch = 1", "unknown field `nosuch`"),
            ("vm.limit_cpus = 0", "vm.limit_cpus: is 0"),
            ("vm.limit_memory_mib = 64", "vm.limit_memory_mib: is 64"),
            ("pool.size = 3", "pool.size is 0"),
            ("policy.annotations = { x = [] }", "\"x\" is none of"),
            ("presets.x = {}", "presets.x is not a setting"),
        ] {
            let error = config(&format!("[presets.strict]\n{text}")).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("[presets.strict]: "), "{error}");
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn preset_without_a_name_of_a_label_is_refused() {
        for name in ["Strict", "-a", "a-", "a.b", &"a".repeat(41)] {
            let error = config(&format!("[presets.{name:?}]")).unwrap_err();
            assert!(error.to_string().contains("lower-case"), "{error}");
        }
        config(&format!("[presets.{}]", "a".repeat(40))).unwrap();
    }

    #[test]
    fn preset_that_the_node_does_not_have_is_named() {
        let error = NodeConfig::default().with_preset("gone").unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("[presets.gone]: the node has no such"),
            "{error}"
        );
    }

    #[test]
    fn preset_can_leave_the_pool_alone() {
        let node = config("[pool]\nsize = 2\n[presets.batch]\npool.size = 0\n[presets.b]").unwrap();
        assert_eq!(node.with_preset("batch").unwrap().pool.size, 0);
        assert_eq!(node.with_preset("b").unwrap().pool.size, 2);
    }
}
