//! Templates: a machine whose guest waits for its secret, saved to a file, from which others start.
//!
//! The file is a migration stream whose pages of memory each have a place of their own
//! (`mapped-ram`, QEMU 9.0 and later). A page that the guest never wrote takes no room. A machine
//! that starts from the file has a copy: the daemons of its devices need to see what the guest
//! writes, so its memory can't be shared with others' until it is written. Caisson's QEMU has the
//! host's kernel copy it from file to file, in one thread: several would take the cpus from other
//! starts (`packaging/machine/qemu.patch`).

use std::{fs::File, path::Path, time::Duration};

use serde_json::{json, Value};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    error::QmpError,
    machine::Qemu,
    qmp::{shortened, Event, Qmp},
};
use crate::{Error, Result};

/// How long a guest may take to boot, under emulation on a busy host.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How long a guest that has asked for its secret goes on before it is saved: what the kernel has
/// put off is then done, once for all that start from the template.
const SETTLE: Duration = Duration::from_millis(500);
/// How long the machine may take to be written or read.
const LIMIT: Duration = Duration::from_secs(60);

/// Lets a machine boot until its guest asks for the secret, and writes it to a file.
pub(super) async fn save(qemu: &Qemu, to: &Path) -> Result<()> {
    let file = open(to, File::options().write(true))?;
    // Before anything that takes time: QEMU may be too old.
    prepare(&qemu.qmp).await?;
    qemu.qmp.execute("cont", json!({})).await?;
    let asked = async {
        qemu.question.asked().await;
        Ok(())
    };
    let asked = qemu.child.unless_it_ends(asked);
    timeout(BOOT_LIMIT, asked)
        .await
        .map_err(|_| QmpError::TimedOut {
            what: "the boot of a template's guest".to_owned(),
            limit: BOOT_LIMIT,
        })??;
    sleep(SETTLE).await;
    qemu.pause.set(true);
    qemu.qmp.execute("stop", json!({})).await?;
    migrate(&qemu.qmp, "migrate", file).await
}

/// Gives a machine that was started with `-incoming defer` the state in a file.
pub(super) async fn load(qmp: &Qmp, from: &Path) -> Result<()> {
    let file = open(from, File::options().read(true))?;
    prepare(qmp).await?;
    migrate(qmp, "migrate-incoming", file).await
}

fn open(path: &Path, options: &std::fs::OpenOptions) -> Result<File> {
    options.open(path).map_err(|source| Error::File {
        what: "open template",
        path: path.to_owned(),
        source,
    })
}

/// Chooses the format of the file, and has QEMU say how far it is.
async fn prepare(qmp: &Qmp) -> Result<()> {
    let capabilities = ["mapped-ram", "events"];
    let capabilities = capabilities.map(|name| json!({ "capability": name, "state": true }));
    let arguments = json!({ "capabilities": capabilities });
    qmp.execute("migrate-set-capabilities", arguments).await?;
    let parameters = json!({ "max-bandwidth": 0 });
    qmp.execute("migrate-set-parameters", parameters).await?;
    Ok(())
}

/// Writes the machine to a file or reads it from there.
async fn migrate(qmp: &Qmp, command: &str, file: File) -> Result<()> {
    let fdset = qmp.add_file(file).await?;
    let uri = format!("file:/dev/fdset/{fdset}");
    let ended = qmp.expect(is_end).await?;
    qmp.execute(command, json!({ "uri": uri })).await?;
    let ended = timeout(LIMIT, end(qmp, command, ended)).await;
    ended.map_err(|_| QmpError::TimedOut {
        what: format!("QEMU's {command}"),
        limit: LIMIT,
    })??;
    Ok(qmp.remove_file(fdset).await?)
}

fn is_end(event: &Event) -> bool {
    let status = event.data["status"].as_str();
    event.name == "MIGRATION" && matches!(status, Some("completed" | "failed" | "cancelled"))
}

/// Waits for the end, and returns why it failed if it did.
async fn end(qmp: &Qmp, command: &str, ended: oneshot::Receiver<Event>) -> Result<()> {
    // Fails if the connection breaks, which the next command reports.
    let event = ended.await.ok();
    if event.is_some_and(|event| event.data["status"] == "completed") {
        return Ok(());
    }
    let info = qmp.execute("query-migrate", json!({})).await?;
    let why = info["error-desc"].as_str();
    let why = shortened(&Value::from(why.unwrap_or("it does not say why")));
    Err(QmpError::Protocol(format!("{command}: {why}")).into())
}
