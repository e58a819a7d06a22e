//! Tests skills, which are plugged into a container besides its image.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use anyhow::Result;
use caisson_tests::{command, image, node::caisson, skill, Node};

const SKILLS: &str = "caisson.dev/skills";

#[test]
fn skill_contents_are_those_that_were_packed() -> Result<()> {
    let node = Node::shared();
    let (tree, digest) = packed(node, "contents")?;
    let line = "cd /opt/skills/contents && find . -type f | sort | xargs sha256sum && bin/tool && readlink link";
    let output = node
        .container("busybox")
        .annotation(SKILLS, &digest)
        .sh(line)
        .run()?
        .ok()?;
    let mut expected = String::new();
    for file in ["./SKILL.md", "./bin/tool", "./data/noise"] {
        let digest = image::sha256(fs::File::open(tree.join(file))?)?;
        expected.push_str(&format!("{digest}  {file}\n"));
    }
    assert_eq!(
        output.text(),
        format!("{expected}the tool runs\nSKILL.md\n")
    );
    Ok(())
}

#[test]
fn skill_disk_refuses_writes_and_the_hosts_file_is_unchanged() -> Result<()> {
    let node = Node::shared();
    let (_, digest) = packed(node, "unchanged")?;
    let file = node
        .store_dir()
        .join("skills")
        .join(digest.trim_start_matches("sha256:"));
    let before = image::sha256(fs::File::open(&file)?)?;
    let line =
        "cd /opt/skills/unchanged; echo x > SKILL.md; echo x > new; rm bin/tool; chmod 777 bin; \
                mount -o remount,rw /opt/skills/unchanged; echo x > SKILL.md; ls; \
                mknod /dev/disk b $(awk '$5 == \"/opt/skills/unchanged\" { sub(\":\", \" \", $3); print $3 }' /proc/self/mountinfo) && dd if=/dev/zero of=/dev/disk bs=4096 count=1";
    let output = node
        .container("busybox")
        .annotation(SKILLS, &digest)
        .flag("--cap-add", "CAP_SYS_ADMIN")
        .sh(line)
        .run()?;
    assert_eq!(
        output.line(),
        "SKILL.md\nbin\ndata\nlink",
        "{}",
        output.errors()
    );
    assert!(
        output.errors().contains("Read-only file system"),
        "{}",
        output.errors()
    );
    assert_eq!(image::sha256(fs::File::open(&file)?)?, before);
    assert_eq!(
        format!("sha256:{before}"),
        digest,
        "the file is named by its digest"
    );
    Ok(())
}

#[test]
fn skill_is_mounted_under_the_name_that_the_pod_gives_it() -> Result<()> {
    let node = Node::shared();
    let (_, one) = packed(node, "one")?;
    let (_, two) = packed(node, "two")?;
    let skills = format!("{one},other={two}");
    let output = node
        .container("busybox")
        .annotation(SKILLS, &skills)
        .sh("ls /opt/skills")
        .run()?
        .ok()?;
    assert_eq!(output.line(), "one\nother");
    Ok(())
}

#[test]
fn skill_that_is_not_there_is_named() -> Result<()> {
    let missing = format!("sha256:{}", "0".repeat(64));
    let output = Node::shared()
        .container("busybox")
        .annotation(SKILLS, &missing)
        .args(["true"])
        .run()?;
    assert_ne!(output.code, 0);
    let error = output.errors();
    assert!(
        error.contains(&missing) && error.contains("shelf: has no such skill"),
        "{error}"
    );
    Ok(())
}

#[test]
fn skill_that_a_source_has_is_fetched_by_its_version() -> Result<()> {
    let node = Node::shared();
    let tree = node.dir().join("trees/shelved");
    fs::create_dir_all(&tree)?;
    fs::write(tree.join("SKILL.md"), "from the shelf\n")?;
    let skill = |args: &[&str]| {
        let mut command = caisson(node)?;
        command.arg("skill").args(args);
        command::run(&mut command, None, caisson_tests::node::LIMIT)?.ok()
    };
    let folder = tree.display().to_string();
    skill(&["pack", "--version", "1.4", &folder])?;
    skill(&["push", "shelved@1.4", "shelf"])?;
    skill(&["remove", "shelved@1.4"])?;
    let output = node
        .container("busybox")
        .annotation(SKILLS, "shelved@1.4")
        .args(["cat", "/opt/skills/shelved/SKILL.md"])
        .run()?
        .ok()?;
    assert_eq!(output.text(), "from the shelf\n");
    Ok(())
}

#[test]
fn skill_in_use_is_not_removed() -> Result<()> {
    let node = Node::shared();
    let (_, digest) = packed(node, "used")?;
    let container = node
        .container("busybox")
        .annotation(SKILLS, &digest)
        .args(["sleep", "1000"])
        .start()?;
    let remove = || {
        let mut command = caisson(node)?;
        command.args(["skill", "remove", &digest]);
        command::run(&mut command, None, caisson_tests::node::LIMIT)
    };
    let refused = remove()?;
    assert!(
        refused.errors().contains("in use by a running pod"),
        "{}",
        refused.errors()
    );
    container.sh("cat /opt/skills/used/SKILL.md")?;
    container.kill("SIGKILL")?;
    container.wait()?;
    container.delete()?;
    remove()?.ok()?;
    Ok(())
}

/// Creates a folder with every kind of file that a skill has, packs it and adds it to the node's
/// store.
fn packed(node: &Node, name: &str) -> Result<(PathBuf, String)> {
    let tree = node.dir().join("trees").join(name);
    fs::create_dir_all(tree.join("bin"))?;
    fs::create_dir_all(tree.join("data"))?;
    fs::write(tree.join("SKILL.md"), format!("# {name}\n"))?;
    fs::write(tree.join("bin/tool"), "#!/bin/sh\necho the tool runs\n")?;
    fs::set_permissions(tree.join("bin/tool"), fs::Permissions::from_mode(0o755))?;
    let noise: Vec<u8> = (0..3_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(tree.join("data/noise"), noise)?;
    if !tree.join("link").is_symlink() {
        std::os::unix::fs::symlink("SKILL.md", tree.join("link"))?;
    }
    let digest = skill::pack(node, name, &tree)?;
    Ok((tree, digest))
}
