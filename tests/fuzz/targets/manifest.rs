//! Fuzzes a skill's manifest.
#![no_main]

use caisson_fuzz::{is_file_name, is_plain_path, json, memory};
use caisson_node::skills::{place, serial, Skill, VERITY_BLOCK};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

const LIMIT: usize = 4 << 20;

const WORDS: &[&str] = &[
    "name",
    "version",
    "digest",
    "size",
    "mount_path",
    "created",
    "verity",
    "root_hash",
    "data_blocks",
    "pptx",
    "..",
    "/",
    "/a/../b",
    "/usr/lib/pptx",
    "//",
    "/./a",
    "a/b",
    "\0",
    "\n",
    "1.4",
    "latest",
    "0000000000000000000000000000000000000000000000000000000000000000",
];

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    json::mutate(data, size, max_size, seed, WORDS)
});

fuzz_target!(|text: &[u8]| memory::bounded(LIMIT, || check(text)));

fn check(text: &[u8]) {
    let Ok(skill) = Skill::parse(text) else {
        return;
    };
    assert!(
        is_file_name(&skill.name) && is_file_name(&skill.digest),
        "{skill:?}"
    );
    assert!(
        skill.version.iter().all(|version| is_file_name(version)),
        "{skill:?}"
    );
    for target in [skill.target(None), skill.target(Some("named"))] {
        assert!(
            is_plain_path(&target) && target.parent().is_some(),
            "{target:?}"
        );
    }
    assert!(is_plain_path(&place(&skill)) && serial(&skill).len() <= 20);
    if let Some(verity) = &skill.verity {
        assert!(
            verity
                .data_blocks
                .checked_mul(VERITY_BLOCK)
                .is_some_and(|data| data < skill.size),
            "{skill:?}"
        );
    }
    let again = serde_json::to_vec(&skill).expect("a manifest in JSON");
    assert_eq!(Skill::parse(&again).expect("the manifest again"), skill);
}
