//! A QEMU process with a stopped machine, confined, and the connection to its monitor.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::{
    net::{unix::OwnedWriteHalf, UnixStream},
    sync::watch,
};

use super::{
    command_line::{self, Descriptors, Purpose},
    events::{self, Pause},
    qmp::{Event, Qmp},
    resize, seccomp,
};
use crate::{
    driver::{
        end::Said,
        jail::Jail,
        limits::Limits,
        log_lines::{follow_but, Tail},
        process::Child,
        spawn::{Confinement, Program, FIRST_DESCRIPTOR},
        stage::log_stage,
    },
    Accelerator, Error, Result, Translations, VmSpec, SECRET_MARKER,
};

/// The programs of a QEMU VM.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// `qemu-system-x86_64`, 7.2 or later. A folder `roms` beside it has its firmware, if it is
    /// not in `/usr/share`.
    pub qemu: PathBuf,
    /// The Rust virtiofsd, 1.11 or later.
    pub virtiofsd: PathBuf,
    /// `vhost-device-vsock`, 0.3 or later; used where the host has no usable `/dev/vhost-vsock`.
    pub vsock_daemon: PathBuf,
}

/// A QEMU process with a stopped machine, and its monitor.
#[derive(Debug)]
pub(super) struct Qemu {
    pub child: Child,
    pub qmp: Qmp,
    pub console: Tail,
    pub question: Arc<Question>,
    /// What QEMU said about the machine's end. Closed when it can't say more.
    pub end: watch::Receiver<Option<Said>>,
    pub pause: Pause,
}

impl Qemu {
    /// Starts QEMU. `answer` goes to the console's input when the guest asks for it.
    pub(super) async fn start(
        qemu: &Path,
        spec: &VmSpec,
        purpose: Purpose,
        answer: Option<Vec<u8>>,
    ) -> Result<Qemu> {
        let started = Instant::now();
        let sockets = || -> io::Result<_> {
            let (monitor, monitor_end) = UnixStream::pair()?;
            let (console, console_end) = UnixStream::pair()?;
            let ends = vec![
                OwnedFd::from(monitor_end.into_std()?),
                OwnedFd::from(console_end.into_std()?),
            ];
            Ok((monitor, console, ends))
        };
        let (monitor, console, mut descriptors) =
            sockets().map_err(|e| Error::Io("make QEMU's sockets", e))?;
        descriptors.extend(translations(spec)?);
        let program = Program {
            role: "qemu".to_owned(),
            path: PathBuf::new(),
            arguments: command_line::arguments(
                spec,
                Descriptors {
                    monitor: FIRST_DESCRIPTOR,
                    console: FIRST_DESCRIPTOR + 1,
                    translations: FIRST_DESCRIPTOR + 2,
                },
                purpose,
            ),
            descriptors,
            confinement: Confinement::Jail(Jail::new(&spec.dir, spec.credentials).map_err(
                |source| Error::File {
                    what: "prepare a jail in",
                    path: spec.dir.clone(),
                    source,
                },
            )?),
            placement: spec.placement.clone(),
            limits: Limits::vmm(),
        };
        let child = Child::start(confined(program, qemu, spec)?).await?;
        log_stage("qemu executed", started);

        let tail = Tail::default();
        let pod = spec.id.clone();
        let (output, input) = console.into_split();
        let question = Arc::new(Question::new(input, answer));
        let asking = question.clone();
        let tell = move |line: &str| {
            let asked = line.contains(SECRET_MARKER);
            if asked {
                asking.asked.send_replace(true);
                asking.answer();
            }
            asked
        };
        // A probe's kernel prints its whole boot.
        let level = match purpose {
            Purpose::Probe => log::Level::Debug,
            Purpose::Pod | Purpose::Template => log::Level::Info,
        };
        let log_line = move |line: &str| log::log!(level, source = "guest", pod; "{line}");
        tokio::spawn(follow_but(output, tail.clone(), log_line, tell));
        let (note, end) = watch::channel(None);
        let pause = Pause::default();
        let pausing = pause.clone();
        let connected = async {
            let on_event = move |event: &Event| events::note(&note, &pausing, event);
            Ok(Qmp::connect(monitor, on_event).await?)
        };
        let qmp = child.unless_it_ends(connected).await?;
        log_stage("qemu answers", started);
        Ok(Qemu {
            child,
            qmp,
            console: tail,
            question,
            end,
            pause,
        })
    }
}

/// The guest's question for its secret.
#[derive(Debug)]
pub(super) struct Question {
    console: OwnedWriteHalf,
    answer: Mutex<Option<Vec<u8>>>,
    asked: watch::Sender<bool>,
}

impl Question {
    fn new(console: OwnedWriteHalf, answer: Option<Vec<u8>>) -> Question {
        Question {
            console,
            answer: Mutex::new(answer),
            asked: watch::Sender::new(false),
        }
    }

    /// Waits until the guest has asked.
    pub(super) async fn asked(&self) {
        // The sender is in `self`.
        let _ = self.asked.subscribe().wait_for(|asked| *asked).await;
    }

    /// Gives the answer, once.
    pub(super) fn answer(&self) {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = answer.take() {
            // A socket that nothing has been written to takes all of it.
            if let Err(error) = self.console.try_write(&answer) {
                log::error!(error = error.to_string().as_str(); "tell the guest its secret");
            }
        }
    }
}

/// Opens the file that translations are read from or written to.
fn translations(spec: &VmSpec) -> Result<Option<OwnedFd>> {
    let (path, options) = match spec.translations() {
        Translations::Own => return Ok(None),
        Translations::From(path) => (path, File::options().read(true).to_owned()),
        Translations::To(path) => (path, File::options().write(true).to_owned()),
    };
    let opened = options.open(path).map_err(|source| Error::File {
        what: "open translations",
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(opened.into()))
}

/// Puts the files that QEMU needs into its jail.
fn confined(mut program: Program, qemu: &Path, spec: &VmSpec) -> Result<Program> {
    let Confinement::Jail(jail) = &mut program.confinement else {
        return Ok(program);
    };
    let failed = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { what, path, source }
    };
    program.path = jail.program(qemu).map_err(failed("find QEMU", qemu))?;
    let firmware = qemu.with_file_name("roms");
    if firmware.is_dir() {
        jail.bind(&firmware, Path::new(command_line::FIRMWARE))
            .map_err(failed("find firmware", &firmware))?;
        let option = ["-L".to_owned(), format!("/{}", command_line::FIRMWARE)];
        program.arguments.extend(option);
    }
    jail.seccomp(seccomp::filter().map_err(|e| failed("confine", qemu)(io::Error::other(e)))?);
    jail.dir(c"guest");
    let guest = [
        ("open kernel", &spec.guest.kernel, command_line::KERNEL),
        (
            "open initramfs",
            &spec.guest.initramfs,
            command_line::INITRAMFS,
        ),
    ];
    for (what, path, at) in guest {
        // QEMU opens the file under another uid.
        let readable = path
            .metadata()
            .and_then(|m| match m.permissions().mode() & 0o004 {
                0 => Err(io::Error::other("others may not read it, as QEMU must")),
                _ => jail.bind(path, Path::new(at)),
            });
        readable.map_err(failed(what, path))?;
    }
    // QEMU looks here for the size of a huge page, which is virtio-mem's block size.
    let huge_pages = Path::new("/sys/kernel/mm/transparent_hugepage");
    if resize::pluggable_memory(spec) > 0 && huge_pages.exists() {
        for dir in [c"sys", c"sys/kernel", c"sys/kernel/mm"] {
            jail.dir(dir);
        }
        jail.bind(huge_pages, Path::new("sys/kernel/mm/transparent_hugepage"))
            .map_err(failed("find", huge_pages))?;
    }
    if spec.accelerator == Accelerator::Kvm {
        let kvm = Path::new("/dev/kvm");
        jail.device(kvm).map_err(failed("find", kvm))?;
    }
    Ok(program)
}
