//! The images that tests use by name.
//!
//! | name | what is in it |
//! |---|---|
//! | `busybox` | Debian's busybox-static, `probe`, users root and app (1000) |
//! | `busybox-app` | the same, to be run as app |
//! | `files` | `busybox` and, below `/zoo`, one of each kind of file |
//! | `pause` | the program of a sandbox's own process, where a sandbox has one |
//! | `empty` | no file and no command |
//! | `volume` | `busybox` and a volume of its own at `/srv/data`, which is app's |
//! | `hub-busybox` | `busybox` with the users, groups and programs that other projects' tests expect in Docker Hub's |
//! | `resource-consumer`, `volume-copy-up` | what containerd's own CRI tests need of these images |
//! | `volume-ownership` | the same |
//! | `httpd` | what Kubernetes' end-to-end tests and critest need of the images `httpd` and `nginx` |
//! | `httpd-12003` | the same on port 12003 |
//! | `nonroot`, `nonewprivs` | what Kubernetes' end-to-end tests need of these images |
//! | `predefined-group` | `busybox` with a user of a group, for critest |
//! | `user-uid`, `user-name`, `user-uid-group`, `user-name-group` | `busybox` for users that critest knows |
//! | `marked-X` | nothing but an empty file `/X` |
//! | `many` | `busybox` and 50,000 files below `/many` |
//!
//! Images made of Debian packages are in [`crate::debian`].

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{bail, Context, Result};
use serde_json::json;

use crate::{
    debian,
    image::{root, ImageBuilder, Owner},
    paths,
};

/// The number of files below `/many` of the image `many`, in [`MANY_DIRS`] folders.
pub const MANY_FILES: usize = 50_000;
/// The number of folders of the image `many`.
pub const MANY_DIRS: usize = 500;
/// The length in bytes of the longest file name in the image `files`.
pub const LONGEST_NAME: usize = 255;

/// The user `app` of the images.
pub const APP: Owner = Owner {
    mode: 0o644,
    uid: 1000,
    gid: 1000,
};

/// A program that prints the processes with this text in their names.
const PGREP: &[u8] = b"#!/bin/sh\ngrep -l -- \"$1\" /proc/[0-9]*/comm 2>/dev/null\n";

/// Returns the name under which containerd knows an image of this module.
pub fn full_name(name: &str) -> String {
    format!("localhost/{name}:test")
}

/// Returns the archive of an image. It is written into `dir`, unless the image is one of
/// [`debian`], whose archive stays where it is.
pub fn archive(name: &str, dir: &Path) -> Result<PathBuf> {
    if let Some(archive) = debian::archive(name) {
        return archive;
    }
    let mut image = ImageBuilder::new(dir)?;
    let mark = name.strip_prefix("marked-");
    if name != "empty" && mark.is_none() {
        busybox(&mut image)?;
    }
    match name {
        "empty" => {
            image.config("Cmd", json!(null));
        }
        "volume" => {
            image.dir("srv", root(0o755))?;
            image.dir("srv/data", Owner { mode: 0o755, ..APP })?;
            image.file("srv/data/file", APP, b"from the image")?;
            image.config("Volumes", json!({ "/srv/data": {} }));
        }
        "busybox" => {}
        "pause" => {
            image.symlink("pause", "bin/probe")?;
            image.config("Cmd", json!(["/bin/probe", "pause"]));
        }
        "busybox-app" => {
            image.config("User", json!("app"));
        }
        "hub-busybox" => {
            image.file(
                "etc/passwd",
                root(0o644),
                b"root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
                  nobody:x:65534:65534:nobody:/home:/bin/false\n",
            )?;
            image.file(
                "etc/group",
                root(0o644),
                b"root:x:0:\ndaemon:x:1:\nwheel:x:10:root\nnogroup:x:65534:\n",
            )?;
            // What Debian's busybox has no applet for.
            image.copy(Path::new("/usr/bin/ipcs"), "usr/bin/ipcs", root(0o755))?;
            image.file("usr/bin/pgrep", root(0o755), PGREP)?;
        }
        "httpd" => httpd(&mut image, 80)?,
        "httpd-12003" => httpd(&mut image, 12003)?,
        "predefined-group" => {
            let user = b"root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home:/bin/sh\n";
            let groups = b"root:x:0:\ndefault-user:x:1000:\n\
                           group-defined-in-image:x:50000:default-user\n";
            image.file("etc/passwd", root(0o644), user)?;
            image.file("etc/group", root(0o644), groups)?;
            image.config("User", json!("1000"));
        }
        "user-uid" => {
            image.config("User", json!("1002"));
        }
        "user-name" => {
            image.config("User", json!("www-data"));
        }
        "user-uid-group" => {
            image.config("User", json!("1003:1004"));
        }
        "user-name-group" => {
            image.config("User", json!("www-data:1004"));
        }
        "nonroot" => {
            image.config("User", json!("1234"));
        }
        "nonewprivs" => {
            let program = paths::conformance("nonewprivs")?;
            image.dir("usr/local", root(0o755))?;
            image.dir("usr/local/bin", root(0o755))?;
            image.copy(&program, "usr/local/bin/nnp", root(0o6755))?;
            image.config("Env", json!(["PATH=/bin:/usr/bin:/usr/local/bin"]));
            image.config("Cmd", json!(["nnp"]));
        }
        "resource-consumer" => {
            // The tests ask for 100 MB by the arguments of this program.
            let stress = b"#!/bin/sh\nexec /bin/probe hold 110\n";
            image.file("bin/stress", root(0o755), stress)?;
            image.config("Cmd", json!(["sleep", "1000"]));
        }
        "volume-copy-up" => volume_copy_up(&mut image)?,
        "volume-ownership" => {
            let nobody = Owner {
                mode: 0o755,
                uid: 65534,
                gid: 65534,
            };
            image.dir("test_dir", nobody)?;
            let user = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n";
            image.file("etc/passwd", root(0o644), user)?;
            image.file("etc/group", root(0o644), b"root:x:0:\nnogroup:x:65534:\n")?;
            image.config("Volumes", json!({ "/test_dir": {} }));
        }
        "files" => files(&mut image)?,
        "many" => many(&mut image)?,
        other => match mark {
            Some(mark) => image.file(mark, root(0o644), b"")?,
            None => bail!("no image is called {other}"),
        },
    }
    let archive = dir.join(format!("{name}.tar"));
    image
        .finish(&full_name(name), &archive)
        .with_context(|| format!("image {name}"))?;
    Ok(archive)
}

fn busybox(image: &mut ImageBuilder) -> Result<()> {
    for dir in [
        "bin", "usr", "usr/bin", "etc", "home", "lib", "lib64", "var", "dev", "proc", "sys", "opt",
        "mnt",
    ] {
        image.dir(dir, root(0o755))?;
    }
    image.dir("root", root(0o700))?;
    image.dir("tmp", root(0o1777))?;
    image.dir("home/app", Owner { mode: 0o755, ..APP })?;
    image.file("home/app/.profile", APP, b"# app\n")?;
    image.file(
        "etc/passwd",
        root(0o644),
        b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n",
    )?;
    image.file(
        "etc/group",
        root(0o644),
        b"root:x:0:\napp:x:1000:\nextra:x:2000:app\n",
    )?;
    image
        .copy(Path::new("/bin/busybox"), "bin/busybox", root(0o755))
        .context("apt-get install busybox-static")?;
    let list = Command::new("/bin/busybox").arg("--list").output()?;
    for applet in String::from_utf8(list.stdout)?
        .lines()
        .filter(|name| *name != "busybox")
    {
        image.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    probe(image)
}

/// Adds a web server with a page. It names itself in its log, as Docker Hub's image does.
fn httpd(image: &mut ImageBuilder, port: u16) -> Result<()> {
    image.dir("www", root(0o755))?;
    image.file("www/index.html", root(0o644), b"served by httpd\n")?;
    let line = format!("echo httpd on port {port}; exec httpd -f -p {port} -h /www");
    image.config("Cmd", json!(["sh", "-c", line]));
    Ok(())
}

/// Adds the `probe` program together with the host's libraries to which it is linked.
fn probe(image: &mut ImageBuilder) -> Result<()> {
    image.copy(&paths::probe()?, "bin/probe", root(0o755))?;
    image.copy(
        Path::new("/lib64/ld-linux-x86-64.so.2"),
        "lib64/ld-linux-x86-64.so.2",
        root(0o755),
    )?;
    for library in ["libc.so.6", "libgcc_s.so.1"] {
        let source = Path::new("/lib/x86_64-linux-gnu").join(library);
        image.copy(&source, &format!("lib/{library}"), root(0o755))?;
    }
    Ok(())
}

fn files(image: &mut ImageBuilder) -> Result<()> {
    image.dir("zoo", root(0o755))?;
    image.file("zoo/file", root(0o640), b"a file\n")?;
    image.hard_link("zoo/second-name", "zoo/file", root(0o640))?;
    image.symlink("zoo/relative", "file")?;
    image.symlink("zoo/absolute", "/zoo/file")?;
    image.symlink("zoo/dangling", "nowhere")?;
    image.file(
        "zoo/owned",
        Owner {
            mode: 0o604,
            uid: 1000,
            gid: 2000,
        },
        b"owned\n",
    )?;
    image.file(
        "zoo/nobody",
        Owner {
            mode: 0o400,
            uid: 65534,
            gid: 65534,
        },
        b"nobody\n",
    )?;
    image.file("zoo/setuid", root(0o4755), b"#!/bin/sh\n")?;
    image.dir("zoo/sticky", root(0o1777))?;
    image.fifo("zoo/fifo", root(0o622))?;
    image.char_device("zoo/null", root(0o666), 1, 3)?;
    image.block_device("zoo/loop", root(0o660), 7, 0)?;
    image.file_with_xattr("zoo/attribute", root(0o644), "user.colour", b"blue")?;
    image.file(
        &format!("zoo/{}", "n".repeat(LONGEST_NAME)),
        root(0o644),
        b"long\n",
    )?;
    image.file("zoo/with space\nand line", root(0o644), b"odd\n")
}

/// Follows containerd's integration/images/volume-copy-up/Dockerfile.
fn volume_copy_up(image: &mut ImageBuilder) -> Result<()> {
    for (dir, file) in [
        ("test_dir", "test_file"),
        ("C:/weird_test_dir", "weird_test_file"),
        (":colon_prefixed", "colon_prefixed_file"),
    ] {
        for (end, _) in dir.match_indices('/') {
            image.dir(&dir[..end], root(0o755))?;
        }
        image.dir(dir, root(0o755))?;
        image.file(&format!("{dir}/{file}"), root(0o644), b"test_content\n")?;
    }
    let volumes = json!({ "/test_dir": {}, "C:/weird_test_dir": {}, "/:colon_prefixed": {} });
    image.config("Volumes", volumes);
    Ok(())
}

fn many(image: &mut ImageBuilder) -> Result<()> {
    image.dir("many", root(0o755))?;
    for dir in 0..MANY_DIRS {
        image.dir(&format!("many/{dir}"), root(0o755))?;
        for file in 0..MANY_FILES / MANY_DIRS {
            let path = format!("many/{dir}/{file}");
            image.file(&path, root(0o644), path.as_bytes())?;
        }
    }
    Ok(())
}
