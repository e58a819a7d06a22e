//! Adds the runtime handlers to containerd's configuration and removes them. The change is checked
//! before anything is replaced, and undone when containerd does not come up.
//!
//! ```text
//! place --> new text beside the old --> `containerd config dump` of both | refused: no change
//!   --> saved, recorded, renamed --> restart --> CRI has it | if not: the old bytes, restart
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{anyhow, bail, ensure, Context, Result};

use super::{
    containerd::{journal, systemctl_restart, wait_for, Containerd, Restart},
    containerd_config::{self as text, Handler},
    files,
    layout::{self, Source},
    record::{Edit, Kind, Record, Store},
};

/// The name of a file that a configuration imports.
const DROP_IN: &str = "50-caisson.toml";

/// What is needed to change the configuration of a running containerd.
pub struct Switch<'a> {
    pub store: &'a Store,
    pub containerd: &'a Containerd,
    /// The main file.
    pub config: &'a Path,
    /// The node's handler, and those of its presets.
    pub handlers: &'a [Handler],
    pub restart: &'a Restart,
    /// How long containerd may take to come up.
    pub limit: Duration,
}

/// Where the handler goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    file: PathBuf,
    kind: Kind,
    /// The file that the distribution makes of its own settings and `file`.
    merged: Option<PathBuf>,
}

/// A change that containerd would accept.
#[derive(Debug)]
pub struct Plan {
    place: Place,
    /// The file's bytes without the handler, to which it is restored; `None` where there was no
    /// file.
    base: Option<Vec<u8>>,
    now: Option<Vec<u8>>,
    new: String,
    /// Whether the file already has the change.
    written: bool,
}

/// The result of a change.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing had to be changed.
    AsItWas,
    /// containerd has come up with the handler.
    InForce,
    /// The handler is in the file, but containerd was not to be restarted.
    Written,
}

impl Switch<'_> {
    /// Returns what would be written and where, checked by containerd's own program. Changes
    /// nothing.
    pub fn plan(&self, record: &Record) -> Result<Plan> {
        let main = files::read_text(self.config)?;
        let place = self.place(main.as_deref(), record)?;
        let edit = record.containerd.as_ref();
        let edit = edit.filter(|edit| edit.file == place.file);
        let now = files::read(&place.file)?;
        let base = self.base(&place, edit, now.as_deref(), &record.handlers())?;
        let new = self.with_handlers(&place, base.as_deref(), main.as_deref())?;
        let written = now.as_deref() == Some(new.as_bytes());
        if !written {
            self.check(&place, main.as_deref(), &new, &record.handlers())?;
        }
        Ok(Plan {
            place,
            base,
            now,
            new,
            written,
        })
    }

    /// Adds the handler and has containerd come up with it. Idempotent, also after a kill.
    pub fn put_in(&self, record: &mut Record) -> Result<Outcome> {
        let mut plan = self.plan(record)?;
        let elsewhere = |edit: &Edit| edit.file != plan.place.file;
        if record.containerd.as_ref().is_some_and(elsewhere) {
            // k3s reads another template by now, or the file was moved.
            take_out(self.store, record)?;
            record.containerd = None;
            self.store.save(record)?;
            plan = self.plan(record)?;
        }
        let before = record.containerd.clone();
        let Plan {
            place,
            base,
            now,
            new,
            written,
        } = plan;
        if written && before.as_ref().is_some_and(|edit| edit.in_force) {
            let handlers = self.containerd.handlers()?;
            if self.names().iter().all(|name| handlers.contains(name)) {
                return Ok(Outcome::AsItWas);
            }
        }
        let existed = base.is_some();
        if let Some(base) = &base {
            let saved = self.store.saved();
            if files::read(&saved)?.as_ref() != Some(base) {
                files::write(&saved, base)?;
            }
        }
        record.add_made(files::missing(
            place.file.parent().unwrap_or(Path::new("/")),
        ));
        record.containerd = Some(Edit {
            file: place.file.clone(),
            kind: place.kind,
            existed,
            written: files::digest(new.as_bytes()),
            in_force: false,
        });
        self.store.save(record)?;
        if !written {
            if let Some(dir) = place.file.parent() {
                fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
            }
            files::write(&place.file, new.as_bytes())?;
        }
        if *self.restart == Restart::None {
            return Ok(Outcome::Written);
        }
        if let Err(error) = self.restart_with_handlers() {
            // The file as this run found it; where a killed run wrote it, as that run found it.
            let (old, edit) = if written { (base, None) } else { (now, before) };
            return Err(self.fall_back(record, &place.file, old, edit, error));
        }
        if let Some(edit) = &mut record.containerd {
            edit.in_force = true;
        }
        self.store.save(record)?;
        Ok(Outcome::InForce)
    }

    fn restart_with_handlers(&self) -> Result<()> {
        let old = Some(self.containerd.identity());
        self.containerd.stop_or_restart(self.restart)?;
        wait_for(&self.containerd.socket, old, &self.names(), self.limit).map(drop)
    }

    fn names(&self) -> Vec<String> {
        let handlers = self.handlers.iter();
        handlers.map(|handler| handler.name.clone()).collect()
    }

    /// Restores what was there, and returns the error that says so.
    fn fall_back(
        &self,
        record: &mut Record,
        file: &Path,
        old: Option<Vec<u8>>,
        edit: Option<Edit>,
        error: anyhow::Error,
    ) -> anyhow::Error {
        let said = match self.restart {
            Restart::Systemd(unit) => journal(unit),
            _ => None,
        };
        let said = said.map_or_else(String::new, |said| format!("; it says: {said}"));
        let why = format!("{error:#}{said}");
        let mut back = || {
            match &old {
                Some(bytes) => files::write(file, bytes)?,
                None => files::remove(file)?,
            }
            record.containerd = edit.clone();
            self.store.save(record)?;
            restart_again(&self.containerd.socket, self.restart)?;
            wait_for(&self.containerd.socket, None, &[], self.limit)
        };
        match back() {
            Ok(_) => anyhow!(
                "containerd did not come up with the handler, so its configuration is as it was and it runs with that: {why}"
            ),
            Err(again) => anyhow!(
                "containerd did not come up with the handler ({why}), and with its configuration as it was neither: {again:#}"
            ),
        }
    }

    fn place(&self, main: Option<&str>, record: &Record) -> Result<Place> {
        let config = fs::canonicalize(self.config).unwrap_or_else(|_| self.config.to_owned());
        let format = main
            .map(text::format)
            .transpose()
            .map_err(|error| self.refused(error))?;
        let format = format.flatten();
        match layout::source(&config, main.unwrap_or_default()) {
            Some(Source::Template(file)) => {
                return Ok(Place {
                    file,
                    kind: Kind::Template,
                    merged: None,
                })
            }
            Some(Source::Folder { folder, merged }) => {
                return Ok(Place {
                    file: folder.join(DROP_IN),
                    kind: Kind::DropIn,
                    merged: Some(merged),
                })
            }
            None => {}
        }
        let main_place = Place {
            file: config.clone(),
            kind: Kind::Main,
            merged: None,
        };
        let Some(main) = main else {
            return Ok(main_place);
        };
        let recorded = record.containerd.as_ref().map(|edit| &edit.file);
        let there = text::add(main, self.handlers, 2).is_ok_and(|added| added == *main);
        // Before containerd 2 (format 3) an import replaces the whole plugin's settings.
        if format != Some(3) || there || recorded == Some(&config) {
            return Ok(main_place);
        }
        let folder = text::imports(main).into_iter().find_map(|import| {
            let import = config.with_file_name("").join(import);
            (import.file_name()? == "*.toml").then(|| import.with_file_name(DROP_IN))
        });
        let Some(file) = folder else {
            return Ok(main_place);
        };
        let drop_in = Place {
            file,
            kind: Kind::DropIn,
            merged: None,
        };
        let merges = recorded == Some(&drop_in.file)
            || self
                .check(
                    &drop_in,
                    Some(main),
                    &self.drop_in(Some(main))?,
                    &record.handlers(),
                )
                .is_ok();
        Ok(if merges { drop_in } else { main_place })
    }

    /// Returns the file's bytes without the handler, or `None` where there would be no file.
    fn base(
        &self,
        place: &Place,
        edit: Option<&Edit>,
        now: Option<&[u8]>,
        names: &[String],
    ) -> Result<Option<Vec<u8>>> {
        let (Some(now), Some(edit)) = (now, edit) else {
            // MicroK8s copies its template, with what was added to it, when it gets another
            // version.
            let text = now.and_then(|now| std::str::from_utf8(now).ok());
            let text = text.filter(|_| place.kind == Kind::Template);
            let without = text.map(|text| text::remove_from_template(text).into_bytes());
            return Ok(without.or_else(|| now.map(<[u8]>::to_vec)));
        };
        let saved = match edit.existed {
            true => files::read(&self.store.saved())?,
            false => None,
        };
        if files::digest(now) == edit.written || saved.as_deref() == Some(now) {
            return Ok(saved);
        }
        // The file has been changed since.
        let now = std::str::from_utf8(now).context("containerd's configuration is not UTF-8")?;
        let base = match place.kind {
            Kind::DropIn => String::new(),
            Kind::Template => text::remove_from_template(now),
            Kind::Main => text::remove(now, names).map_err(|error| self.refused(error))?,
        };
        let ours = !edit.existed && base.trim().is_empty() || place.kind == Kind::DropIn;
        Ok((!ours).then(|| base.into_bytes()))
    }

    fn with_handlers(
        &self,
        place: &Place,
        base: Option<&[u8]>,
        main: Option<&str>,
    ) -> Result<String> {
        let base = base.map(std::str::from_utf8).transpose();
        let base = base.context("containerd's configuration is not UTF-8")?;
        match place.kind {
            Kind::DropIn => {
                ensure!(
                    base.is_none(),
                    "{} is there and not ours: move it away",
                    place.file.display()
                );
                self.drop_in(main)
            }
            Kind::Template => {
                let format =
                    text::format(main.unwrap_or_default()).map_err(|error| self.refused(error))?;
                Ok(text::add_to_template(
                    base,
                    self.handlers,
                    format.unwrap_or(2),
                ))
            }
            Kind::Main => {
                let base = base.unwrap_or_default();
                let format = self.containerd.format()?;
                let mut others = text::runtimes(base, &self.names());
                if others.is_empty() && format < 3 {
                    let dumped = self.dump(base, None);
                    let dumped = dumped.context("containerd's configuration is broken as it is")?;
                    others = text::runtimes(&dumped, &self.names());
                } else {
                    others.clear();
                }
                let added = text::add_beside(base, self.handlers, format, &others);
                added.map_err(|error| self.refused(error))
            }
        }
    }

    fn drop_in(&self, main: Option<&str>) -> Result<String> {
        let format = text::format(main.unwrap_or_default());
        let format = format.and_then(|format| text::drop_in(self.handlers, format.unwrap_or(2)));
        format.map_err(|error| self.refused(error))
    }

    /// Returns what containerd's own program makes of a text in the configuration's place, with a
    /// file that it imports where one is given.
    fn dump(&self, text: &str, drop_in: Option<&str>) -> Result<String> {
        let dir = self.store.check();
        let (file, import) = (dir.join("config.toml"), dir.join("drop-in.toml"));
        // The text is read from another folder, but has to import the same files.
        let own = self.config.parent().unwrap_or(Path::new("/"));
        let text = match text::is_empty(text) {
            true => Ok(format!("version = {}\n", self.containerd.format()?)),
            false => text::importing(text, own, drop_in.map(|_| import.as_path())),
        };
        let text = text.map_err(|error| self.refused(error))?;
        let look = || {
            fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
            files::write(&import, drop_in.unwrap_or_default().as_bytes())?;
            files::write(&file, text.as_bytes())?;
            self.containerd.dump(&file)
        };
        let dumped = look();
        files::remove_tree(&dir)?;
        dumped
    }

    /// Has containerd's own program read the changed configuration. The change may lose nothing of
    /// the old one but the handlers of these names, which may be those of presets that are no more.
    fn check(&self, place: &Place, main: Option<&str>, new: &str, gone: &[String]) -> Result<()> {
        let read = |merged: &PathBuf| {
            let text = files::read_text(merged)?;
            text.with_context(|| format!("no {}, which k0s makes", merged.display()))
        };
        let merged = place.merged.as_ref().map(read).transpose()?;
        let main = merged.as_deref().or(main).unwrap_or_default();
        let old = self.dump(main, None);
        let old = old.context("containerd's configuration is broken as it is")?;
        let dumped = match place.kind {
            Kind::Main => self.dump(new, None),
            Kind::DropIn if merged.is_none() => self.dump(main, Some(new)),
            // The real result is seen only once the distribution has made the file; this is what it
            // will be like.
            Kind::DropIn | Kind::Template => {
                let added = text::add(main, self.handlers, 2);
                self.dump(&added.map_err(|error| self.refused(error))?, None)
            }
        };
        let refused = || format!("{} is left as it was", place.file.display());
        let dumped = dumped.with_context(refused)?;
        if !text::has(&dumped, self.handlers) {
            bail!("{}: containerd would not see the handler in it", refused());
        }
        let ours = [gone, &self.names()].concat();
        if !text::differ_in_handlers_only(&old, &dumped, &ours) {
            bail!(
                "{}: containerd would lose other settings by the change",
                refused()
            );
        }
        Ok(())
    }

    fn refused(&self, error: text::ConfigError) -> anyhow::Error {
        anyhow!("{} is left as it was: {error}", self.config.display())
    }
}

/// Takes the handler out of the file that it was added to: restores the saved bytes if the file has
/// not been changed since, and otherwise removes only Caisson's part. Returns whether containerd
/// has to be restarted for it. The record keeps the edit.
pub fn take_out(store: &Store, record: &mut Record) -> Result<bool> {
    let handlers = record.handlers();
    let Some(edit) = &mut record.containerd else {
        return Ok(false);
    };
    let (edit, was_in_force) = {
        let was = edit.in_force;
        edit.in_force = false;
        (edit.clone(), was)
    };
    store.save(record)?;
    let part = files::part(&edit.file);
    files::remove(&part).with_context(|| format!("remove {}", part.display()))?;
    let Some(now) = files::read(&edit.file)? else {
        return Ok(true);
    };
    let saved = match edit.existed {
        true => files::read(&store.saved())?,
        false => None,
    };
    if saved.as_ref() == Some(&now) {
        return Ok(!was_in_force);
    }
    if files::digest(&now) == edit.written {
        match saved {
            Some(saved) => files::write(&edit.file, &saved)?,
            None => files::remove(&edit.file)?,
        }
        return Ok(true);
    }
    let now =
        String::from_utf8(now).with_context(|| format!("{} is not UTF-8", edit.file.display()))?;
    let without = match edit.kind {
        Kind::DropIn => String::new(),
        Kind::Template => text::remove_from_template(&now),
        Kind::Main => {
            let removed = text::remove(&now, &handlers);
            removed.map_err(|error| anyhow!("{}: {error}", edit.file.display()))?
        }
    };
    if without.trim().is_empty() && !edit.existed {
        files::remove(&edit.file)?;
    } else if without != now {
        files::write(&edit.file, without.as_bytes())?;
    }
    Ok(true)
}

/// Restarts whatever containerd there is, also one that is about to come up or cannot.
pub fn restart_again(socket: &Path, restart: &Restart) -> Result<()> {
    match restart {
        Restart::Systemd(unit) => systemctl_restart(unit),
        Restart::Signal => match Containerd::find(Some(socket)) {
            Ok(containerd) => containerd.stop_or_restart(restart),
            // Its supervisor starts it again.
            Err(_) => Ok(()),
        },
        Restart::None => Ok(()),
    }
}
