//! Edits the text of containerd's configuration: adds and removes Caisson's runtime handlers,
//! and changes nothing else.
//!
//! Formats 2 (containerd 1.3 to 1.7, also read by 2.x) and 3 (2.x): containerd, docs/cri/config.md.
//! The handlers are added as a marked block at the end, so that every other byte stays. Only where
//! the runtimes are a table in one line are they added inside that table.

mod block;
mod handler;

use std::{fmt, path::Path};

use toml_edit::{value, Array, DocumentMut, InlineTable, Item, Table, TableLike, Value};

use block::{block, block_in};
use handler::{is_ours, runtime_type, settings};

pub use handler::Handler;

/// The name of the CRI plugin, which has the runtimes, in each format.
const CRI: [(i64, &str); 2] = [
    (2, "io.containerd.grpc.v1.cri"),
    (3, "io.containerd.cri.v1.runtime"),
];
/// The names by which `disabled_plugins` turns CRI off.
const CRI_NAMES: [&str; 4] = [
    "cri",
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.runtime",
    "io.containerd.cri.v1.images",
];
/// The beginning of a template, which stands for k3s's own configuration.
const K3S_BASE: &str = "{{ template \"base\" . }}\n";

/// The reason why a configuration is left as it is.
#[derive(Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The text is not TOML; in the words of the parser.
    Toml(String),
    /// The format has no place for a handler.
    Version(i64),
    /// Kubernetes can't use this containerd.
    CriDisabled(String),
    /// Another runtime has the handler's name.
    Taken { handler: String, runtime: String },
    /// Something other than a table is where a table has to be.
    NoTable(String),
    /// The handler could not be added without changing something else.
    Unclear,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Toml(error) => write!(f, "it is no TOML: {}", error.trim_end()),
            Self::Version(version) => write!(
                f,
                "its format is version {version}; 2 and 3 are possible: `containerd config migrate` prints it in a newer one"
            ),
            Self::CriDisabled(name) => write!(
                f,
                "`disabled_plugins` has {name:?}, so that Kubernetes can't use this containerd: take it out"
            ),
            Self::Taken { handler, runtime } => write!(
                f,
                "the handler {handler:?} is there already, with the runtime {runtime:?}: rename it, or choose another handler"
            ),
            Self::NoTable(path) => write!(f, "{path} is no table"),
            Self::Unclear => write!(f, "a handler can't be added without changing something else"),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Returns the text with the handlers in it. `format` is for a file that names none because it is
/// empty. Idempotent.
pub fn add(text: &str, handlers: &[Handler], format: i64) -> Result<String, ConfigError> {
    add_beside(text, handlers, format, &toml::Table::new())
}

/// Does as [`add`], and adds other runtimes too where the file has none: containerd 1.x forgets its
/// own default, runc, when a file names a runtime.
pub fn add_beside(
    text: &str,
    handlers: &[Handler],
    format: i64,
    others: &toml::Table,
) -> Result<String, ConfigError> {
    let document = parse(text)?;
    if let Some(block) = block_in(text) {
        let without = format!("{}{}", &text[..block.start], &text[block.end..]);
        let again = add_beside(&without, handlers, format, others)?;
        // The block is at the end unless something was written after it; then it stays where it is.
        return Ok(if again.len() == text.len() && same(&again, text) {
            text.to_owned()
        } else {
            again
        });
    }
    let empty = document.is_empty();
    let cri = match empty {
        true => cri_of(format)?,
        false => cri(&document)?,
    };
    let (there, missing): (Vec<_>, Vec<_>) = handlers
        .iter()
        .partition(|handler| find(document.as_item(), &path(cri, &handler.name)).is_some());
    let mut text = text.to_owned();
    for handler in there {
        text = adjust(&text, handler, cri)?;
    }
    match missing.is_empty() {
        true => Ok(text),
        false => add_missing(&text, &missing, cri, empty.then_some(format), others),
    }
}

/// Adds handlers of which the text has none. `version` is the format to be written.
fn add_missing(
    text: &str,
    handlers: &[&Handler],
    cri: &'static str,
    version: Option<i64>,
    others: &toml::Table,
) -> Result<String, ConfigError> {
    let mut document = parse(text)?;
    if let Some(version) = version {
        document["version"] = value(version);
    }
    let place = path(cri, "");
    let mut inline = false;
    for length in 1..place.len() {
        match find(document.as_item(), &place[..length]) {
            Some(item) if item.is_table_like() => inline |= item.is_inline_table(),
            Some(_) => return Err(ConfigError::NoTable(place[..length].join("."))),
            None => break,
        }
    }
    if !inline {
        let block = block(text, handlers, version, cri, others);
        let added = format!("{text}{block}");
        if adds_only(text, &added, handlers, cri, others) {
            return Ok(added);
        }
    }
    for handler in handlers {
        let settings = settings(handler, None);
        let entry = match inline {
            true => Item::Value(settings.into_inline_table().into()),
            false => Item::Table(settings),
        };
        put(document.as_item_mut(), &path(cri, &handler.name), entry)
            .ok_or(ConfigError::Unclear)?;
    }
    let added = document.to_string();
    match adds_only(text, &added, handlers, cri, others) {
        true => Ok(added),
        false => Err(ConfigError::Unclear),
    }
}

/// Returns the text without the handlers of these names, where they are Caisson's. Tables that
/// [`add`] made for them and that hold nothing else are removed too.
pub fn remove(text: &str, names: &[String]) -> Result<String, ConfigError> {
    if let Some(block) = block_in(text) {
        return Ok(format!("{}{}", &text[..block.start], &text[block.end..]));
    }
    let mut document = parse(text)?;
    let mut found = false;
    for (_, cri) in CRI {
        for name in names {
            let path = path(cri, name);
            if find(document.as_item(), &path).is_some_and(is_ours) {
                take(document.as_item_mut(), &path);
                found = true;
            }
        }
    }
    Ok(if found {
        document.to_string()
    } else {
        text.to_owned()
    })
}

/// Returns whether a configuration has the handlers as they would be written, however that is
/// phrased.
pub fn has(text: &str, handlers: &[Handler]) -> bool {
    let Ok(document) = parse(text) else {
        return false;
    };
    let has_one = |handler: &Handler| {
        CRI.iter().any(|(_, cri)| {
            find(document.as_item(), &path(cri, &handler.name)).is_some_and(|there| {
                settings(handler, Some(there))
                    .iter()
                    .all(|(key, item)| there.get(key).and_then(plain) == plain(item))
            })
        })
    };
    handlers.iter().all(has_one)
}

/// Returns a separate file with the handlers, in the format of the configuration that it becomes a
/// part of.
pub fn drop_in(handlers: &[Handler], format: i64) -> Result<String, ConfigError> {
    let handlers: Vec<_> = handlers.iter().collect();
    let none = toml::Table::new();
    Ok(block("", &handlers, Some(format), cri_of(format)?, &none))
}

/// Returns whether a file sets nothing.
pub fn is_empty(text: &str) -> bool {
    parse(text).is_ok_and(|document| document.is_empty())
}

/// Returns the runtimes that a configuration names, except the handlers of these names.
pub fn runtimes(text: &str, names: &[String]) -> toml::Table {
    let table: toml::Table = text
        .trim_start_matches('\u{feff}')
        .parse()
        .unwrap_or_default();
    let runtimes = CRI.iter().find_map(|(_, cri)| {
        let path = ["plugins", cri, "containerd", "runtimes"];
        let mut at = &table;
        for key in path {
            at = at.get(key)?.as_table()?;
        }
        Some(at.clone())
    });
    let mut runtimes = runtimes.unwrap_or_default();
    runtimes.retain(|name, _| !names.iter().any(|ours| ours == name));
    runtimes
}

/// Returns what a configuration imports, as it is written there.
pub fn imports(text: &str) -> Vec<String> {
    let document = parse(text).unwrap_or_default();
    let imports = document.get("imports").and_then(Item::as_array);
    let imports = imports.into_iter().flatten().filter_map(Value::as_str);
    imports.map(str::to_owned).collect()
}

/// Returns the text changed so that it imports the same files from a folder other than `dir`, and
/// one more file where one is given.
pub fn importing(text: &str, dir: &Path, one_more: Option<&Path>) -> Result<String, ConfigError> {
    let mut all: Vec<_> = imports(text)
        .iter()
        .map(|import| dir.join(import))
        .collect();
    if all.is_empty() && one_more.is_none() {
        return Ok(text.to_owned());
    }
    all.extend(one_more.map(Path::to_owned));
    let mut document = parse(text)?;
    let all = all.iter().map(|import| import.display().to_string());
    document["imports"] = value(Array::from_iter(all));
    Ok(document.to_string())
}

/// Returns the version of the format, or `None` where the file names none.
pub fn format(text: &str) -> Result<Option<i64>, ConfigError> {
    Ok(parse(text)?.get("version").and_then(Item::as_integer))
}

/// Returns a template of k3s's (a Go template, so not TOML) with the handlers in it. Without a
/// template, the one that stands for none is used.
pub fn add_to_template(text: Option<&str>, handlers: &[Handler], format: i64) -> String {
    let text = text.map_or_else(|| K3S_BASE.to_owned(), remove_from_template);
    let cri = CRI
        .iter()
        .find(|(of, _)| *of == format)
        .unwrap_or(&CRI[0])
        .1;
    let handlers: Vec<_> = handlers.iter().collect();
    let block = block(&text, &handlers, None, cri, &toml::Table::new());
    text + &block
}

/// Returns the template without Caisson's block.
pub fn remove_from_template(text: &str) -> String {
    match block_in(text) {
        Some(block) => format!("{}{}", &text[..block.start], &text[block.end..]),
        None => text.to_owned(),
    }
}

/// Returns whether two configurations say the same except for the handlers of these names,
/// comments, `imports` and the order of keys.
pub fn differ_in_handlers_only(one: &str, other: &str, names: &[String]) -> bool {
    let without = |text: &str| {
        let mut table: toml::Table = text.parse().ok()?;
        table.remove("imports");
        for (_, cri) in CRI {
            for name in names {
                prune(&mut table, &path(cri, name));
            }
        }
        Some(table)
    };
    matches!((without(one), without(other)), (Some(one), Some(other)) if one == other)
}

fn parse(text: &str) -> Result<DocumentMut, ConfigError> {
    text.parse()
        .map_err(|error: toml_edit::TomlError| ConfigError::Toml(error.to_string()))
}

/// Returns the CRI plugin's name, where the plugin is not turned off.
fn cri(document: &DocumentMut) -> Result<&'static str, ConfigError> {
    // containerd takes a file that names no version for version 1.
    let version = document
        .get("version")
        .and_then(Item::as_integer)
        .unwrap_or(1);
    let disabled = document.get("disabled_plugins").and_then(Item::as_array);
    let mut names = disabled.into_iter().flatten().filter_map(Value::as_str);
    if let Some(name) = names.find(|name| CRI_NAMES.contains(name)) {
        return Err(ConfigError::CriDisabled(name.to_owned()));
    }
    cri_of(version)
}

fn cri_of(format: i64) -> Result<&'static str, ConfigError> {
    let found = CRI.iter().find(|(of, _)| *of == format);
    found
        .map(|(_, name)| *name)
        .ok_or(ConfigError::Version(format))
}

fn path<'a>(cri: &'a str, handler: &'a str) -> [&'a str; 5] {
    ["plugins", cri, "containerd", "runtimes", handler]
}

fn find<'i>(item: &'i Item, path: &[&str]) -> Option<&'i Item> {
    path.iter().try_fold(item, |item, key| item.get(key))
}

/// Changes a handler that the text has, if its settings differ. Its other settings stay. A handler
/// of another runtime is refused.
fn adjust(text: &str, handler: &Handler, cri: &str) -> Result<String, ConfigError> {
    let mut document = parse(text)?;
    let path = path(cri, &handler.name);
    let there = find(document.as_item(), &path).ok_or(ConfigError::Unclear)?;
    if !is_ours(there) {
        return Err(ConfigError::Taken {
            handler: handler.name.clone(),
            runtime: runtime_type(there).to_owned(),
        });
    }
    let settings = settings(handler, Some(there));
    let mut item = document.as_item_mut();
    for key in path {
        item = item.get_mut(key).ok_or(ConfigError::Unclear)?;
    }
    let there: &mut dyn TableLike = item.as_table_like_mut().ok_or(ConfigError::Unclear)?;
    let mut changed = false;
    for (key, wanted) in settings.iter() {
        if there.get(key).and_then(plain) != plain(wanted) {
            there.insert(key, wanted.clone());
            changed = true;
        }
    }
    Ok(match changed {
        true => document.to_string(),
        false => text.to_owned(),
    })
}

/// Returns a value in a form that can be compared, however it is written.
fn plain(item: &Item) -> Option<String> {
    let text = format!("x = {}", item.to_string().trim());
    let table: toml::Table = text.parse().ok()?;
    table.get("x").map(ToString::to_string)
}

/// Puts a table at a path, and makes the tables on the path that are missing.
fn put(item: &mut Item, path: &[&str], entry: Item) -> Option<()> {
    let (key, rest) = path.split_first()?;
    // A table in one line cannot have a header below it.
    let inline = item.is_inline_table();
    let table = item.as_table_like_mut()?;
    if rest.is_empty() {
        table.insert(key, entry);
        return Some(());
    }
    if !table.contains_key(key) {
        let made = match inline {
            true => {
                let mut made = InlineTable::new();
                // It gets no braces of its own.
                made.set_dotted(true);
                Item::Value(made.into())
            }
            false => {
                let mut made = Table::new();
                // It gets no header of its own.
                made.set_implicit(true);
                Item::Table(made)
            }
        };
        table.insert(key, made);
    }
    put(table.get_mut(key)?, rest, entry)
}

/// Removes what is at `path`, and the tables on the path that have neither a header nor braces and
/// hold nothing else.
fn take(item: &mut Item, path: &[&str]) {
    let (Some((key, rest)), Some(table)) = (path.split_first(), item.as_table_like_mut()) else {
        return;
    };
    if rest.is_empty() {
        table.remove(key);
        return;
    }
    let Some(inner) = table.get_mut(key) else {
        return;
    };
    take(inner, rest);
    let made = match inner {
        Item::Table(left) => left.is_implicit() && left.is_empty(),
        Item::Value(Value::InlineTable(left)) => left.is_dotted() && left.is_empty(),
        _ => false,
    };
    if made {
        table.remove(key);
    }
}

/// Returns whether the second text says what the first says, and also has the handlers.
fn adds_only(
    before: &str,
    after: &str,
    handlers: &[&Handler],
    cri: &str,
    others: &toml::Table,
) -> bool {
    let table = |text: &str| {
        text.trim_start_matches('\u{feff}')
            .parse::<toml::Table>()
            .ok()
    };
    let (Some(mut before), Some(mut after)) = (table(before), table(after)) else {
        return false;
    };
    if before.is_empty() {
        after.remove("version");
    }
    let has = |name: &str| {
        parse(&after.to_string())
            .is_ok_and(|document| find(document.as_item(), &path(cri, name)).is_some())
    };
    let added = handlers.iter().all(|handler| has(&handler.name));
    for handler in handlers {
        prune(&mut before, &path(cri, &handler.name));
        prune(&mut after, &path(cri, &handler.name));
    }
    for name in others.keys() {
        prune(&mut after, &path(cri, name));
    }
    added && before == after
}

/// Removes what is at `path`, and the tables that are empty then.
fn prune(table: &mut toml::Table, path: &[&str]) {
    let Some((key, rest)) = path.split_first() else {
        return;
    };
    if rest.is_empty() {
        table.remove(*key);
        return;
    }
    let Some(toml::Value::Table(inner)) = table.get_mut(*key) else {
        return;
    };
    prune(inner, rest);
    if inner.is_empty() {
        table.remove(*key);
    }
}

fn same(one: &str, other: &str) -> bool {
    one == other
        || matches!((one.parse::<toml::Table>(), other.parse::<toml::Table>()), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests;
