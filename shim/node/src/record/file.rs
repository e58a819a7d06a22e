//! The file of a pod's record. A reader sees the record before a change or after it, never a part
//! of one.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::data::{Record, VERSION};
use crate::host::{
    chain::chain,
    error::{FileError, OnFile},
    file,
};

/// The record, in the pod's state folder.
const FILE: &str = "record.json";

/// What can go wrong with a pod's record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is no record.
    #[error("understand {}", path.display())]
    Malformed {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// Another version of Caisson wrote it.
    #[error("{} has version {version}, this program knows {VERSION}", path.display())]
    Version { path: PathBuf, version: u32 },
}

/// Keeps the record of a pod of this process.
#[derive(Debug)]
pub struct Recorder {
    folder: PathBuf,
    record: Mutex<Record>,
}

impl Recorder {
    /// Writes the first record into a pod's state folder.
    pub fn create(folder: &Path, record: Record) -> Result<Self, RecordError> {
        write(folder, &record)?;
        Ok(Self {
            folder: folder.to_owned(),
            record: Mutex::new(record),
        })
    }

    /// Changes the record and writes it, before this returns. A change of nothing is not written.
    ///
    /// If it can't be written, the pod goes on and the log says so. A pod whose folder has been
    /// removed has no record any more.
    pub fn change<T>(&self, change: impl FnOnce(&mut Record) -> T) -> T {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let before = record.clone();
        let changed = change(&mut record);
        if *record == before {
            return changed;
        }
        match write(&self.folder, &record) {
            Err(RecordError::File(error)) if error.source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => log::error!("the pod's record is out of date: {}", chain(&error)),
            Ok(()) => {}
        }
        changed
    }
}

/// Reads the record in a pod's state folder. Returns `None` if there is none: the pod was just
/// being made or removed.
pub fn read(folder: &Path) -> Result<Option<Record>, RecordError> {
    let path = folder.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RecordError::file("read", path)(error)),
    };
    let malformed = |source| RecordError::Malformed {
        path: path.clone(),
        source,
    };
    // The version first: a record of another one may look different.
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(&text).map_err(malformed)?;
    if version != VERSION {
        return Err(RecordError::Version { path, version });
    }
    serde_json::from_slice(&text).map(Some).map_err(malformed)
}

fn write(folder: &Path, record: &Record) -> Result<(), RecordError> {
    let path = folder.join(FILE);
    match serde_json::to_vec(record) {
        Ok(text) => Ok(file::replace(&path, &text)?),
        Err(source) => Err(RecordError::Malformed { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use caisson_oci::VmSize;

    use super::*;
    use crate::record::{Container, Exit, LateSkill, MachineState, PodState, ProcessState};

    fn container(state: ProcessState) -> Container {
        Container {
            name: Some("web".to_owned()),
            bundle: "/run/containerd/x".into(),
            pid: 7,
            guest_pid: Some(3),
            state,
            cpu_milli: Some(500),
            memory: None,
            skills: vec![("/opt/skills/a".into(), "/run/disks/a".into())],
            execs: BTreeMap::from([("probe".to_owned(), ProcessState::Running)]),
        }
    }

    fn recorder(folder: &Path) -> Recorder {
        Recorder::create(folder, Record::new("pod", "k8s.io")).unwrap()
    }

    #[test]
    fn record_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = recorder(dir.path());
        let stopped = ProcessState::Stopped(Exit {
            status: 137,
            at: std::time::SystemTime::now(),
        });
        let written = recorder.change(|record| {
            record.boot(VmSize {
                cpus: 2,
                memory_mib: 300,
                most_mib: 300,
            });
            assert!(record.machine_becomes(MachineState::Running));
            let machine = record.machine.as_mut().unwrap();
            machine
                .devices
                .insert("share-pod".to_owned(), Some("slot3".to_owned()));
            machine.devices.insert("cpus".to_owned(), None);
            assert!(record.pod_becomes(PodState::Running));
            let containers = [
                ("one", container(stopped)),
                ("two", container(ProcessState::Paused)),
            ];
            record.containers = containers.map(|(id, c)| (id.to_owned(), c)).into();
            record.late_skills.push(LateSkill {
                digest: "ab".repeat(32),
                target: "/opt/skills/late".into(),
                containers: vec!["two".to_owned()],
            });
            record.clone()
        });
        assert_eq!(read(dir.path()).unwrap(), Some(written));
    }

    #[test]
    fn transition_that_is_not_drawn_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = recorder(dir.path());
        assert!(recorder.change(|record| record.pod_becomes(PodState::Ended)));
        assert!(!recorder.change(|record| record.pod_becomes(PodState::Running)));
        assert!(!recorder.change(|record| record.machine_becomes(MachineState::Running)));
        let record = read(dir.path()).unwrap().unwrap();
        assert_eq!((record.state, record.machine), (PodState::Ended, None));
    }

    #[test]
    fn folder_without_a_record_has_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_none());
    }

    #[test]
    fn record_that_was_cut_off_is_not_seen() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = recorder(dir.path());
        // A shim that is killed while it writes leaves this.
        fs::write(dir.path().join(".record.json"), "{\"version\":").unwrap();
        let record = read(dir.path()).unwrap().unwrap();
        assert_eq!(record.state, PodState::Starting);
        assert!(recorder.change(|record| record.pod_becomes(PodState::Running)));
        let record = read(dir.path()).unwrap().unwrap();
        assert_eq!(record.state, PodState::Running);
    }

    #[test]
    fn record_of_another_version_is_refused_with_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{\"version\":7,\"more\":1}").unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(
            error.ends_with("has version 7, this program knows 1"),
            "{error}"
        );
    }

    #[test]
    fn file_that_is_no_record_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "[]", "{\"version\":1}", "{\"version\":-1}"] {
            fs::write(dir.path().join(FILE), text).unwrap();
            let error = read(dir.path()).unwrap_err().to_string();
            assert!(error.contains(FILE), "{error}");
        }
    }

    #[test]
    fn pod_whose_folder_is_gone_gets_no_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("pod");
        fs::create_dir(&folder).unwrap();
        let recorder = recorder(&folder);
        fs::remove_dir_all(&folder).unwrap();
        recorder.change(|record| record.pod_becomes(PodState::Ended));
        assert!(!folder.exists());
    }
}
