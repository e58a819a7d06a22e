//! Tests the skills of pods: how many there can be, the host files behind them, and files made to
//! do harm.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{ensure, Context, Result};
use caisson_tests::{
    cri::{CriNode, Pod},
    image,
    node::LONG,
    skill, Node,
};
use rstest::rstest;

const SKILLS: &str = "caisson.dev/skills";
const MIB: usize = 1 << 20;

#[rstest]
fn skills_of_a_pod_are_those_that_were_packed(#[values(1, 5, 16)] count: usize) -> Result<()> {
    let node = CriNode::shared();
    let pod = pod_with(node, &skills(node, count)?)?;
    let container = sleeping(&pod)?;
    let told = container.sh("cd /opt/skills && cat */SKILL.md && stat -c '%a %n' */bin/tool")?;
    let mut names: Vec<_> = (0..count).map(|n| format!("s{n}")).collect();
    names.sort();
    let texts = names.iter().map(|name| format!("# {name}"));
    let modes = names.iter().map(|name| format!("755 {name}/bin/tool"));
    assert_eq!(told, texts.chain(modes).collect::<Vec<_>>().join("\n"));
    Ok(())
}

#[test]
fn seventeen_skills_are_refused() -> Result<()> {
    let node = CriNode::shared();
    let error = match pod_with(node, &skills(node, 17)?) {
        Ok(pod) => sleeping(&pod).err().context("the container has started")?,
        Err(error) => error,
    };
    let error = format!("{error:#}");
    assert!(error.contains("17 skills, at most 16"), "{error}");
    Ok(())
}

#[test]
fn disk_of_a_skill_is_not_written_to_by_a_privileged_container() -> Result<()> {
    let node = CriNode::shared();
    let digest = packed(node, "raw")?;
    let before = image::sha256(fs::File::open(skill::file(node, &digest))?)?;
    let pod = node.pod().privileged().annotation(SKILLS, &digest);
    let pod = pod.start()?;
    let container = pod.container("busybox").privileged();
    let container = container.args(["sleep", "1000"]).start()?;
    let line = "disk=$(grep ' /opt/skills/raw ' /proc/self/mountinfo | sed 's/.* - //' | cut -d' ' -f2); \
                test -b $disk && echo is there; mount -o remount,rw /opt/skills/raw; echo x > /opt/skills/raw/SKILL.md; \
                blockdev --setrw $disk; dd if=/dev/zero of=$disk bs=4096 count=1 conv=fsync && echo written";
    let output = container.exec(["sh", "-c", line])?;
    assert_eq!(output.line(), "is there", "{}", output.errors());
    let file = fs::File::open(skill::file(node, &digest))?;
    assert_eq!(image::sha256(file)?, before);
    Ok(())
}

#[test]
fn pods_have_the_same_file_of_a_skill() -> Result<()> {
    let node = CriNode::shared();
    let digest = packed(node, "shared")?;
    let file = fs::metadata(skill::file(node, &digest))?;
    for _ in 0..2 {
        let pod = pod_with(node, &digest)?;
        let _container = sleeping(&pod)?;
        let qemu = format!("/proc/{}/fd", pod.vmm()?);
        let open = fs::read_dir(qemu)?.filter_map(|fd| fs::metadata(fd.ok()?.path()).ok());
        let open: BTreeSet<_> = open.map(|open| (open.dev(), open.ino())).collect();
        assert!(open.contains(&(file.dev(), file.ino())));
    }
    Ok(())
}

/// A change that damages a good squashfs.
type Harm = fn(&mut Vec<u8>) -> Result<()>;

/// The container or its reads fail. The pod ends properly, and another pod does not notice.
#[rstest]
#[case::cut_in_half("half", cut_in_half)]
#[case::with_bits_changed("bits", change_bits)]
#[case::with_a_folder_in_itself("loop", put_in_itself)]
#[case::of_a_size_that_it_has_not("size", claim_a_size)]
fn skill_that_is_broken_harms_its_own_pod_alone(
    #[case] name: &str,
    #[case] harm: Harm,
) -> Result<()> {
    let node = CriNode::shared();
    let tree = good_tree(node, name)?;
    let file = node.dir().join(format!("{name}.squashfs"));
    // Nothing is compressed, so that the bytes to change can be found.
    skill::squashfs(&tree, &["-noI", "-noD", "-noF", "-noX"], &file)?;
    let mut bytes = fs::read(&file)?;
    harm(&mut bytes)?;
    fs::write(&file, &bytes)?;
    let digest = skill::add(node, name, &file)?;
    let neighbour = pod_with(node, &packed(node, "neighbour")?)?;
    let neighbours = sleeping(&neighbour)?;
    let pod = pod_with(node, &digest)?;
    let line = format!("find /opt/skills/{name} -type f -exec md5sum {{}} + && echo unharmed");
    let told = match pod.container("busybox").sh(&line).run_within(LONG) {
        Ok(output) => format!("{}{}", output.text(), output.errors()),
        Err(error) => format!("{error:#}"),
    };
    assert!(!told.contains("unharmed"), "{told}");
    assert!(!told.contains("did not end"), "{told}");
    assert_eq!(
        neighbours.sh("cat /opt/skills/neighbour/SKILL.md")?,
        "# neighbour"
    );
    pod.stop()?;
    pod.remove()
}

/// The file's data are noise, which squashfs stores unchanged. Without hashes, nothing detects the
/// change.
#[rstest]
#[case::without_hashes(&[], "read")]
#[case::with_hashes(&["--verity"], "Input/output error")]
fn skill_whose_file_was_changed_is_read_without_hashes_only(
    #[case] options: &[&str],
    #[case] expected: &str,
) -> Result<()> {
    let node = CriNode::shared();
    let name = format!("changed{}", options.len());
    let tree = good_tree(node, &name)?;
    let mut random = fs::File::open("/dev/urandom")?.take(MIB as u64);
    io::copy(&mut random, &mut fs::File::create(tree.join("noise"))?)?;
    let digest = skill::pack_with(node, &name, &tree, options)?;
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(skill::file(node, &digest))?;
    let middle = (MIB / 2) as u64;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle)?;
    file.write_all_at(&[!byte[0]], middle)?;
    let pod = pod_with(node, &digest)?;
    let container = sleeping(&pod)?;
    let line =
        format!("cd /opt/skills/{name}; cat SKILL.md; cat noise 2>&1 >/dev/null && echo read");
    let told = container.sh(&format!("{line}; true"))?;
    assert!(told.starts_with(&format!("# {name}\n")), "{told}");
    assert!(told.ends_with(expected), "{told}");
    Ok(())
}

#[test]
fn file_that_is_no_file_system_does_not_become_a_skill() -> Result<()> {
    let node = CriNode::shared();
    let file = node.dir().join("zeros");
    fs::write(&file, vec![0; MIB])?;
    let added = skill::add(node, "zeros", &file);
    let error = format!("{:#}", added.err().context("the file was added")?);
    assert!(error.contains("squashfs"), "{error}");
    Ok(())
}

/// The file is 4 GiB of zeros, packed into a few KiB.
#[test]
fn skill_that_unpacks_to_more_than_the_pods_memory_is_read() -> Result<()> {
    let node = CriNode::shared();
    let tree = skill::tree(node, "bomb")?;
    fs::File::create(tree.join("zeros"))?.set_len(4 << 30)?;
    let file = node.dir().join("bomb.squashfs");
    skill::squashfs(&tree, &["-comp", "zstd"], &file)?;
    let size = fs::metadata(&file)?.len();
    ensure!(size < 8 * MIB as u64, "the bomb has {size} bytes");
    let pod = pod_with(node, &skill::add(node, "bomb", &file)?)?;
    let container = pod.container("busybox").memory_mib(64);
    // Reads as much of it as emulation manages in time.
    let output = container
        .sh("head -c 300000000 /opt/skills/bomb/zeros | wc -c")
        .run_within(LONG)?
        .ok()?;
    assert_eq!(output.line(), "300000000");
    Ok(())
}

#[test]
fn skill_of_a_hundred_thousand_files_is_listed() -> Result<()> {
    let node = CriNode::shared();
    let tree = skill::tree(node, "many")?;
    for n in 0..100_000 {
        fs::File::create(tree.join(format!("file-{n}")))?;
    }
    let pod = pod_with(node, &skill::pack(node, "many", &tree)?)?;
    let container = pod.container("busybox").sh("ls /opt/skills/many | wc -l");
    assert_eq!(container.run_within(LONG)?.ok()?.line(), "100000");
    Ok(())
}

fn pod_with<'n>(node: &'n CriNode, skills: &str) -> Result<Pod<'n>> {
    node.pod().annotation(SKILLS, skills).start()
}

fn sleeping<'p>(pod: &'p Pod<'p>) -> Result<caisson_tests::cri::Container<'p>> {
    pod.container("busybox").args(["sleep", "1000"]).start()
}

/// Packs this number of skills. Returns them as in the annotation.
fn skills(node: &Node, count: usize) -> Result<String> {
    let digests = (0..count).map(|n| packed(node, &format!("s{n}")));
    Ok(digests.collect::<Result<Vec<_>>>()?.join(","))
}

fn packed(node: &Node, name: &str) -> Result<String> {
    skill::pack(node, name, &good_tree(node, name)?)
}

fn good_tree(node: &Node, name: &str) -> Result<PathBuf> {
    let tree = skill::tree(node, name)?;
    fs::create_dir_all(tree.join("bin"))?;
    fs::create_dir_all(tree.join("outside/inside"))?;
    fs::write(tree.join("SKILL.md"), format!("# {name}\n"))?;
    fs::write(tree.join("bin/tool"), "#!/bin/sh\necho the tool runs\n")?;
    fs::set_permissions(tree.join("bin/tool"), fs::Permissions::from_mode(0o755))?;
    noise(&tree.join("noise"))?;
    noise(&tree.join("outside/inside/noise"))?;
    Ok(tree)
}

fn noise(path: &Path) -> Result<()> {
    let bytes: Vec<u8> = (0..MIB as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    Ok(fs::File::create(path)?.write_all_at(&bytes, 0)?)
}

fn cut_in_half(bytes: &mut Vec<u8>) -> Result<()> {
    bytes.truncate(bytes.len() / 2);
    Ok(())
}

/// Changes bits in what follows the files' contents, from `inode_table_start` of the superblock.
#[allow(clippy::ptr_arg)] // same signature as the others
fn change_bits(bytes: &mut Vec<u8>) -> Result<()> {
    let from = u64::from_le_bytes(bytes[64..72].try_into()?);
    let changed = bytes.iter_mut().skip(usize::try_from(from)?).step_by(64);
    changed.for_each(|byte| *byte ^= 0x55);
    Ok(())
}

/// Gives the entry of `inside` the inode of `outside`. A `squashfs_dir_entry` (kernel,
/// fs/squashfs/squashfs_fs.h) is the offset, inode number, type and size, 2 bytes each, and the
/// name.
#[allow(clippy::ptr_arg)] // same signature as the others
fn put_in_itself(bytes: &mut Vec<u8>) -> Result<()> {
    let entry = |name: &[u8]| {
        let found = bytes.windows(name.len()).rposition(|part| part == name);
        found.context("no such entry").map(|at| at - 8)
    };
    let (outside, inside) = (entry(b"outside")?, entry(b"inside")?);
    ensure!(
        bytes[outside + 4..outside + 6] == [1, 0],
        "outside is no folder"
    );
    let offset = [bytes[outside], bytes[outside + 1]];
    bytes[inside..inside + 2].copy_from_slice(&offset);
    Ok(())
}

/// Sets `bytes_used` of the superblock to more than there is.
#[allow(clippy::ptr_arg)] // same signature as the others
fn claim_a_size(bytes: &mut Vec<u8>) -> Result<()> {
    bytes[40..48].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    Ok(())
}
