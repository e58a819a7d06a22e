//! Parses the node's configuration: `/etc/caisson/config.toml`, then the drop-ins in name order.
//! Later files override earlier ones key by key.
//!
//! The caller reads the files; this module parses and checks them. Unknown keys are refused.
//! [`crate::presets`] has the settings of single runtime handlers.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    home::{MAX_SIZE, MIN_SIZE},
    policy::Policy,
    scratch::Scratch,
    Egress, Error, Result,
};

/// What the guest's kernel and agent need to boot, in MiB.
pub const MIN_MEMORY_MIB: u64 = 128;

/// The upper limit of every size in MiB: 16 TiB, the size of the largest home.
const MAX_MIB: u64 = MAX_SIZE >> 20;
/// The upper limit of every timeout in seconds: a day.
const MAX_SECS: u64 = 24 * 60 * 60;

/// The configuration of a node, with defaults filled in.
#[derive(Debug, Clone, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Holds one folder for each pod; it is gone after a reboot.
    pub state_dir: PathBuf,
    /// Holds skills, homes and the guest image, which outlive a reboot.
    pub store_dir: PathBuf,
    pub hypervisor: Hypervisor,
    pub guest: Guest,
    pub vm: Vm,
    pub pool: Pool,
    pub skills: Skills,
    pub homes: Homes,
    /// Which namespaces may use which annotation, skill and source of skills.
    pub policy: Policy,
    pub network: Network,
    pub log: Log,
    /// `[presets.NAME]`: what is different for the pods of one runtime handler.
    pub presets: BTreeMap<String, toml::Table>,
    /// The preset that this configuration has been made for by [`Self::with_preset`].
    #[serde(skip)]
    pub preset: Option<String>,
}

/// `[hypervisor]`: the programs that a VM is made of.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hypervisor {
    pub qemu: PathBuf,
    pub virtiofsd: PathBuf,
    pub vsock_daemon: PathBuf,
    /// `auto` boots a probe VM once per node to see whether KVM works, and falls back to emulation,
    /// which is no security boundary; `kvm` never does.
    pub accelerator: Accelerator,
    /// Each VM runs under its own user from `uid_base .. uid_base + uid_count`. Nothing else may
    /// use these ids.
    pub uid_base: u32,
    pub uid_count: u32,
}

/// What runs the guests' instructions.
#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    Auto,
    Kvm,
    Tcg,
}

/// `[guest]`: the guest image; by default the files in `<store_dir>/guest`.
#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guest {
    pub kernel: Option<PathBuf>,
    pub initramfs: Option<PathBuf>,
    pub modules: Option<PathBuf>,
}

/// `[vm]`: the sizes of VMs, with memory in MiB.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vm {
    /// Cpus that a VM begins with whose containers have no cpu limit.
    pub default_cpus: u32,
    /// The most cpus of a VM whose containers have no cpu limit. It gets them when they have
    /// started.
    pub max_cpus: u32,
    /// Memory that a VM begins with whose containers have no memory limit.
    pub default_memory_mib: u64,
    /// Added to the containers' memory limits for the guest's kernel and agent.
    pub memory_overhead_mib: u64,
    /// The size up to which a running VM can grow.
    pub max_memory_mib: u64,
    /// The most cpus of any VM, whatever its containers' limits are. By default the node's.
    pub limit_cpus: Option<u32>,
    /// The most memory of any VM. A pod whose containers' limits add up to more is refused. By
    /// default the node's.
    pub limit_memory_mib: Option<u64>,
    /// How long the guest has from boot to the agent's first answer, in seconds.
    pub boot_timeout_secs: u64,
    /// The longest time that the guest's agent may take to answer any one request, in seconds. The
    /// default is 8 with KVM and 65 under emulation, where starting a process may take that long.
    pub answer_timeout_secs: Option<u64>,
    /// Whether VMs start from a template, a saved machine that has booted already. The node makes
    /// one after its first pod has started.
    pub templates: bool,
    /// Where the roots and the emptyDirs of pods are kept that do not say so themselves.
    pub scratch: Scratch,
}

/// `[pool]`: VMs that wait for their pods.
#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// The number of VMs that are kept ready. Each takes some 100 MiB of the node's memory, which
    /// no pod accounts for. The first ones are made after the node's first pod has started.
    pub size: u32,
}

/// `[skills]`: the node's store of skills and where it fetches those that it does not have.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Skills {
    /// How much `caisson skill gc` leaves in the store, in MiB.
    pub max_mib: u64,
    /// How long a container waits for skills that are being fetched, in seconds. The kubelet gives
    /// up after 120.
    pub fetch_timeout_secs: u64,
    /// The sources by name, `[skills.sources.NAME]`; they are asked in the order of their names.
    pub sources: BTreeMap<String, SkillSource>,
}

/// `[skills.sources.NAME]`: a source of skills. `type` gives its kind.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum SkillSource {
    /// A directory of the node, such as a network file system.
    Directory { path: PathBuf },
    /// A bucket of an S3-compatible store.
    S3 {
        bucket: String,
        /// The prefix of the objects' names.
        #[serde(default)]
        prefix: String,
        /// A URL; by default Amazon's for the region.
        endpoint: Option<String>,
        region: Option<String>,
        /// `ENDPOINT/BUCKET/…` instead of `BUCKET.ENDPOINT/…`.
        #[serde(default)]
        path_style: bool,
        /// An INI file in the format of the AWS command line, read anew for each fetch. By default
        /// the instance's role is used.
        credentials_file: Option<PathBuf>,
        /// The section of that file; `default` by default.
        profile: Option<String>,
    },
    /// One repository of an OCI registry, in which each skill is an artifact.
    Registry {
        /// `HOST[:PORT]/PATH`.
        repository: String,
        /// HTTP instead of HTTPS.
        #[serde(default)]
        plain_http: bool,
        /// A file with `auths` as in Docker's `config.json`, read anew for each fetch. By default
        /// access is anonymous.
        credentials_file: Option<PathBuf>,
    },
}

/// `[homes]`.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Homes {
    /// The size in MiB of a home whose pod does not give one. Every home has a limit; space that a
    /// home does not use takes nothing from the disk.
    pub size_mib: u64,
    /// The largest size that a pod may ask for, in MiB. With 0 the only limit is the file system's,
    /// 16 TiB.
    pub max_size_mib: u64,
    /// The most that the sizes of all homes of the node may add up to, in MiB. With 0 there is no
    /// limit, so that homes together may fill the node's disk.
    pub node_budget_mib: u64,
    /// The same limit for the homes of each namespace.
    pub namespace_budget_mib: u64,
    /// The same limit for single namespaces by name, `[homes.namespace_budgets_mib]`, instead of
    /// `namespace_budget_mib`.
    pub namespace_budgets_mib: BTreeMap<String, u64>,
    /// How long each of ext4's programs may take to make, check or grow a home, in seconds. The
    /// kubelet gives up after 120.
    pub tool_timeout_secs: u64,
}

/// `[network]`.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Drops packets that a guest sends with a hardware or IP address other than its interface's.
    /// Addresses that something in the pod takes by itself (a virtual address of keepalived, a
    /// bridge to further machines) work only without it.
    pub anti_spoofing: bool,
    /// What pods may open connections to. A pod's annotation can narrow it, never widen it.
    pub egress: Egress,
}

/// `[log]`.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`; applies to shim and agent.
    pub level: String,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            state_dir: "/run/caisson".into(),
            store_dir: "/var/lib/caisson".into(),
            hypervisor: Hypervisor::default(),
            guest: Guest::default(),
            vm: Vm::default(),
            pool: Pool::default(),
            skills: Skills::default(),
            homes: Homes::default(),
            policy: Policy::default(),
            network: Network::default(),
            log: Log::default(),
            presets: BTreeMap::new(),
            preset: None,
        }
    }
}

impl Default for Hypervisor {
    fn default() -> Self {
        Self {
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            virtiofsd: "/usr/libexec/caisson/virtiofsd".into(),
            vsock_daemon: "/usr/libexec/caisson/vhost-device-vsock".into(),
            accelerator: Accelerator::Auto,
            uid_base: 1_878_982_656,
            uid_count: 65_536,
        }
    }
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            default_cpus: 1,
            max_cpus: 8,
            default_memory_mib: 512,
            memory_overhead_mib: 128,
            max_memory_mib: 8192,
            limit_cpus: None,
            limit_memory_mib: None,
            boot_timeout_secs: 60,
            answer_timeout_secs: None,
            templates: true,
            scratch: Scratch::Shared,
        }
    }
}

impl Default for Skills {
    fn default() -> Self {
        Self {
            max_mib: 20 * 1024,
            fetch_timeout_secs: 100,
            sources: BTreeMap::new(),
        }
    }
}

impl Default for Homes {
    fn default() -> Self {
        Self {
            size_mib: 10 * 1024,
            max_size_mib: 50 * 1024,
            node_budget_mib: 0,
            namespace_budget_mib: 0,
            namespace_budgets_mib: BTreeMap::new(),
            tool_timeout_secs: 60,
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            anti_spoofing: true,
            egress: Egress::Open,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
        }
    }
}

impl NodeConfig {
    /// Merges the files over the defaults. They are given as (path, text) in the order of reading.
    pub fn parse(files: &[(String, String)]) -> Result<Self> {
        let mut merged = toml::Table::new();
        for (file, text) in files {
            let refuse = |source| Error::Config {
                file: file.clone(),
                source: Box::new(source),
            };
            // Check each file alone first, so that an error names the right file and line.
            toml::from_str::<Self>(text).map_err(refuse)?;
            merge(&mut merged, toml::from_str(text).map_err(refuse)?);
        }
        let config: Self = merged.try_into().map_err(|source| Error::Config {
            file: "(merged)".to_owned(),
            source: Box::new(source),
        })?;
        config.check()?;
        for name in config.presets.keys() {
            config.with_preset(name)?;
        }
        Ok(config)
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.policy.check()?;
        let any = u64::from(u32::MAX);
        let (vm, skills) = (&self.vm, &self.skills);
        let uids = u64::from(self.hypervisor.uid_count);
        let ranges = [
            ("vm.default_cpus", u64::from(vm.default_cpus), 1..=any),
            ("vm.max_cpus", u64::from(vm.max_cpus), 1..=any),
            (
                "vm.limit_cpus",
                u64::from(vm.limit_cpus.unwrap_or(1)),
                1..=any,
            ),
            (
                "vm.limit_memory_mib",
                vm.limit_memory_mib.unwrap_or(MIN_MEMORY_MIB),
                MIN_MEMORY_MIB..=MAX_MIB,
            ),
            ("vm.boot_timeout_secs", vm.boot_timeout_secs, 1..=MAX_SECS),
            (
                "vm.answer_timeout_secs",
                vm.answer_timeout_secs.unwrap_or(1),
                1..=MAX_SECS,
            ),
            (
                "vm.memory_overhead_mib",
                vm.memory_overhead_mib,
                0..=MAX_MIB,
            ),
            ("vm.max_memory_mib", vm.max_memory_mib, 0..=MAX_MIB),
            ("hypervisor.uid_count", uids, 1..=any),
            (
                "skills.fetch_timeout_secs",
                skills.fetch_timeout_secs,
                1..=MAX_SECS,
            ),
            ("skills.max_mib", skills.max_mib, 0..=MAX_MIB),
            (
                "homes.tool_timeout_secs",
                self.homes.tool_timeout_secs,
                1..=MAX_SECS,
            ),
        ];
        for (key, value, range) in ranges {
            if !range.contains(&value) {
                return Err(Error::ConfigValue {
                    key,
                    reason: format!(
                        "is {value}, must be between {} and {}",
                        range.start(),
                        range.end()
                    ),
                });
            }
        }
        if !(MIN_MEMORY_MIB..=MAX_MIB).contains(&self.vm.default_memory_mib) {
            return Err(Error::ConfigValue {
                key: "vm.default_memory_mib",
                reason: format!(
                    "is {}, a guest needs {MIN_MEMORY_MIB} at least and has {MAX_MIB} at most",
                    self.vm.default_memory_mib
                ),
            });
        }
        let sizes = MIN_SIZE >> 20..=MAX_SIZE >> 20;
        if !sizes.contains(&self.homes.size_mib) {
            return Err(Error::ConfigValue {
                key: "homes.size_mib",
                reason: format!(
                    "is {}, must be between {} and {}",
                    self.homes.size_mib,
                    sizes.start(),
                    sizes.end()
                ),
            });
        }
        let (size, most) = (self.homes.size_mib, self.homes.max_size_mib);
        if most != 0 && size > most {
            return Err(Error::ConfigValue {
                key: "homes.size_mib",
                reason: format!(
                    "is {size}, more than a home may have (homes.max_size_mib, {most})"
                ),
            });
        }
        let last_uid = self
            .hypervisor
            .uid_base
            .checked_add(self.hypervisor.uid_count);
        if self.hypervisor.uid_base < 1000 || last_uid.is_none() {
            return Err(Error::ConfigValue {
                key: "hypervisor.uid_base",
                reason: "with uid_count must be a range between 1000 and 4294967295".to_owned(),
            });
        }
        if !matches!(
            self.log.level.as_str(),
            "error" | "warn" | "info" | "debug" | "trace"
        ) {
            return Err(Error::ConfigValue {
                key: "log.level",
                reason: format!(
                    "{:?} is not one of error, warn, info, debug, trace",
                    self.log.level
                ),
            });
        }
        Ok(())
    }
}

/// Merges one table into another, key by key: tables are merged, everything else is replaced.
pub fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Result<NodeConfig> {
        let files: Vec<_> = texts
            .iter()
            .enumerate()
            .map(|(n, text)| (format!("{n}.toml"), (*text).to_owned()))
            .collect();
        NodeConfig::parse(&files)
    }

    fn message(error: Error) -> String {
        match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }
    }

    #[test]
    fn config_without_files_is_the_default() {
        assert_eq!(parse(&[]).unwrap(), NodeConfig::default());
    }

    #[test]
    fn config_drop_in_changes_its_keys_only() {
        let config = parse(&[
            "[vm]\ndefault_cpus = 2\ndefault_memory_mib = 300",
            "[vm]\ndefault_cpus = 4",
        ])
        .unwrap();
        assert_eq!(
            (config.vm.default_cpus, config.vm.default_memory_mib),
            (4, 300)
        );
    }

    #[test]
    fn config_with_unknown_key_is_refused_naming_file_and_key() {
        let error = message(parse(&["", "[vm]\ncpus = 2"]).unwrap_err());
        assert!(
            error.contains("1.toml") && error.contains("cpus"),
            "{error}"
        );
    }

    #[test]
    fn config_sources_of_several_files_are_all_there() {
        let config = parse(&[
            "[skills.sources.shared]\ntype = 'directory'\npath = '/srv/skills'",
            "[skills.sources.company]\ntype = 's3'\nbucket = 'skills'\nregion = 'eu-central-1'",
        ])
        .unwrap();
        let names: Vec<_> = config.skills.sources.keys().collect();
        assert_eq!(names, ["company", "shared"]);
    }

    /// The keys of a table and of those in it, with what they hold.
    fn leaves(prefix: &str, value: &toml::Value, found: &mut BTreeMap<String, toml::Value>) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    leaves(&format!("{prefix}{key}."), value, found);
                }
            }
            leaf => drop(found.insert(prefix.to_owned(), leaf.clone())),
        }
    }

    #[test]
    fn documented_configuration_has_every_key_with_its_default() {
        let page = include_str!("../../docs/configuration.md");
        let block = page.split("```").nth(1).unwrap();
        let block = block.strip_prefix("toml").unwrap();
        assert_eq!(parse(&[block]).unwrap(), NodeConfig::default());
        let (mut documented, mut all) = (BTreeMap::new(), BTreeMap::new());
        leaves("", &toml::from_str(block).unwrap(), &mut documented);
        let default = toml::Value::try_from(NodeConfig::default()).unwrap();
        leaves("", &default, &mut all);
        assert_eq!(documented, all);
        // What has no default is commented out.
        let whole = parse(&[&block.replace("\n# ", "\n")]).unwrap();
        let guest = whole.guest;
        assert!(guest.kernel.is_some() && guest.initramfs.is_some() && guest.modules.is_some());
        assert!(whole.vm.answer_timeout_secs.is_some());
    }

    #[test]
    fn config_source_of_an_unknown_type_is_refused() {
        let error = message(parse(&["[skills.sources.x]\ntype = 'ftp'"]).unwrap_err());
        assert!(error.contains("ftp"), "{error}");
    }

    #[test]
    fn config_with_bad_values_is_refused_naming_the_key() {
        for (text, key) in [
            ("[vm]\ndefault_cpus = 0", "vm.default_cpus"),
            ("[vm]\ndefault_memory_mib = 1", "vm.default_memory_mib"),
            (
                "[vm]\nmax_memory_mib = 9223372036854775807",
                "vm.max_memory_mib",
            ),
            (
                "[vm]\nboot_timeout_secs = 9223372036854775807",
                "vm.boot_timeout_secs",
            ),
            ("[vm]\nanswer_timeout_secs = 0", "vm.answer_timeout_secs"),
            ("[skills]\nmax_mib = 9223372036854775807", "skills.max_mib"),
            ("[homes]\nsize_mib = 1", "homes.size_mib"),
            ("[homes]\nmax_size_mib = 1024", "homes.size_mib"),
            ("[homes]\ntool_timeout_secs = 0", "homes.tool_timeout_secs"),
            ("[log]\nlevel = 'loud'", "log.level"),
            ("[hypervisor]\nuid_base = 0", "hypervisor.uid_base"),
        ] {
            let error = message(parse(&[text]).unwrap_err());
            assert!(error.contains(key), "{error}");
        }
    }
}
