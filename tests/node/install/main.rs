//! Tests `caisson node install` and `uninstall` on real containerds. The test restarts them when
//! they end, as systemd would.
//!
//! Files are compared with their earlier state byte by byte: see [`site::Snapshot`].

mod site;

use std::{fs, process::Command, time::Duration};

use anyhow::{ensure, Context, Result};
use caisson_tests::{
    paths::{self, Containerd},
    Runtime,
};
use rstest::rstest;
use serde_json::json;

use site::{Site, HANDLER};

/// Goes from nothing to a pod in a VM, and back to nothing.
#[rstest]
#[case::containerd_1_6(Containerd::V1_6)]
#[case::containerd_1_7(Containerd::V1_7)]
#[case::containerd_2(Containerd::V2)]
fn installed_handler_runs_a_pod_and_uninstall_leaves_nothing(
    #[case] version: Containerd,
) -> Result<()> {
    let site = Site::start(version)?;
    let before = site.snapshot()?;
    let installed = site.run(site.install()?)?.ok()?;
    assert!(
        installed.text().contains("\nself-test   Linux "),
        "{}",
        installed.text()
    );

    let pod = site.node.pod().handler(HANDLER).start()?;
    site.node.image("busybox")?;
    let container = pod.container("busybox").args(["sleep", "1000"]).start()?;
    let host = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    assert_ne!(container.sh("uname -r")?, host.trim());
    let status = site.status()?;
    assert_eq!(status["ready"], true, "{status}");
    assert_eq!(status["pods"][0]["version"], status["version"], "{status}");

    let refused = site.run(site.uninstall()?)?;
    let name = format!("tests/{}", pod.hostname());
    assert!(
        refused.code != 0 && refused.errors().contains(&name),
        "{}",
        refused.errors()
    );
    assert_eq!(container.sh("echo goes on")?, "goes on");
    container.stop(Duration::ZERO)?;
    container.remove()?;
    pod.stop()?;
    pod.remove()?;

    site.run(site.uninstall()?)?.ok()?;
    site.is_as(&before, "uninstalled")
}

/// Goes from settings with a preset to a pod that has it, to settings without, and back to nothing.
#[rstest]
#[case::containerd_1_6(Containerd::V1_6)]
#[case::containerd_1_7(Containerd::V1_7)]
#[case::containerd_2(Containerd::V2)]
fn installed_preset_has_a_handler_until_it_is_no_more(#[case] version: Containerd) -> Result<()> {
    const PRESET: &str = "installed-small";
    let site = Site::start(version)?;
    let before = site.snapshot()?;
    let link = site
        .dir()
        .join("prefix/presets/containerd-shim-caisson-small-v2");
    site.run(site.install_with_settings(&paths::dist())?)?
        .ok()?;
    let pod = site.node.pod().handler(PRESET).start()?;
    let status = site.status()?;
    assert_eq!(status["ready"], true, "{status}");
    assert_eq!(status["presets"], json!(["small"]), "{status}");
    assert_eq!(status["pods"][0]["preset"], "small", "{status}");

    site.set("[vm]\ndefault_memory_mib = 300\n")?;
    site.run(site.install_with_settings(&paths::dist())?)?
        .ok()?;
    // A pod keeps its preset, and no other pod gets it.
    let container = pod.container("busybox").milli_cpus(2000);
    assert_eq!(container.args(["nproc"]).run()?.ok()?.line(), "1");
    let refused = || {
        let error = site.node.pod().handler(PRESET).start().err();
        Ok::<_, anyhow::Error>(format!("{:#}", error.context("it has started")?))
    };
    let error = refused()?;
    assert!(error.contains("the node has no such preset"), "{error}");
    assert!(link.is_symlink());
    pod.stop()?;
    pod.remove()?;

    let again = site.run(site.install_with_settings(&paths::dist())?)?;
    let said = again.ok()?.text();
    assert!(said.contains("removed     preset small"), "{said}");
    assert!(!link.is_symlink());
    let error = refused()?;
    assert!(error.contains("no runtime for"), "{error}");
    site.run(site.uninstall()?)?.ok()?;
    site.is_as(&before, "uninstalled")
}

#[test]
fn preset_that_cannot_be_is_refused_before_anything_is_changed() -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    site.set("[presets.UPPER]\n")?;
    let before = site.snapshot()?;
    let refused = site.run(site.install_small()?)?;
    let errors = refused.errors();
    assert!(
        refused.code != 0 && errors.contains("[presets.UPPER]"),
        "{errors}"
    );
    site.is_as(&before, "refused")
}

#[rstest]
#[case::read_only("ro", "is on a read-only file system")]
#[case::without_programs("noexec", "no program may run from (noexec)")]
fn prefix_where_nothing_can_be_installed_is_refused(
    #[case] option: &str,
    #[case] text: &str,
) -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    let prefix = site.dir().join("prefix");
    fs::create_dir(&prefix)?;
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", option, "tmpfs"]);
    ensure!(mount.arg(&prefix).status()?.success(), "mount");
    let before = site.snapshot()?;
    let refused = site.run(site.install_small()?);
    let as_before = site.is_as(&before, "refused");
    ensure!(Command::new("umount").arg(&prefix).status()?.success());
    as_before?;
    let refused = refused?;
    let errors = refused.errors();
    let said = errors.contains(text) && errors.contains("--prefix");
    assert!(refused.code != 0 && said, "{errors}");
    Ok(())
}

#[test]
fn install_a_second_time_changes_nothing() -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    site.run(site.install_small()?)?.ok()?;
    let (installed, pid) = (site.snapshot()?, site.containerd()?);
    site.run(site.install_small()?)?.ok()?;
    assert_eq!(site.snapshot()?, installed);
    assert_eq!(site.containerd()?, pid, "containerd was restarted");
    Ok(())
}

/// containerd keeps running with what it has read. It would not start with the file that is now on
/// the disk.
#[rstest]
#[case::no_toml("\n[plugins\n")]
#[case::a_type_that_is_wrong("\n[metrics]\naddress = 5\n")]
fn configuration_that_containerd_refuses_is_left_as_it_was(#[case] broken: &str) -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    let config = site.dir().join("containerd.toml");
    let text = fs::read_to_string(&config)? + broken;
    fs::write(&config, &text)?;
    let (before, pid) = (site.snapshot()?, site.containerd()?);
    let refused = site.run(site.install_small()?)?;
    assert_eq!(refused.code, 1, "{}", refused.text());
    assert_eq!(site.snapshot()?, before);
    assert_eq!(site.containerd()?, pid, "containerd was restarted");
    Ok(())
}

#[test]
fn containerd_that_does_not_come_up_gets_its_old_configuration_back() -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    let before = fs::read(site.dir().join("containerd.toml"))?;
    // A containerd that can't start with Caisson's handler.
    let config = site.dir().join("containerd.toml");
    let restore = site.replace_containerd(&format!(
        "if grep -q 'runtimes.{HANDLER}' {}; then echo no; exit 1; fi",
        config.display()
    ))?;
    let mut install = site.install_small()?;
    install.args(["--restart-limit", "5"]);
    let failed = site.run(install)?;
    restore()?;
    let errors = failed.errors();
    assert_eq!(failed.code, 1, "{}", failed.text());
    assert!(
        errors.contains("its configuration is as it was and it runs with that"),
        "{errors}"
    );
    assert_eq!(fs::read(&config)?, before);
    site.containerd()?;
    // With a containerd that can, the next install continues from there.
    site.run(site.install_small()?)?.ok()?;
    Ok(())
}

/// containerd 1.x forgets its default runtimes if a file names one.
#[rstest]
#[case::containerd_1_6(Containerd::V1_6)]
#[case::containerd_1_7(Containerd::V1_7)]
#[case::containerd_2(Containerd::V2)]
fn runc_stays_where_the_configuration_names_no_runtime(#[case] version: Containerd) -> Result<()> {
    let site = Site::start(version)?;
    let config = site.dir().join("containerd.toml");
    let text = fs::read_to_string(&config)?;
    let mut table: toml::Table = text.parse()?;
    for (_, plugin) in table["plugins"].as_table_mut().context("plugins")? {
        plugin
            .as_table_mut()
            .map(|plugin| plugin.remove("containerd"));
    }
    fs::write(&config, table.to_string())?;
    site.run(site.install_small()?)?.ok()?;
    let pod = site.node.pod().runtime(Runtime::Runc).start()?;
    pod.stop()?;
    pod.remove()?;
    let before = table.to_string();
    site.run(site.uninstall()?)?.ok()?;
    assert_eq!(fs::read_to_string(&config)?, before);
    Ok(())
}

/// k3s does this: at each start it generates containerd's configuration anew, from a base and what
/// a template adds to it.
#[rstest]
#[case::format_2(Containerd::V1_6, "config.toml.tmpl")]
#[case::format_3(Containerd::V2, "config-v3.toml.tmpl")]
fn generated_configuration_gets_the_handler_by_its_template(
    #[case] version: Containerd,
    #[case] template: &str,
) -> Result<()> {
    let site = Site::start(version)?;
    let config = site.dir().join("containerd.toml");
    let head = "# File generated by k3s. DO NOT EDIT. Use config.toml.tmpl instead.\n";
    let base = format!("{head}{}\n", fs::read_to_string(&config)?);
    let (base_file, template) = (site.dir().join("logs/base"), site.dir().join(template));
    fs::write(&base_file, &base)?;
    fs::write(&config, &base)?;
    let _restore = site.replace_containerd(&format!(
        "cp {} {config}\nif [ -e {template} ]; then grep -v '{{{{' {template} >> {config}; fi",
        base_file.display(),
        config = config.display(),
        template = template.display(),
    ))?;
    let before = site.snapshot()?;
    site.run(site.install_small()?)?.ok()?;
    let added = fs::read_to_string(&template)?;
    assert!(added.starts_with("{{ template \"base\" . }}\n"), "{added}");
    assert_eq!(site.status()?["ready"], true);
    site.run(site.uninstall()?)?.ok()?;
    site.is_as(&before, "uninstalled")
}

#[test]
fn configuration_that_was_changed_since_loses_the_handler_only() -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    let config = site.dir().join("containerd.toml");
    let text = fs::read_to_string(&config)?;
    site.run(site.install_small()?)?.ok()?;
    let added = "\n# later\n[metrics]\n  grpc_histogram = false\n";
    fs::write(&config, fs::read_to_string(&config)? + added)?;
    site.run(site.uninstall()?)?.ok()?;
    assert_eq!(fs::read_to_string(&config)?, format!("{text}\n{added}"));
    Ok(())
}

/// Tests containerd 2, where a drop-in adds to the runtimes and does not replace them.
#[test]
fn folder_of_imports_gets_a_file_and_the_configuration_is_not_touched() -> Result<()> {
    let site = Site::start(Containerd::V2)?;
    let config = site.dir().join("containerd.toml");
    let imports = format!("imports = [\"{}/conf.d/*.toml\"]\n", site.dir().display());
    fs::write(&config, imports + &fs::read_to_string(&config)?)?;
    let before = site.snapshot()?;
    let text = fs::read(&config)?;
    site.run(site.install_small()?)?.ok()?;
    assert_eq!(fs::read(&config)?, text);
    let drop_in = fs::read_to_string(site.dir().join("conf.d/50-caisson.toml"))?;
    assert!(drop_in.contains(HANDLER), "{drop_in}");
    site.run(site.uninstall()?)?.ok()?;
    site.is_as(&before, "uninstalled")
}

#[test]
fn version_that_a_pod_runs_with_stays_until_the_pod_has_ended() -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    let before = site.snapshot()?;
    let mut install = site.install()?;
    install.arg("--no-self-test");
    site.run(install)?.ok()?;
    let old = site.status()?["version"].clone();
    let pod = site.node.pod().handler(HANDLER).start()?;
    site.run(site.install_small()?)?.ok()?;
    let status = site.status()?;
    assert_eq!(status["pods"][0]["version"], old, "{status}");
    assert_ne!(status["version"], old, "{status}");
    assert_eq!(
        status["versions"].as_array().map(Vec::len),
        Some(2),
        "{status}"
    );

    let mut force = site.uninstall()?;
    force.arg("--force");
    let left = site.run(force)?;
    assert_eq!(left.code, 1);
    assert!(
        left.errors().contains(old.as_str().context("a version")?),
        "{}",
        left.errors()
    );
    assert!(pod.is_ready()?);
    pod.stop()?;
    pod.remove()?;
    site.run(site.uninstall()?)?.ok()?;
    site.is_as(&before, "uninstalled")
}

/// Kills install with SIGKILL at each system call that changes something, then runs it again and
/// undoes it.
#[test]
fn install_killed_anywhere_goes_on_and_is_taken_back() -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    let before = site.snapshot()?;
    let kills = site.killed_at_each_call(
        "install",
        || site.install_small(),
        |at| {
            site.run(site.install_small()?)?
                .ok()
                .with_context(|| at.clone())?;
            let status = site.status()?;
            ensure!(status["ready"] == true, "{at}: {status}");
            site.run(site.uninstall()?)?
                .ok()
                .with_context(|| at.clone())?;
            site.is_as(&before, &at)
        },
    )?;
    ensure!(kills > 5, "only {kills} kills");
    Ok(())
}

/// Kills install as above, then undoes it at once.
#[test]
fn install_killed_anywhere_is_taken_back_by_uninstall_alone() -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    let before = site.snapshot()?;
    site.killed_at_each_call(
        "install",
        || site.install_small(),
        |at| {
            site.run(site.uninstall()?)?
                .ok()
                .with_context(|| at.clone())?;
            site.is_as(&before, &at)
        },
    )?;
    Ok(())
}

#[test]
fn uninstall_killed_anywhere_goes_on() -> Result<()> {
    let site = Site::start(Containerd::from_environment()?)?;
    let before = site.snapshot()?;
    let installed = || {
        site.run(site.install_small()?)?.ok()?;
        site.uninstall()
    };
    let kills = site.killed_at_each_call("uninstall", installed, |at| {
        site.run(site.uninstall()?)?
            .ok()
            .with_context(|| at.clone())?;
        site.is_as(&before, &at)
    })?;
    ensure!(kills > 5, "only {kills} kills");
    Ok(())
}
