//! Fuzzes the node's configuration, in one file or several. A line of `---` ends a file.
#![no_main]

use caisson_fuzz::{memory, told};
use caisson_oci::{config::MIN_MEMORY_MIB, home, Limits, Node, NodeConfig};
use libfuzzer_sys::fuzz_target;

const MAX_TOLD: usize = 64 << 10;
const LIMIT: usize = 64 << 20;

fuzz_target!(|text: &str| memory::bounded(LIMIT, || check(text)));

fn check(text: &str) {
    let named = |(number, text): (usize, &str)| (format!("{number}.toml"), text.to_owned());
    let files: Vec<_> = text
        .split("\n---\n")
        .take(4)
        .enumerate()
        .map(named)
        .collect();
    let config = match NodeConfig::parse(&files) {
        Ok(config) => config,
        Err(error) => {
            assert!(told(&error).len() <= MAX_TOLD, "a long error");
            return;
        }
    };
    let twice: Vec<_> = files.iter().chain(&files).cloned().collect();
    assert_eq!(
        NodeConfig::parse(&twice).expect("the same files again"),
        config
    );
    assert!(config.vm.default_cpus > 0 && config.vm.default_memory_mib >= MIN_MEMORY_MIB);
    let size = config.homes.size_mib << 20;
    assert!((home::MIN_SIZE..=home::MAX_SIZE).contains(&size));
    assert!(config
        .hypervisor
        .uid_base
        .checked_add(config.hypervisor.uid_count)
        .is_some());
    for preset in config.presets.keys() {
        let of_preset = config
            .with_preset(preset)
            .expect("a preset that was checked");
        assert_eq!(of_preset.state_dir, config.state_dir);
        assert_eq!(of_preset.hypervisor.qemu, config.hypervisor.qemu);
    }
    let node = Node {
        vm: &config.vm,
        cpus: 8,
        memory_mib: 16_384,
    };
    for memory in [None, Some(1), Some(u64::MAX)] {
        let limits = Limits {
            cpu_milli: memory,
            memory,
        };
        let size = node.size([limits, Limits::default()]);
        assert!((1..=8).contains(&size.cpus) && size.memory_mib >= MIN_MEMORY_MIB);
        // The shim converts these sizes to bytes.
        assert!(
            size.memory_mib.checked_mul(1 << 20).is_some() || memory == Some(u64::MAX),
            "{size:?}"
        );
    }
    for mib in [config.vm.max_memory_mib, config.skills.max_mib] {
        assert!(mib.checked_mul(1 << 20).is_some(), "{mib} MiB");
    }
}
