//! `caisson skill`: packs folders into squashfs files and manages the node's store of them.
//! `caisson-remote` fetches and publishes them.

mod attach;
mod pack;

use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use caisson_node::{
    config::NodeConfig,
    control::Request,
    skills::{Skill, SkillStore},
};
use caisson_oci::annotations::SkillRef;
use clap::{Args, Subcommand};

use crate::remote;

#[derive(Subcommand)]
pub enum Command {
    /// Packs a folder into a squashfs file and adds it to this node's store
    ///
    /// The same tree gives the same digest: times and owners are left out.
    Pack {
        /// The folder
        dir: PathBuf,
        #[command(flatten)]
        manifest: Manifest,
        /// Writes the file there instead of adding it to the store
        #[arg(short, long)]
        output: Option<PathBuf>,
        /// Adds hashes of all blocks, by which the VMs check what they read (dm-verity)
        #[arg(long, conflicts_with = "output")]
        verity: bool,
    },
    /// Adds a squashfs or EROFS file to this node's store
    Add {
        file: PathBuf,
        #[command(flatten)]
        manifest: Manifest,
    },
    /// Gets a skill from the configured sources, where the store does not have it
    #[command(disable_help_flag = true)]
    Fetch(remote::Arguments),
    /// Publishes a skill of the store to a configured source
    #[command(disable_help_flag = true)]
    Push(remote::Arguments),
    /// Lists this node's skills
    List,
    /// Reads skills whole and compares them with their digests: all, when none is said
    Verify {
        /// sha256:HEX or NAME@VERSION
        skills: Vec<SkillRef>,
    },
    /// Brings a skill into the running containers of a pod
    ///
    /// It is a disk of the pod's VM then, mounted read-only. Containers that the pod gets later do
    /// not have it.
    Attach {
        /// NAMESPACE/NAME, or the sandbox's id
        pod: String,
        /// sha256:HEX or NAME@VERSION
        skill: SkillRef,
        /// Mounts it at /opt/skills/NAME
        #[arg(long)]
        name: Option<String>,
        /// The container's name or id; all of the pod's, when not said
        #[arg(long)]
        container: Option<String>,
    },
    /// Takes a skill that was attached out of a pod again; not while something there is in use
    Detach {
        /// NAMESPACE/NAME, or the sandbox's id
        pod: String,
        /// sha256:HEX or NAME@VERSION
        skill: SkillRef,
        /// The container's name or id; all of the pod's, when not said
        #[arg(long)]
        container: Option<String>,
    },
    /// Removes skills that no running pod has
    Remove {
        /// sha256:HEX or NAME@VERSION
        #[arg(required = true)]
        skills: Vec<SkillRef>,
    },
    /// Removes the least recently used skills until the store is within its bound, never one that a
    /// running pod has
    Gc {
        /// The bound in MiB; skills.max_mib of the configuration, when not said
        #[arg(long)]
        max_mib: Option<u64>,
    },
}

/// What a skill's manifest says.
#[derive(Args)]
pub struct Manifest {
    /// The skill's name; the folder's or file's without its extension, when not said
    #[arg(long)]
    name: Option<String>,
    /// By which pods can ask for it as NAME@VERSION
    #[arg(long)]
    version: Option<String>,
    /// Where it is mounted in a container; /opt/skills/NAME, when not said
    #[arg(long, value_name = "PATH")]
    mount_path: Option<PathBuf>,
}

impl Manifest {
    fn of(self, path: &Path) -> Result<Skill> {
        let name = match self.name {
            Some(name) => name,
            None => {
                let part = if path.is_dir() {
                    path.file_name()
                } else {
                    path.file_stem()
                };
                let name = part.and_then(std::ffi::OsStr::to_str);
                let missing = || format!("{} gives no name; say one with --name", path.display());
                name.with_context(missing)?.to_owned()
            }
        };
        Ok(Skill {
            version: self.version,
            mount_path: self.mount_path,
            ..Skill::named(&name)
        })
    }
}

/// Runs the command. Prints `sha256:HEX` of what was packed, added or removed.
pub fn run(command: Command, config: &NodeConfig) -> Result<()> {
    let store = SkillStore::new(&config.store_dir);
    match command {
        Command::Pack {
            dir,
            manifest,
            output,
            verity,
        } => {
            let mut skill = manifest.of(&dir)?;
            if let Some(output) = output {
                return pack::pack(&dir, &output);
            }
            let folder = tempfile::tempdir().context("make a temporary folder")?;
            let file = folder.path().join("skill.squashfs");
            pack::pack(&dir, &file)?;
            if verity {
                skill.verity = Some(pack::seal(&file)?);
            }
            print(&store.add(&file, skill)?);
        }
        Command::Add { file, manifest } => print(&store.add(&file, manifest.of(&file)?)?),
        Command::Fetch(arguments) => return Err(remote::execute(&["skill", "fetch"], &arguments)),
        Command::Push(arguments) => return Err(remote::execute(&["skill", "push"], &arguments)),
        Command::List => {
            for skill in store.list()? {
                println!(
                    "sha256:{} {:>12} {}{}",
                    skill.digest,
                    skill.size,
                    skill.name,
                    skill
                        .version
                        .map(|version| format!("@{version}"))
                        .unwrap_or_default()
                );
            }
        }
        Command::Attach {
            pod,
            skill,
            name,
            container,
        } => {
            let skill = skill.to_string();
            let request = Request::AttachSkill {
                skill,
                name,
                container,
            };
            return attach::ask(config, &pod, &request);
        }
        Command::Detach {
            pod,
            skill,
            container,
        } => {
            let skill = skill.to_string();
            return attach::ask(config, &pod, &Request::DetachSkill { skill, container });
        }
        Command::Verify { skills } => return verify(&store, &skills),
        Command::Remove { skills } => {
            for wanted in skills {
                let skill = store.get(&wanted)?;
                store.remove(&skill)?;
                print(&skill);
            }
        }
        Command::Gc { max_mib } => {
            let bound = max_mib.unwrap_or(config.skills.max_mib) << 20;
            store.gc(bound)?.iter().for_each(print);
        }
    }
    Ok(())
}

fn print(skill: &Skill) {
    println!("sha256:{}", skill.digest);
}

fn verify(store: &SkillStore, wanted: &[SkillRef]) -> Result<()> {
    let skills = if wanted.is_empty() {
        store.list()?
    } else {
        let named = wanted.iter().map(|wanted| store.get(wanted));
        named.collect::<Result<_, _>>()?
    };
    let mut damaged = 0;
    for skill in &skills {
        match store.verify(skill) {
            Ok(()) => print(skill),
            Err(error) => {
                eprintln!("{error}");
                damaged += 1;
            }
        }
    }
    if damaged > 0 {
        bail!("{damaged} of {} skills are damaged", skills.len());
    }
    Ok(())
}
