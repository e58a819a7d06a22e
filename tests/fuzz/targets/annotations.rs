//! Fuzzes the annotations of a pod.
#![no_main]

use std::collections::{HashMap, HashSet};

use caisson_fuzz::{is_file_name, is_plain_path, json, memory, told};
use caisson_oci::{
    annotations::{Annotations, SkillRef, MAX_SKILLS, PREFIX},
    home::HomeKind,
    secrets,
};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

const MAX_TOLD: usize = 2048;
const LIMIT: usize = 8 << 20;

const WORDS: &[&str] = &[
    "caisson.dev/",
    "caisson.dev/skills",
    "caisson.dev/skills.web",
    "caisson.dev/devices",
    "caisson.dev/secret-fd",
    "caisson.dev/secret-fd.web",
    "caisson.dev/home",
    "caisson.dev/home-size",
    "caisson.dev/home-path",
    "caisson.dev/egress",
    "caisson.dev/claim",
    "allow: a.org:443, *.b.org, 10.0.0.0/8, [2001:db8::/32]:80",
    "io.kubernetes.cri.container-name",
    "web",
    "sha256:",
    "a@1",
    "docx@1.4",
    "d=docx@latest",
    ",",
    "=",
    "@",
    "/",
    "..",
    "../",
    "\n",
    "sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "db/password=PASSWORD",
    "tls/tls.key=KEY",
    "fuse",
    "tun",
    "ephemeral",
    "persistent/a",
    "512Mi",
    "1e9",
    "1.5Gi",
    "16Ti",
    "1e18446744073709551616",
    "0.000000000000000001Pi",
    "/home/x",
    "/a/../b",
    "\u{1b}[31m",
    "\u{200b}",
    "٣",
];

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    json::mutate(data, size, max_size, seed, WORDS)
});

fuzz_target!(|text: &[u8]| {
    if let Ok(given) = serde_json::from_slice::<HashMap<String, String>>(text) {
        memory::bounded(LIMIT, || check(&given));
    }
});

fn check(given: &HashMap<String, String>) {
    let parsed = match Annotations::parse(given) {
        Ok(parsed) => parsed,
        Err(error) => {
            let told = told(&error);
            assert!(told.len() <= MAX_TOLD, "a long error");
            return;
        }
    };
    assert!(parsed.skills.len() <= MAX_SKILLS && parsed.secret_fds.len() <= secrets::MAX);
    for wish in &parsed.skills {
        assert!(wish.name.iter().all(|name| is_file_name(name)), "{wish:?}");
        assert_eq!(
            SkillRef::parse(&wish.skill.to_string()).as_ref(),
            Some(&wish.skill)
        );
        if let SkillRef::Version { name, version } = &wish.skill {
            assert!(is_file_name(name) && is_file_name(version), "{wish:?}");
        }
    }
    let mut variables = HashSet::new();
    for secret in &parsed.secret_fds {
        assert!(
            is_file_name(&secret.volume) && is_file_name(&secret.key),
            "{secret:?}"
        );
        assert!(
            variables.insert(&secret.variable) && !secret.variable.contains(['=', '\0']),
            "{secret:?}"
        );
    }
    if let Some(home) = &parsed.home {
        assert!(
            home.path
                .iter()
                .all(|path| is_plain_path(path) && path.parent().is_some()),
            "{home:?}"
        );
        if let HomeKind::Persistent { name } = &home.kind {
            assert!(is_file_name(name), "{home:?}");
        }
    }
    if let Some(egress) = &parsed.egress {
        assert_eq!(egress.to_string().parse().as_ref(), Ok(egress));
        assert_eq!(egress.narrow(Some(egress)).as_ref().ok(), Some(egress));
    }
    // Annotations that are not Caisson's change only the owner of skills and secrets.
    let ours = |(key, _): &(&String, &String)| key.starts_with(PREFIX);
    let alone: HashMap<_, _> = given
        .iter()
        .filter(ours)
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let alone = Annotations::parse(&alone).expect("the same without what is not ours");
    assert_eq!(alone.home, parsed.home);
    assert!(parsed.skills.starts_with(&alone.skills));
}
