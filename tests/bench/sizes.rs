//! Measures the memory of a running container's processes and the sizes of the shipped files.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use caisson_tests::{command, paths, proc, Node};

use crate::table::{heading, mib, print_ratio_to_before, verdict};

/// Prints the memory of each process of one idle container. Returns whether the shim keeps within
/// its limit, and takes no more than that of the build before, if there is one.
pub fn memory(node: &Node, before: Option<&Node>, shim_limit: u64) -> Result<bool> {
    heading("\nmemory of one container that sleeps, and its processes on the host (PSS)");
    let rss = processes(node)?;
    let mut kept = rss <= shim_limit;
    println!("  at most {}: {}", mib(shim_limit).trim(), verdict(kept));
    println!(
        "  {:<56} {}",
        "agent (in the guest; here measured on the host, idle)",
        mib(agent(node)?)
    );
    if let Some(node) = before {
        heading("\nthe same with the build before");
        kept &= print_ratio_to_before(rss as f64 / processes(node)? as f64);
    }
    Ok(kept)
}

/// Starts a container and prints the memory of its processes. Returns the shim's resident memory in
/// bytes.
fn processes(node: &Node) -> Result<u64> {
    let container = node.container("busybox").args(["sleep", "1000"]).start()?;
    container.sh("true")?;
    let shim = container.shim()?;
    println!("  {:<56} {}", "shim", mib(proc::pss(shim)?));
    for (role, pid) in container.vm_processes()? {
        println!("  {role:<56} {}", mib(family_pss(pid)?));
    }
    let rss = proc::rss(shim)?;
    println!("  {:<56} {}", "shim, resident", mib(rss));
    Ok(rss)
}

/// Returns the proportional set size of a process and its descendants. virtiofsd's sandbox is a
/// child of the process that was started.
pub fn family_pss(pid: u32) -> Result<u64> {
    let family = proc::descendants(pid).into_iter().chain([pid]);
    family.map(proc::pss).sum()
}

/// Prints the sizes of the files that `cargo xtask dist` made.
pub fn binaries() -> Result<()> {
    heading("\nsizes");
    for folder in ["bin", "libexec", "guest"] {
        let dir = paths::dist().join(folder);
        let mut files: Vec<_> = fs::read_dir(&dir)
            .context("cargo xtask dist")?
            .collect::<std::io::Result<_>>()?;
        files.sort_by_key(|file| file.file_name());
        for file in files {
            let name = file.file_name();
            let name = Path::new(folder).join(name).display().to_string();
            println!("  {name:<56} {}", mib(file.metadata()?.len()));
        }
    }
    let agent = fs::metadata(paths::agent()).context("the agent")?;
    println!("  {:<56} {}", "agent (in initramfs.cpio)", mib(agent.len()));
    Ok(())
}

/// Measures the agent as the tests' fake VMM runs it, since nothing outside can look into the
/// guest.
fn agent(node: &Node) -> Result<u64> {
    let dir = node.dir().join("agent");
    fs::create_dir_all(dir.join("devices"))?;
    // The answer to the agent: a daemon carries the connections, then the secret
    // (guest/protocol/src/secret.rs).
    fs::write(dir.join("secret"), [b'd'; 33])?;
    let child = Command::new(paths::agent())
        .arg("--fake")
        .arg(&dir)
        .current_dir(&dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start the agent")?;
    let agent = Ended(child);
    command::poll("the agent to listen", Duration::from_secs(5), || {
        fs::metadata(dir.join("1024.sock")).ok()
    })?;
    std::thread::sleep(Duration::from_millis(200));
    proc::pss(agent.0.id())
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
