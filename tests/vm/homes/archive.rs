//! Tests `caisson home`, which lists, archives and removes homes.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use anyhow::{Context, Result};
use caisson_tests::{
    command::{self, Output},
    node::LIMIT,
    Node,
};

use super::{end, home, image, with_home, MIB, SIZE};

#[test]
fn home_is_listed_archived_and_removed() -> Result<()> {
    let node = Node::shared();
    let make = "cd /root && echo text > note && chown 1000:2000 note && chmod 640 note && ln -s note link \
                && probe setxattr note user.colour blue";
    with_home(node, "archived")
        .annotation(SIZE, "48Mi")
        .sh(make)
        .run()?
        .ok()?;
    let name = format!("{}/archived", node.tag());
    let line = |list: Output| -> Result<String> {
        let text = list.ok()?.text();
        let line = text.lines().find(|line| line.contains(&name));
        Ok(line.context("the home is listed")?.trim().to_owned())
    };
    let listed = line(home(node, &["list"])?)?;
    assert!(
        listed.starts_with("48 ") && listed.ends_with(&name),
        "{listed}"
    );
    let file = node.dir().join("archived.tar");
    home(node, &["archive", &name, &file.display().to_string()])?.ok()?;
    let unpacked = node.dir().join("unpacked");
    fs::create_dir_all(&unpacked)?;
    let mut tar = std::process::Command::new("tar");
    tar.args([
        "--extract",
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
    ]);
    tar.arg("--directory")
        .arg(&unpacked)
        .arg("--file")
        .arg(&file);
    command::run(&mut tar, None, LIMIT)?.ok()?;
    let note = fs::metadata(unpacked.join("note"))?;
    assert_eq!(
        (note.uid(), note.gid(), note.mode() & 0o7777),
        (1000, 2000, 0o640)
    );
    assert_eq!(fs::read_link(unpacked.join("link"))?, Path::new("note"));
    let mut xattr = std::process::Command::new("getfattr");
    xattr
        .args(["--only-values", "-n", "user.colour"])
        .arg(unpacked.join("note"));
    assert_eq!(command::run(&mut xattr, None, LIMIT)?.ok()?.line(), "blue");
    home(node, &["remove", &name])?.ok()?;
    assert!(!image(node, "archived").exists());
    let next = with_home(node, "archived").args(["ls", "-A", "/root"]);
    assert_eq!(next.run()?.ok()?.text(), "");
    Ok(())
}

#[test]
fn home_in_use_is_neither_archived_nor_removed() -> Result<()> {
    let node = Node::shared();
    let container = with_home(node, "busy").args(["sleep", "1000"]).start()?;
    let name = format!("{}/busy", node.tag());
    let used = format!("{name} is in use by {}/{}", node.tag(), container.id());
    let file = node.dir().join("busy.tar");
    for arguments in [
        &["archive", &name, &file.display().to_string()][..],
        &["remove", &name][..],
    ] {
        let refused = home(node, arguments)?;
        assert_ne!(refused.code, 0);
        assert!(refused.errors().contains(&used), "{}", refused.errors());
    }
    assert!(!file.exists());
    let list = home(node, &["list"])?.text();
    assert!(
        list.contains(&format!("{name} {}/{}", node.tag(), container.id())),
        "{list}"
    );
    container.sh("echo still > /root/note")?;
    end(&container)
}

#[test]
fn home_that_is_not_there_is_named() -> Result<()> {
    let node = Node::shared();
    let name = format!("{}/nobody", node.tag());
    let file = node.dir().join("nobody.tar").display().to_string();
    for arguments in [&["archive", &name, &file][..], &["remove", &name][..]] {
        let refused = home(node, arguments)?;
        assert_ne!(refused.code, 0);
        let expected = format!("there is no home {name}");
        assert!(refused.errors().contains(&expected), "{}", refused.errors());
    }
    Ok(())
}

/// Puts everything into a home that a program on the host could trip over.
#[test]
fn home_with_odd_files_is_archived_as_it_is() -> Result<()> {
    let node = Node::shared();
    let secret = node.dir().join("odd-secret");
    fs::write(&secret, "the host's")?;
    let line = format!(
        "cd /root && ln -s {0} link && ln -s / root && mkfifo fifo && truncate -s 1099511627776 sparse && mkdir -p a/b && ln -s ../.. a/b/up \
         && printf x > \"$(printf 'a\\033[31m\\nb')\" && probe socket /root/socket",
        secret.display()
    );
    let container = with_home(node, "odd").annotation(SIZE, "32Mi");
    container.sh(&line).run()?.ok()?;
    let name = format!("{}/odd", node.tag());
    let file = node.dir().join("odd.tar");
    home(node, &["archive", &name, &file.display().to_string()])?.ok()?;
    let size = fs::metadata(&file)?.len();
    assert!(size < MIB, "{size} bytes");
    let mut tar = std::process::Command::new("tar");
    tar.args(["--list", "--verbose", "--file"]).arg(&file);
    let listed = command::run(&mut tar, None, LIMIT)?.ok()?.text();
    for kind in ["prw", "lrwxrwxrwx", "./link -> ", "./root -> /"] {
        assert!(listed.contains(kind), "{kind} in {listed}");
    }
    let text = String::from_utf8_lossy(&fs::read(&file)?).into_owned();
    assert!(!text.contains("the host's"));
    Ok(())
}
