//! `cargo xtask JOB`: builds what is shipped and what the tests need. Each job has its own file.
//!
//! ```text
//! machine ----> ~/.cache/caisson/machine: QEMU and the guest's kernel, built from their sources
//! image ------> target/dist/guest/{vmlinux,initramfs.cpio,modules.squashfs,manifest.json}
//! helpers ----> target/dist/libexec/{virtiofsd,vhost-device-vsock}
//! dist -------> target/dist/bin/{containerd-shim-caisson-v2,caisson,caisson-remote},
//!              target/dist/libexec/{qemu-system-x86_64,roms}, image and helpers
//! release ----> target/dist/{node-image.tar,caisson_VERSION_amd64.deb,
//!                            sbom.cdx.json,licences.txt,SHA256SUMS}
//! test-tools, cluster-tools -> target/cache/tools/
//! node-vm ----> ~/.cache/caisson/node-vm: disks of Debian nodes, for tests
//! ```

mod apt;
mod archive;
mod cache;
mod deb;
mod demo;
mod deny;
mod dirs;
mod dist;
mod files;
mod fuzz;
mod helpers;
mod image;
mod inputs;
mod libraries;
mod machine;
mod node_image;
mod node_vm;
mod oci_image;
mod papers;
mod payload;
mod pins;
mod profile;
mod prose;
mod release;
mod run;
mod static_build;
mod step;
mod test_tools;
mod timings;

use std::process::ExitCode;

use anyhow::{bail, Context, Result};
use machine::Machine;
use pins::Pins;
use profile::Profile;
use test_tools::Further;

const USAGE: &str = "usage: cargo xtask JOB

  machine                     QEMU and the guest's kernel from their sources, into ~/.cache/caisson/machine. Once they
                              are there, they take the place of Debian's in all that follows, except the demo
  image [--locked]            the guest image; --locked: refuse other sources than the pinned ones
  image --update-pins         pin the kernel that Debian 12 has now
  image --check-reproducible  build it again from nothing and compare
  image --hostile             an initramfs for tests whose agent lies to the host: target/cache/hostile
  helpers                     virtiofsd and vhost-device-vsock
  dist [--locked|--release]   the programs of a node, machine, image and helpers; --release: as small and quick as in
                              a release
  dist --debian               the same for Debian's QEMU and with Debian's kernel: target/dist-debian
  node-image                  dist, and the image of the chart's pods: target/dist/node-image.tar
  deb                         dist --release, and a Debian package of it
  release                     dist --release, node image, Debian package, SBOM, licences and SHA256SUMS of them all
                              these three with --as-is: of what is in target/dist; with --locked: refuse other
                              sources than the pinned ones
  release --check-reproducible  packs target/dist twice and compares
  test-tools [--chart|--crictl|--gvisor|--integration|--nerdctl|--posix]
                              containerd 2.1 and runc from their Go modules and 1.7 from Debian 13, for the tests;
                              crictl for nodes in VMs; gVisor for the bench; containerd's own CRI tests and critest;
                              nerdctl; --chart: only helm and the description of Kubernetes' API
  cluster-tools [--add-ons|--conformance]
                              Kubernetes, etcd, CoreDNS and helm from their Go modules, for `make cluster`; the
                              controller of agent-sandbox and kube-router; Kubernetes' own end-to-end tests
  node-vm [12|13]             the disks of Debian 12's and 13's nodes that `make test-node` boots, into
                              ~/.cache/caisson/node-vm
  demo                        builds what it needs of dist, then: two containers in VMs of their own, with a skill and a home, by Debian's containerd
  run NAME [ARGUMENT ...]     a program of the tests' crate: bench, cri-integration, critest, conformance
  timings                     which crates the programs of the demo take their time to build for
  prose                       comments and pages have at most 100 characters a line
  deny                        licences, bans and sources of the dependencies
  fuzz SECONDS [TARGET ...]   the fuzz targets under tests/fuzz, each for so many seconds of CPU time
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match dispatch(&args) {
        Ok(()) => {
            step::print_times();
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[&str]) -> Result<()> {
    let dirs = dirs::Dirs::find()?;
    let lock = dirs.lock()?;
    match args {
        ["machine"] => machine::build(&dirs, Pins::Prefer),
        ["image"] => {
            let machine = machine::built(&dirs)?;
            image::build(&dirs, machine, Pins::Prefer, Profile::Dev)
        }
        ["image", "--locked"] => image::build(&dirs, Machine::Own, Pins::Require, Profile::Dev),
        ["image", "--update-pins"] => image::update_pins(&dirs),
        ["image", "--check-reproducible"] => image::check_reproducible(&dirs),
        ["image", "--hostile"] => image::build_hostile(&dirs),
        ["dist"] => {
            let machine = machine::built(&dirs)?;
            dist::build(&dirs, machine, Pins::Prefer, Profile::Dev)
        }
        ["dist", "--locked"] => dist::build(&dirs, Machine::Own, Pins::Require, Profile::Dev),
        ["dist", "--release"] => {
            let machine = machine::built(&dirs)?;
            dist::build(&dirs, machine, Pins::Prefer, Profile::Release)
        }
        ["dist", "--debian"] => {
            let dirs = dirs.debian();
            dist::build(&dirs, Machine::Debian, Pins::Prefer, Profile::Dev)
        }
        ["test-tools"] => test_tools::build(&dirs, Further::Nothing),
        ["test-tools", "--gvisor"] => test_tools::build(&dirs, Further::Gvisor),
        ["test-tools", "--posix"] => test_tools::build(&dirs, Further::Posix),
        ["test-tools", "--chart"] => test_tools::build(&dirs, Further::Chart),
        ["test-tools", "--nerdctl"] => test_tools::build(&dirs, Further::Nerdctl),
        ["test-tools", "--crictl"] => test_tools::build(&dirs, Further::Crictl),
        ["test-tools", "--integration"] => test_tools::build(&dirs, Further::Integration),
        ["cluster-tools"] => test_tools::build_cluster(&dirs),
        ["cluster-tools", "--add-ons"] => test_tools::build_add_ons(&dirs),
        ["cluster-tools", "--conformance"] => test_tools::build_conformance(&dirs),
        ["node-vm", releases @ ..] => node_vm::build(&dirs, releases),
        ["timings"] => timings::print(&dirs),
        ["deny"] => deny::check(&dirs),
        ["prose"] => prose::check(&dirs),
        ["fuzz", seconds, wanted @ ..] => {
            let seconds = seconds.parse().context("the seconds of a fuzz run")?;
            fuzz::run(&dirs, lock, seconds, wanted)
        }
        ["node-image", from @ ..] => release::node_image(&dirs, where_from(from, Profile::Dev)?),
        ["deb", from @ ..] => release::deb(&dirs, where_from(from, Profile::Release)?),
        ["release", "--check-reproducible"] => release::check_reproducible(&dirs),
        ["release", from @ ..] => release::all(&dirs, where_from(from, Profile::Release)?),
        ["helpers"] => helpers::build(&dirs, Profile::Dev),
        ["demo"] => {
            dist::build_for_demo(&dirs, Pins::Prefer, Profile::Dev)?;
            drop(lock);
            demo::run(&dirs)
        }
        ["run", program, args @ ..] => run::run(&dirs, program, args),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => bail!("don't know `{}`\n{USAGE}", args.join(" ")),
    }
}

fn where_from(args: &[&str], profile: Profile) -> Result<release::From> {
    match args {
        [] => Ok(release::From::Built(Pins::Prefer, profile)),
        ["--locked"] => Ok(release::From::Built(Pins::Require, profile)),
        ["--as-is"] => Ok(release::From::AsIs),
        _ => bail!("don't know `{}`\n{USAGE}", args.join(" ")),
    }
}
