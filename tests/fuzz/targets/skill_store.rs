//! Fuzzes the store of skills, over a folder that may contain anything.
#![no_main]

use std::{fs, os::unix::fs::symlink, path::Path};

use arbitrary::Arbitrary;
use caisson_fuzz::{is_file_name, memory};
use caisson_node::skills::{Skill, SkillStore};
use caisson_oci::annotations::SkillRef;
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 32 << 20;

#[derive(Arbitrary, Debug)]
struct Node<'a> {
    entries: Vec<Entry<'a>>,
    steps: Vec<Step<'a>>,
}

#[derive(Arbitrary, Debug)]
struct Entry<'a> {
    name: Name<'a>,
    what: What<'a>,
}

#[derive(Arbitrary, Debug)]
enum Name<'a> {
    Digest(u8),
    Manifest(u8),
    Part(&'a str),
    Any(&'a str),
}

#[derive(Arbitrary, Debug)]
enum What<'a> {
    Squashfs,
    Manifest {
        name: &'a str,
        version: Option<&'a str>,
        digest: u8,
        size: u64,
        created: u64,
        verity: Option<u64>,
    },
    Bytes(&'a [u8]),
    Folder,
    /// A link to what lies beside the store.
    Link,
}

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    List,
    Get(&'a str),
    GetDigest(u8),
    Open(u8),
    Verify(u8),
    Remove(u8),
    Add(&'a str),
    Gc(u64),
}

fn digest(number: u8) -> String {
    format!("{:064x}", number % 4)
}

impl Name<'_> {
    fn of(&self) -> String {
        match self {
            Self::Digest(number) => digest(*number),
            Self::Manifest(number) => format!("{}.json", digest(*number)),
            Self::Part(name) => format!(".part-{name}"),
            Self::Any(name) => (*name).to_owned(),
        }
    }
}

fuzz_target!(|node: Node| {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let beside = dir.path().join("beside");
    fs::write(&beside, "hsqs of somebody else").expect("a file");
    let folder = dir.path().join("store/skills");
    fs::create_dir_all(&folder).expect("a folder");
    for entry in node.entries.iter().take(16) {
        let name = entry.name.of();
        if is_file_name(&name) && name.len() < 200 && !name.contains('\0') {
            lay(&folder.join(name), &entry.what, &beside);
        }
    }
    let store = SkillStore::new(&dir.path().join("store"));
    memory::bounded(LIMIT, || {
        node.steps
            .iter()
            .take(16)
            .for_each(|step| take(&store, step, dir.path()))
    });
    // Whatever lies in the store, everything outside it stays.
    let mut names: Vec<_> = fs::read_dir(dir.path())
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.retain(|name| name != "source");
    names.sort();
    assert_eq!(names, ["beside", "store"]);
    assert_eq!(
        fs::read(&beside).expect("the file beside"),
        b"hsqs of somebody else"
    );
});

/// Creates an entry, but not through a link made by an earlier entry.
fn lay(path: &Path, what: &What, beside: &Path) {
    if path.is_symlink() {
        return;
    }
    let _ = match what {
        What::Squashfs => fs::write(path, "hsqs and the rest"),
        What::Bytes(bytes) => fs::write(path, bytes),
        What::Folder => fs::create_dir(path),
        What::Link => symlink(beside, path),
        What::Manifest {
            name,
            version,
            digest: number,
            size,
            created,
            verity,
        } => {
            let mut manifest = serde_json::json!({"name": name, "digest": digest(*number), "size": size, "created": created});
            if let Some(version) = version {
                manifest["version"] = (*version).into();
            }
            if let Some(blocks) = verity {
                manifest["verity"] =
                    serde_json::json!({"root_hash": digest(0), "data_blocks": blocks});
            }
            fs::write(path, manifest.to_string())
        }
    };
}

fn take(store: &SkillStore, step: &Step, dir: &Path) {
    let by_digest = |number: u8| store.get(&SkillRef::Digest(digest(number)));
    let check = |skill: &Skill| {
        assert!(
            skill.check().is_ok() && store.path(skill).parent() == Some(&dir.join("store/skills")),
            "{skill:?}"
        );
    };
    match step {
        Step::List => store.list().iter().flatten().for_each(check),
        Step::Get(wanted) => {
            let wanted =
                SkillRef::parse(wanted).unwrap_or_else(|| SkillRef::Digest((*wanted).to_owned()));
            store.get(&wanted).iter().for_each(check);
        }
        Step::GetDigest(number) => {
            if let Ok(skill) = by_digest(*number) {
                check(&skill);
                assert_eq!(
                    skill.digest,
                    digest(*number),
                    "another skill than was asked for"
                );
            }
        }
        Step::Open(number) => {
            if let Ok(skill) = by_digest(*number) {
                let _ = store.open(&skill);
            }
        }
        Step::Verify(number) => {
            if let Ok(skill) = by_digest(*number) {
                let _ = store.verify(&skill);
            }
        }
        Step::Remove(number) => {
            if let Ok(skill) = by_digest(*number) {
                let _ = store.remove(&skill);
            }
        }
        Step::Add(name) => {
            let source = dir.join("source");
            fs::write(&source, "hsqs that is new").expect("a file");
            let added = store.add(&source, Skill::named(name));
            if let Ok(skill) = &added {
                check(skill);
                assert_eq!(
                    store
                        .get(&SkillRef::Digest(skill.digest.clone()))
                        .ok()
                        .as_ref(),
                    Some(skill)
                );
            }
        }
        Step::Gc(most) => {
            if let Ok(removed) = store.gc(*most) {
                removed.iter().for_each(check);
                let left = store.list().map_or(0, |left| left.len());
                let again = store.gc(*most).expect("gc again");
                assert!(
                    again.is_empty() && store.list().map_or(0, |left| left.len()) == left,
                    "more at the second time"
                );
            }
        }
    }
}
