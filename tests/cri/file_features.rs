//! Tests what Linux' file systems have beyond POSIX, on a container's root and on an emptyDir:
//! ACLs, flags of inodes, the time of birth, files without a name.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use caisson_tests::{
    command::{self, Output},
    cri::{Container, CriNode, Pod},
    Runtime,
};
use rstest::rstest;

const LIMIT: Duration = Duration::from_secs(20);
/// A folder on the root, and an emptyDir.
const FOLDERS: [&str; 2] = ["/srv", EMPTY_DIR];
const EMPTY_DIR: &str = "/data";
/// Run a program as another user without further groups.
const AS_1000: &str = "setpriv --reuid=1000 --regid=1000 --clear-groups";
const AS_1001: &str = "setpriv --reuid=1001 --regid=1001 --clear-groups";

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn acl_of_a_file_is_the_one_that_was_set(#[case] runtime: Runtime) -> Result<()> {
    let container = container(runtime)?;
    for folder in FOLDERS {
        let line = "touch file && setfacl -m u:1000:rwx file && getfacl -cn file";
        let acl = "user::rw-\nuser:1000:rwx\ngroup::r--\nmask::rwx\nother::r--";
        assert_eq!(sh_in(&container, folder, line)?, acl, "{folder}");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn acl_lets_in_a_user_whom_the_mode_keeps_out(#[case] runtime: Runtime) -> Result<()> {
    let container = container(runtime)?;
    for folder in FOLDERS {
        let line = format!(
            "echo text > file && chmod 600 file && setfacl -m u:1000:r file && {AS_1000} cat file"
        );
        assert_eq!(sh_in(&container, folder, &line)?, "text", "{folder}");
        let line = format!("echo text > file && chmod 600 file && {AS_1001} cat file");
        assert_is_denied(&exec_in(&container, folder, &line)?);
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn acl_keeps_out_a_user_whom_the_mode_lets_in(#[case] runtime: Runtime) -> Result<()> {
    let container = container(runtime)?;
    for folder in FOLDERS {
        let acl = "echo text > file && setfacl -m u:1000:- file";
        let line = format!("{acl} && {AS_1001} cat file");
        assert_eq!(sh_in(&container, folder, &line)?, "text", "{folder}");
        let line = format!("{acl} && {AS_1000} cat file");
        assert_is_denied(&exec_in(&container, folder, &line)?);
    }
    Ok(())
}

/// The group is a further one of the process and not the folder's, so the host does not hear of it.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn acl_lets_a_group_make_files(#[case] runtime: Runtime) -> Result<()> {
    let container = container(runtime)?;
    for folder in FOLDERS {
        let line = "setfacl -m g:2000:rwx . && \
            setpriv --reuid=1000 --regid=1000 --groups=2000 sh -c 'touch file && mkdir folder' && \
            stat -c '%u %g' file folder";
        let owners = "1000 1000\n1000 1000";
        assert_eq!(sh_in(&container, folder, line)?, owners, "{folder}");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn default_acl_of_a_folder_is_inherited_whatever_the_umask(#[case] runtime: Runtime) -> Result<()> {
    let container = container(runtime)?;
    for folder in FOLDERS {
        let line = "umask 077 && chmod 700 . && setfacl -d -m u:1000:rwx . && \
            touch file && mkdir folder && getfacl -cEn file folder";
        let entries = "user::rw-\nuser:1000:rwx\ngroup::---\nmask::rw-\nother::---\n\n\
            user::rwx\nuser:1000:rwx\ngroup::---\nmask::rwx\nother::---\n\
            default:user::rwx\ndefault:user:1000:rwx\ndefault:group::---\ndefault:mask::rwx\n\
            default:other::---";
        let said = sh_in(&container, folder, line)?;
        assert_eq!(said, entries, "{folder}");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn umask_holds_in_a_folder_without_a_default_acl(#[case] runtime: Runtime) -> Result<()> {
    let container = container(runtime)?;
    for folder in FOLDERS {
        let line = "umask 027 && touch file && mkdir folder && mkfifo fifo && \
            stat -c %a file folder fifo";
        assert_eq!(
            sh_in(&container, folder, line)?,
            "640\n750\n640",
            "{folder}"
        );
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn mode_of_a_file_with_an_acl_is_its_mask(#[case] runtime: Runtime) -> Result<()> {
    let container = container(runtime)?;
    for folder in FOLDERS {
        let line = "touch file && setfacl -m u:1000:rwx file && chmod 640 file && \
            getfacl -cn file | grep mask";
        assert_eq!(sh_in(&container, folder, line)?, "mask::r--", "{folder}");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn flag_that_an_owner_may_set_is_listed(#[case] runtime: Runtime) -> Result<()> {
    let container = container(runtime)?;
    for folder in FOLDERS {
        let line = "touch file && lsattr file && chattr +A file && lsattr file";
        let said = sh_in(&container, folder, line)?;
        let flags: Vec<_> = said.lines().map(|line| line.contains('A')).collect();
        assert_eq!(flags, [false, true], "{folder}: {said}");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn flags_of_a_folder_are_listed_with_its_project(#[case] runtime: Runtime) -> Result<()> {
    let container = container(runtime)?;
    for folder in FOLDERS {
        let said = sh_in(&container, folder, "mkdir folder && lsattr -dp folder")?;
        let fields: Vec<_> = said.split_whitespace().collect();
        let [project, flags, "folder"] = fields[..] else {
            panic!("{folder}: {said}");
        };
        assert_eq!(project, "0", "{folder}");
        assert!(flags.chars().all(|flag| flag != 'i'), "{folder}: {said}");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn immutable_flag_is_refused(#[case] runtime: Runtime) -> Result<()> {
    let container = container(runtime)?;
    for folder in FOLDERS {
        let output = exec_in(&container, folder, "touch file && chattr +i file")?;
        assert_is_not_permitted(&output);
        let line = "touch file && ! chattr +i file && rm file && ls";
        assert_eq!(sh_in(&container, folder, line)?, "", "{folder}");
    }
    Ok(())
}

/// The node could not remove such a file with the pod.
#[test]
fn immutable_flag_is_refused_to_a_privileged_container() -> Result<()> {
    let pod = CriNode::shared().pod().privileged().start()?;
    let container = pod.container("features").privileged();
    let container = container
        .mount(&pod.folder("data")?, EMPTY_DIR)
        .args(["sleep", "1000"])
        .start()?;
    for folder in FOLDERS {
        for flag in ["+i", "+a", "+j"] {
            let line = format!("touch file && chattr {flag} file");
            assert_is_not_permitted(&exec_in(&container, folder, &line)?);
        }
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn birth_of_a_file_is_when_it_was_made(#[case] runtime: Runtime) -> Result<()> {
    let container = container(runtime)?;
    for folder in FOLDERS {
        let before = seconds()?;
        let line = "touch -d 2001-01-01 file && stat -c %W file";
        let birth: u64 = sh_in(&container, folder, line)?.parse()?;
        let time = before - 1..=seconds()?;
        assert!(time.contains(&birth), "{folder}: {birth}, not {time:?}");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn file_without_a_name_is_read_and_gets_a_name(#[case] runtime: Runtime) -> Result<()> {
    let container = container(runtime)?;
    for folder in FOLDERS {
        let said = python_in(
            &container,
            folder,
            "file = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o640)\n\
             os.write(file, b'written')\n\
             print(os.pread(file, 100, 0).decode(), os.listdir(), os.fstat(file).st_nlink)\n\
             name(file)\n\
             os.write(file, b' on')\n\
             print(open('name').read(), os.listdir(), os.fstat(file).st_nlink)",
        )?;
        let wanted = "written [] 0\nwritten on ['name'] 1";
        assert_eq!(said, wanted, "{folder}");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn file_without_a_name_that_is_exclusive_gets_none(#[case] runtime: Runtime) -> Result<()> {
    let container = container(runtime)?;
    for folder in FOLDERS {
        let said = python_in(
            &container,
            folder,
            "file = os.open('.', os.O_TMPFILE | os.O_RDWR | os.O_EXCL)\n\
             try:\n    name(file)\n\
             except FileNotFoundError:\n    print('none', os.listdir())",
        )?;
        assert_eq!(said, "none []", "{folder}");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn file_without_a_name_is_its_makers(#[case] runtime: Runtime) -> Result<()> {
    let container = container(runtime)?;
    for folder in FOLDERS {
        let said = python_in(
            &container,
            folder,
            "os.chmod('.', 0o777)\n\
             os.umask(0o027)\n\
             os.setgroups([])\n\
             os.setgid(2000)\n\
             os.setuid(1000)\n\
             file = os.fstat(os.open('.', os.O_TMPFILE | os.O_WRONLY, 0o666))\n\
             print(file.st_uid, file.st_gid, oct(file.st_mode))",
        )?;
        assert_eq!(said, "1000 2000 0o100640", "{folder}");
    }
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn file_without_a_name_is_refused_on_a_read_only_volume(#[case] runtime: Runtime) -> Result<()> {
    let pod = CriNode::shared().shared_pod(runtime)?;
    let container = pod.container("features");
    let container = container
        .mount_read_only(&pod.folder("features-read-only")?, EMPTY_DIR)
        .args(["sleep", "1000"])
        .start()?;
    let line = format!("import os; os.open('{EMPTY_DIR}', os.O_TMPFILE | os.O_RDWR)");
    let output = container.exec(["python3", "-c", &line])?;
    let errors = output.errors();
    assert!(errors.contains("Read-only file system"), "{errors}");
    Ok(())
}

/// The guest knows that the file has no ACL, and learns that another pod gives it one.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn acl_that_another_pod_sets_is_obeyed(#[case] runtime: Runtime) -> Result<()> {
    let (container, other) = two_pods_with_a_volume(runtime)?;
    container.sh("mkdir -p /shared/acl && cd /shared/acl && echo text > file && chmod 600 file")?;
    let reads = || container.exec(["sh", "-c", &format!("{AS_1000} cat /shared/acl/file")]);
    assert_is_denied(&reads()?);
    other.sh("setfacl -m u:1000:r /shared/acl/file")?;
    command::poll("the ACL to be obeyed", LIMIT, || {
        reads().ok().filter(|output| output.code == 0)
    })?;
    Ok(())
}

/// The guest knows what is in the volume, and learns that another pod changes it.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn files_that_another_pod_changes_are_seen(#[case] runtime: Runtime) -> Result<()> {
    let (container, other) = two_pods_with_a_volume(runtime)?;
    container.sh("mkdir -p /shared/files && cd /shared/files && echo old > text && touch gone")?;
    let list = "cd /shared/files && ls -x && cat text";
    assert_eq!(container.sh(list)?, "gone  text\nold");
    other.sh("cd /shared/files && echo new > text && mv gone moved && echo > added")?;
    command::poll("the changes to be seen", LIMIT, || {
        container
            .sh(list)
            .ok()
            .filter(|seen| seen == "added  moved  text\nnew")
    })?;
    Ok(())
}

/// The guest knows all names in a folder that it has made, until it forgets some of them.
#[test]
fn files_that_the_kernel_forgot_are_found() -> Result<()> {
    let pod = CriNode::shared()
        .pod()
        .runtime(Runtime::Caisson)
        .privileged();
    let pod = pod.start()?;
    let container = pod.container("features").privileged();
    let container = container.args(["sleep", "1000"]).start()?;
    container.sh("mkdir /made && touch /made/file && ! test -e /made/other")?;
    container.sh("echo 2 > /proc/sys/vm/drop_caches")?;
    assert_eq!(
        container.sh("ls /made/file && ls /made")?,
        "/made/file\nfile"
    );
    Ok(())
}

#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn names_come_and_go_in_a_folder_that_a_container_has_made(#[case] runtime: Runtime) -> Result<()> {
    let container = container(runtime)?;
    let seen = sh_in(
        &container,
        EMPTY_DIR,
        "mkdir made && cd made && touch a b c && ln a link && mv a b && rm c && touch c && \
         mv c d && ln -s d symbolic && mkdir folder && mv folder moved && mkfifo pipe && \
         rm link && ls -x && ls a c link folder 2>&1 | grep -c 'No such file'",
    )?;
    assert_eq!(seen, "b  d  moved  pipe  symbolic\n4");
    Ok(())
}

/// The guest keeps what it has written, so that it asks the host for none of it.
#[rstest]
#[case::runc(Runtime::Runc)]
#[case::caisson(Runtime::Caisson)]
fn file_that_is_written_in_pieces_is_read_whole(#[case] runtime: Runtime) -> Result<()> {
    let container = container(runtime)?;
    let seen = sh_in(
        &container,
        EMPTY_DIR,
        "printf one > file && printf two >> file && truncate -s 8 file && printf end >> file && \
         printf X | dd of=file bs=1 seek=1 conv=notrunc status=none && \
         tr '\\0' 0 < file && stat -c ' %s' file && truncate -s 2 file && truncate -s 4 file && \
         tr '\\0' 0 < file",
    )?;
    assert_eq!(seen, "oXetwo00end 11\noX00");
    Ok(())
}

/// Starts a container of a pod, and one of a pod of runc beside it, that share a volume.
fn two_pods_with_a_volume(runtime: Runtime) -> Result<(Container<'static>, Container<'static>)> {
    let node = CriNode::shared();
    let pod = node.shared_pod(runtime)?;
    let volume = pod.folder("shared")?;
    let of = |pod: &'static Pod<'static>| {
        let container = pod.container("features").mount(&volume, "/shared");
        container.args(["sleep", "1000"]).start()
    };
    Ok((of(pod)?, of(node.shared_pod(Runtime::Runc)?)?))
}

/// Starts a container with the tools.
fn container(runtime: Runtime) -> Result<Container<'static>> {
    let pod = CriNode::shared().shared_pod(runtime)?;
    let container = pod.container("features");
    container
        .mount(&pod.folder("features")?, EMPTY_DIR)
        .args(["sleep", "1000"])
        .start()
}

/// Runs a line of the shell in a new folder that everyone may enter.
fn exec_in(container: &Container, folder: &str, line: &str) -> Result<Output> {
    let line = format!("cd $(mktemp -d -p {folder}) && chmod 711 . && {line}");
    container.exec(["sh", "-c", &line])
}

/// Does the same and returns what a line that succeeds prints.
fn sh_in(container: &Container, folder: &str, line: &str) -> Result<String> {
    let output = exec_in(container, folder, line)?;
    Ok(output.ok()?.line())
}

/// Runs a program in a new folder. Its function `name` gives a file the name `name` there.
fn python_in(container: &Container, folder: &str, program: &str) -> Result<String> {
    let program = format!(
        "import os, tempfile\n\
         os.chdir(tempfile.mkdtemp(dir='{folder}'))\n\
         def name(file):\n    \
             proc = os.open('/proc/self/fd', os.O_RDONLY)\n    \
             os.link(str(file), os.getcwd() + '/name', src_dir_fd=proc, follow_symlinks=True)\n\
         {program}"
    );
    let output = container.exec(["python3", "-c", &program])?;
    Ok(output.ok()?.line())
}

#[track_caller]
fn assert_is_denied(output: &Output) {
    let errors = output.errors();
    assert!(errors.contains("Permission denied"), "{errors}");
}

#[track_caller]
fn assert_is_not_permitted(output: &Output) {
    let errors = output.errors();
    assert!(errors.contains("Operation not permitted"), "{errors}");
}

fn seconds() -> Result<u64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Ok(now.context("the clock")?.as_secs())
}
