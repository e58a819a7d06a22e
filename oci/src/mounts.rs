//! Translates the mounts of a container: what is shared for them, and what the guest mounts.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, MountBuilder, Spec};

use crate::{
    annotations::Annotations,
    claim::{Claimed, FOLDER},
    error::shorten,
    places::Places,
    pod, rules,
    scratch::Wanted,
    secrets::{self, Descriptor},
    volume::{self, Memory, Part, ScratchDisk, Source, Volume},
    Error, Result, Role,
};

/// File systems that the guest's kernel makes by itself, from nothing of the host.
const GUEST_FILE_SYSTEMS: &[&str] = &[
    "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "ramfs", "devtmpfs",
];

/// The folder on a disk that is the emptyDir.
const FILES: &str = "files";

/// Replaces the sources of a spec's mounts by their places in the guest, and adds the mounts of
/// skills, home and claim. Returns what the mounts need, and the descriptors of the secrets.
pub fn translate(
    spec: &mut Spec,
    role: &Role,
    annotations: &Annotations,
    claimed: Option<&Claimed>,
    scratch: Wanted,
    places: &Places,
) -> Result<(Needs, Vec<Descriptor>)> {
    let uid = pod::uid(spec);
    let mut sources = Sources {
        pod: volume::Pod {
            role,
            uid: uid.as_deref(),
            found: &places.found,
            mounted: &places.mounted,
            scratch,
        },
        places,
        needs: Needs::default(),
    };
    let mut mounts = Vec::new();
    let given = spec.mounts().clone().unwrap_or_default();
    for mount in &given {
        mounts.push(sources.translate(mount.clone())?);
    }
    let mut descriptors = secrets::find(&annotations.secret_fds, &given, &mounts)?;
    descriptors.extend(
        claimed
            .iter()
            .flat_map(|claimed| claimed.descriptors.clone()),
    );
    if let Some(process) = spec.process_mut() {
        secrets::check_environment(process, &descriptors)?;
        secrets::set_environment(process, &descriptors);
    }
    let needs = sources.needs;
    for (target, place) in &places.skills {
        mounts.push(bind(target, place, &["rbind", "ro", "nosuid", "nodev"])?);
    }
    if let Some((target, place)) = &places.home {
        mounts.push(bind(target, place, &["rbind", "rw", "nosuid", "nodev"])?);
    }
    if claimed.is_some() {
        let place = Claimed::place(&places.memory);
        let options = ["rbind", "ro", "nosuid", "nodev", "noexec"];
        mounts.push(bind(Path::new(FOLDER), &place, &options)?);
    }
    spec.set_mounts(Some(mounts));
    Ok((needs, descriptors))
}

/// What the mounts of a container need: on the host, and in the guest.
#[derive(Debug, Default)]
pub struct Needs {
    pub volumes: Vec<Volume>,
    pub memory: Vec<Memory>,
    pub disks: Vec<ScratchDisk>,
    pub parts: Vec<Part>,
}

/// Returns the places below `shares` that a translated spec's root and bind mounts come from.
pub fn shared(spec: &Spec, parts: &[Part], shares: &Path) -> Vec<PathBuf> {
    let root = spec.root().iter().map(|root| root.path().clone());
    let binds = spec.mounts().iter().flatten().filter(|m| rules::is_bind(m));
    let sources = binds.filter_map(|mount| mount.source().clone());
    let wholes = parts.iter().map(|part| part.whole.clone());
    let used = root.chain(sources).chain(wholes);
    used.filter(|path| path.starts_with(shares)).collect()
}

/// Whether mounts that the container makes below a mount are to appear elsewhere
/// (mount_namespaces(7)).
pub fn is_shared(mount: &Mount) -> bool {
    let mut options = mount.options().iter().flatten();
    options.any(|option| matches!(option.as_str(), "shared" | "rshared"))
}

/// The places that the mounts of one container come from.
struct Sources<'a> {
    pod: volume::Pod<'a>,
    places: &'a Places,
    needs: Needs,
}

impl Sources<'_> {
    fn translate(&mut self, mut mount: Mount) -> Result<Mount> {
        let refuse = |reason| Error::Field {
            field: "mounts",
            reason,
        };
        let destination = shorten(&mount.destination().to_string_lossy());
        if !mount.destination().is_absolute() {
            return Err(refuse(format!(
                "destination {destination:?} is not absolute"
            )));
        }
        let typ = mount.typ().clone().unwrap_or_default();
        let in_empty_dir = mount
            .source()
            .as_ref()
            .is_some_and(|source| rules::is_bind(&mount) && self.pod.is_in_empty_dir(source));
        if is_shared(&mount) && !in_empty_dir {
            return Err(refuse(format!(
                "rshared of {destination:?}: a mount made in the guest can't appear on the host; \
                 mountPropagation Bidirectional is possible for an emptyDir, between the containers \
                 of the pod"
            )));
        }
        if rules::is_bind(&mount) {
            let source = mount.source().clone().ok_or_else(|| {
                refuse(format!("the bind mount at {destination:?} has no source"))
            })?;
            if !source.is_absolute() {
                // The path is relative to the bundle (OCI runtime spec, config.md "Mounts").
                // Containerd never uses that.
                return Err(refuse(format!(
                    "source {:?} of the bind mount at {destination:?} is not absolute",
                    shorten(&source.to_string_lossy())
                )));
            }
            let found = self.places.found.get(&source);
            if let Some(file_system) = found.and_then(|found| found.made_up) {
                return Err(refuse(format!(
                    "source {:?} of the bind mount at {destination:?} is in the {file_system} of the \
                     host, {}",
                    shorten(&source.to_string_lossy()),
                    rules::MADE_UP
                )));
            }
            let (whole, path) = self.pod.source_of(&mount, &source)?;
            let mut folder = None;
            let place = match whole {
                Source::Host(volume) => {
                    let place = self.places.volumes.join(&volume.name);
                    self.needs.volumes.push(volume);
                    place
                }
                Source::Copy(volume, memory) => {
                    self.needs.volumes.push(volume);
                    self.remember(memory)
                }
                Source::Memory(memory) => {
                    folder = Some(self.pod.owner_of(&mount, &source));
                    self.remember(memory)
                }
                Source::Disk(disk, owner) => {
                    folder = Some(self.pod.owner_of(&mount, &source));
                    let whole = self.places.disks.join(&disk.serial);
                    if !self.needs.disks.contains(&disk) {
                        self.needs.disks.push(disk);
                    }
                    // Not the root of the file system, which has a folder for lost files.
                    self.part(Part::new(whole, FILES.into(), Some(owner)))
                }
            };
            let place = match self.pod.shares_mounts(&mount, &source) {
                true => self.part(Part::shared(place)),
                false => place,
            };
            mount.set_source(Some(match path.as_os_str().is_empty() {
                true => place,
                false => self.part(Part::new(place, path, folder)),
            }));
            // The host maps the ids.
            mount.set_uid_mappings(None).set_gid_mappings(None);
            if let Some(options) = mount.options_mut() {
                options.retain(|option| !matches!(option.as_str(), "idmap" | "ridmap"));
            }
            return Ok(mount);
        }
        if !GUEST_FILE_SYSTEMS.contains(&typ.as_str()) {
            return Err(refuse(format!(
                "type {:?} at {destination:?} can't be mounted in the guest; possible are bind and {}",
                shorten(&typ),
                GUEST_FILE_SYSTEMS.join(", ")
            )));
        }
        if let Some(memory) = self.pod.own_shm(&mount) {
            let place = self.remember(memory);
            return bind(mount.destination(), &place, &["rbind", "rw"]);
        }
        Ok(mount)
    }

    fn remember(&mut self, memory: Memory) -> PathBuf {
        let place = self.places.memory.join(&memory.name);
        if !self.needs.memory.contains(&memory) {
            self.needs.memory.push(memory);
        }
        place
    }

    fn part(&mut self, part: Part) -> PathBuf {
        let place = self.places.parts.join(&part.name);
        self.needs.parts.push(part);
        place
    }
}

fn bind(target: &Path, source: &Path, options: &[&str]) -> Result<Mount> {
    MountBuilder::default()
        .destination(target)
        .typ("bind")
        .source(source)
        .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        .build()
        .map_err(|error| Error::Field {
            field: "mounts",
            reason: error.to_string(),
        })
}
