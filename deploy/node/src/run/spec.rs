//! Makes `config.json` from an image's configuration and the arguments, as `ctr run` would
//! (containerd, pkg/oci: the default Unix spec).

use std::path::Path;

use anyhow::{ensure, Context, Result};
use caisson_oci::annotations::{HOME, SKILLS};
use caisson_oci::spec::Spec;
use serde_json::{json, Value};

use super::{arguments::Arguments, image::Config, user::User};

/// The search path for an image that sets none, and for a folder.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The length of a period in which a cpu limit holds, in microseconds (kernel, cgroup-v2.rst
/// `cpu.max`).
const PERIOD: u64 = 100_000;

/// The capabilities that containerd leaves to a container's root.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// What the spec is made for, besides the arguments.
pub struct Container<'a> {
    pub id: &'a str,
    /// The folder that is the container's root.
    pub rootfs: &'a Path,
    pub image: &'a Config,
    pub user: &'a User,
    pub terminal: bool,
    /// The value of `caisson.dev/skills`.
    pub skills: &'a [String],
}

/// Makes the spec.
pub fn make(arguments: &Arguments, container: &Container<'_>) -> Result<Spec> {
    let image = container.image;
    let User { uid, gid, groups } = container.user;
    let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({ "type": kind }));
    let mut spec = json!({
        "ociVersion": "1.1.0",
        "hostname": container.id,
        "root": { "path": container.rootfs },
        "process": {
            "terminal": container.terminal,
            "user": { "uid": uid, "gid": gid, "additionalGids": groups },
            "args": command(arguments, image)?,
            "env": environment(arguments, container),
            "cwd": cwd(arguments, image)?,
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "mounts": [
            mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
            mount("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
            mount("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
            mount("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
            mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
            mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
            mount("/run", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        ],
        "linux": {
            "namespaces": namespaces,
            "resources": resources(arguments)?,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/sys/devices/virtual/powercap", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
        "annotations": {},
    });
    if !container.skills.is_empty() {
        spec["annotations"][SKILLS] = json!(container.skills.join(","));
    }
    if let Some(home) = &arguments.home {
        spec["annotations"][HOME] = json!(format!("persistent/{home}"));
    }
    serde_json::from_value(spec).context("make config.json")
}

fn mount(destination: &str, kind: &str, source: &str, options: &str) -> Value {
    let options: Vec<_> = options.split(',').collect();
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

fn resources(arguments: &Arguments) -> Result<Value> {
    let mut resources = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    if let Some(mib) = arguments.memory {
        let bytes = i64::try_from(mib << 20).context("--memory is too much")?;
        resources["memory"] = json!({ "limit": bytes });
    }
    if let Some(cpus) = arguments.cpus {
        let quota = (cpus * PERIOD as f64).round() as i64;
        // 1000 is the least that the kernel accepts.
        resources["cpu"] = json!({ "quota": quota.max(1000), "period": PERIOD });
    }
    Ok(resources)
}

/// Returns the command as docker does it: the given command replaces the image's `Cmd` and follows
/// its entrypoint.
fn command(arguments: &Arguments, image: &Config) -> Result<Vec<String>> {
    let mut command = match arguments.entrypoint.as_deref() {
        None => image.entrypoint.clone(),
        Some("") => Vec::new(),
        Some(program) => vec![program.to_owned()],
    };
    match arguments.command.is_empty() {
        false => command.extend(arguments.command.iter().cloned()),
        // The image's own arguments are only for the image's own entrypoint.
        true if arguments.entrypoint.is_none() => command.extend(image.cmd.iter().cloned()),
        true => {}
    }
    ensure!(
        !command.is_empty(),
        "no command: the image names none; say one after --"
    );
    Ok(command)
}

fn environment(arguments: &Arguments, container: &Container<'_>) -> Vec<String> {
    let mut env = vec![PATH.to_owned()];
    if container.terminal {
        env.push("TERM=xterm".to_owned());
    }
    let from_host = |entry: &String| match entry.contains('=') {
        true => Some(entry.clone()),
        false => Some(format!("{entry}={}", std::env::var(entry).ok()?)),
    };
    let said = arguments.env.iter().filter_map(from_host);
    for entry in container.image.env.iter().cloned().chain(said) {
        let name = |entry: &str| entry.split('=').next().map(str::to_owned);
        match env.iter_mut().find(|old| name(old) == name(&entry)) {
            Some(old) => *old = entry,
            None => env.push(entry),
        }
    }
    env
}

fn cwd(arguments: &Arguments, image: &Config) -> Result<String> {
    let said = arguments.workdir.as_ref().unwrap_or(&image.working_dir);
    match said.as_str() {
        "" => Ok("/".to_owned()),
        dir if Path::new(dir).is_absolute() => Ok(dir.to_owned()),
        dir => anyhow::bail!("the working directory {dir:?} is not absolute"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn spec(line: &[&str], image: &Config) -> Result<Value> {
        let line = Line::try_parse_from([&["run"], line].concat())?;
        let user = User {
            uid: 7,
            gid: 8,
            groups: vec![8, 9],
        };
        let container = Container {
            id: "run-1",
            rootfs: Path::new("rootfs"),
            image,
            user: &user,
            terminal: false,
            skills: &line.arguments.skill,
        };
        Ok(serde_json::to_value(make(&line.arguments, &container)?)?)
    }

    fn image() -> Config {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Config {
            env: texts(&["PATH=/bin", "COLOUR=red"]),
            entrypoint: texts(&["/entry", "-e"]),
            cmd: texts(&["serve"]),
            working_dir: "/work".to_owned(),
            ..Config::default()
        }
    }

    #[test]
    fn image_says_what_runs_unless_the_arguments_do() {
        let args = |line: &[&str]| spec(line, &image()).unwrap()["process"]["args"].clone();
        assert_eq!(args(&["i"]), json!(["/entry", "-e", "serve"]));
        assert_eq!(
            args(&["i", "--", "ls", "-l"]),
            json!(["/entry", "-e", "ls", "-l"])
        );
        assert_eq!(args(&["--entrypoint=", "i", "--", "ls"]), json!(["ls"]));
        assert_eq!(args(&["--entrypoint=sh", "i"]), json!(["sh"]));
    }

    #[test]
    fn environment_of_the_image_is_changed_by_the_arguments() {
        let env = ["--env", "COLOUR=blue=", "-e", "MORE=1"];
        let spec = spec(&[&env[..], &["i"]].concat(), &image()).unwrap();
        assert_eq!(
            spec["process"]["env"],
            json!(["PATH=/bin", "COLOUR=blue=", "MORE=1"])
        );
        assert_eq!(spec["process"]["cwd"], "/work");
    }

    #[test]
    fn limits_user_and_annotations_are_in_the_spec() {
        let line = ["--memory", "256MiB", "--cpus", "1.5", "--home", "anna", "i"];
        let spec = spec(&line, &image()).unwrap();
        let resources = &spec["linux"]["resources"];
        assert_eq!(resources["memory"]["limit"], 256 << 20);
        assert_eq!(resources["cpu"]["quota"], 150_000);
        assert_eq!(spec["annotations"], json!({ HOME: "persistent/anna" }));
        let user = json!({ "uid": 7, "gid": 8, "additionalGids": [8, 9] });
        assert_eq!(spec["process"]["user"], user);
    }

    #[test]
    fn image_without_a_command_needs_one() {
        let error = spec(&["i"], &Config::default()).unwrap_err().to_string();
        assert!(error.contains("after --"), "{error}");
    }
}
