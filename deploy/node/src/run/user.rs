//! Determines the user that a container runs as. Names are looked up in the image.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::{Context, Result};

use super::layers::inside;

/// The most of a container's `/etc/passwd` or `/etc/group` that is read, in bytes.
const MAX_TABLE: u64 = 1 << 20;

/// A user as the kernel knows it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// The group itself, and the groups that name the user as a member.
    pub groups: Vec<u32>,
}

/// Looks up `user`, `uid`, `user:group` or `uid:gid` (OCI image spec, config.md `User`) in the
/// image below `rootfs`. An empty text is root.
pub fn resolve(rootfs: &Path, said: &str) -> Result<User> {
    let (passwd, group) = inside(rootfs, || Ok((table("/etc/passwd")?, table("/etc/group")?)))?;
    find(&passwd, &group, said)
}

/// Finds a user in passwd(5), name:password:uid:gid:…, and group(5),
/// name:password:gid:member,member.
fn find(passwd: &str, group: &str, said: &str) -> Result<User> {
    let (user, group_said) = match said.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (said, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let rows = |text: &'_ str| -> Vec<Vec<String>> {
        let fields = |line: &str| line.split(':').map(str::to_owned).collect();
        text.lines().map(fields).collect()
    };
    let (passwd, groups) = (rows(passwd), rows(group));
    let number = |row: &Vec<String>, field: usize| row.get(field)?.parse::<u32>().ok();

    let known = passwd.iter().find(|row| row[0] == user);
    let known = known.or_else(|| {
        let uid = user.parse().ok()?;
        passwd.iter().find(|row| number(row, 2) == Some(uid))
    });
    let uid = match known.and_then(|row| number(row, 2)) {
        Some(uid) => uid,
        None => user
            .parse()
            .with_context(|| format!("user {user:?} is not in the image's /etc/passwd"))?,
    };
    let gid = match group_said {
        None => known.and_then(|row| number(row, 3)).unwrap_or(0),
        Some(said) => {
            let named = groups.iter().find(|row| row[0] == said);
            match named.and_then(|row| number(row, 2)) {
                Some(gid) => gid,
                None => said
                    .parse()
                    .with_context(|| format!("group {said:?} is not in the image's /etc/group"))?,
            }
        }
    };
    let mut all = vec![gid];
    if let Some(name) = known.map(|row| row[0].as_str()) {
        for row in &groups {
            let member = row
                .get(3)
                .is_some_and(|list| list.split(',').any(|member| member == name));
            all.extend(number(row, 2).filter(|gid| member && !all.contains(gid)));
        }
    }
    Ok(User {
        uid,
        gid,
        groups: all,
    })
}

/// Returns the text of a table, which is empty where there is none.
fn table(path: &str) -> Result<String> {
    let file = File::options()
        .read(true)
        // An image may have a FIFO there.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = match file {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(String::new())
        }
        file => file.with_context(|| format!("the image's {path}"))?,
    };
    let mut bytes = Vec::new();
    if file.metadata()?.is_file() {
        file.take(MAX_TABLE).read_to_end(&mut bytes)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(said: &str) -> Result<(u32, u32, Vec<u32>)> {
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n\n";
        let group = "root:x:0:\napp:x:1001:\nextra:x:2000:other,app\n";
        let user = find(passwd, group, said)?;
        Ok((user.uid, user.gid, user.groups))
    }

    #[test]
    fn user_is_found_by_name_and_by_number() {
        assert_eq!(user("").unwrap(), (0, 0, vec![0]));
        assert_eq!(user("app").unwrap(), (1000, 1001, vec![1001, 2000]));
        assert_eq!(user("1000").unwrap(), (1000, 1001, vec![1001, 2000]));
        assert_eq!(user("77").unwrap(), (77, 0, vec![0]));
        assert_eq!(user("app:extra").unwrap(), (1000, 2000, vec![2000]));
        assert_eq!(user("77:78").unwrap(), (77, 78, vec![78]));
    }

    #[test]
    fn user_that_the_image_does_not_know_is_named() {
        assert!(user("nobody").unwrap_err().to_string().contains("nobody"));
        assert!(user("0:wheel").unwrap_err().to_string().contains("wheel"));
    }
}
