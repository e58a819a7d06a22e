//! Fuzzes changes of containerd's configuration: Caisson's handler is added and then removed
//! without a trace.
#![no_main]

use std::path::Path;

use caisson_fuzz::{
    containerd_config::{
        add_beside, add_to_template, format, has, importing, imports, is_empty, remove,
        remove_from_template, runtimes, Handler,
    },
    memory,
};
use libfuzzer_sys::fuzz_target;
use toml::Table;

const LIMIT: usize = 64 << 20;
const NAME: &str = "sandbox";
/// The plugins below which the formats have the runtimes.
const PLUGINS: [&str; 2] = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"];
const MARK: &str = "# BEGIN caisson";

fuzz_target!(|text: &str| memory::bounded(LIMIT, || check(text)));

fn check(text: &str) {
    // The text decides in which of several ways the code is called.
    let way = text
        .bytes()
        .fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    let handlers = [Handler {
        name: NAME.to_owned(),
        shim: "/opt/caisson/current/bin/containerd-shim-caisson-v2".into(),
        by_type: way & 1 > 0,
    }];
    let names = [NAME.to_owned()];
    let format_of_none = if way & 2 > 0 { 2 } else { 3 };
    check_template(text, &handlers, format_of_none);
    let _ = (format(text), is_empty(text));
    check_imports(text);
    // The runtimes that `caisson node install` takes from containerd's own dump, for a file that
    // names no runtime.
    let others = match way & 4 > 0 && runtimes(text, &names).is_empty() {
        true => Table::from_iter([(
            "runc".to_owned(),
            Table::from_iter([("runtime_type".to_owned(), "io.containerd.runc.v2".into())]).into(),
        )]),
        false => Table::new(),
    };
    let Ok(added) = add_beside(text, &handlers, format_of_none, &others) else {
        return;
    };
    assert!(has(&added, &handlers), "not there in {added:?}");
    assert_eq!(
        add_beside(&added, &handlers, format_of_none, &others).as_deref(),
        Ok(added.as_str()),
        "another text the second time"
    );
    let before = said(text).expect("a table");
    assert_eq!(
        without(&added, &before, &others),
        without(text, &before, &Table::new()),
        "another setting in {added:?}"
    );
    let removed = remove(&added, &names).expect("the handler out again");
    assert!(!has(&removed, &handlers), "still there in {removed:?}");
    if has_handler(&before) || text.contains(MARK) {
        return;
    }
    assert_eq!(
        said(&removed).as_ref(),
        Some(&before),
        "another setting in {removed:?}"
    );
    if added.starts_with(text) {
        // A last line without an end keeps the end that it got, since something may follow it by
        // now.
        let rest = removed.strip_prefix(text).expect("the text that was there");
        assert!(matches!(rest, "" | "\n" | "\r\n"), "left: {rest:?}");
        assert!(rest.is_empty() || !text.ends_with('\n'), "a line more");
    }
}

fn said(text: &str) -> Option<Table> {
    text.trim_start_matches('\u{feff}').parse().ok()
}

fn has_handler(table: &Table) -> bool {
    let handler = |plugin: &&str| {
        let runtimes = table
            .get("plugins")?
            .get(plugin)?
            .get("containerd")?
            .get("runtimes")?;
        runtimes.get(NAME)
    };
    PLUGINS.iter().any(|plugin| handler(plugin).is_some())
}

/// Returns the contents of a text without the handler and what was added with it.
fn without(text: &str, before: &Table, others: &Table) -> Table {
    let mut table = said(text).expect("a table");
    if before.is_empty() {
        table.remove("version");
    }
    for plugin in PLUGINS {
        for name in others.keys().map(String::as_str).chain([NAME]) {
            prune(
                &mut table,
                &["plugins", plugin, "containerd", "runtimes", name],
            );
        }
    }
    table
}

/// Removes what is at a path, and the tables on the way that are then empty.
fn prune(table: &mut Table, path: &[&str]) {
    let [key, rest @ ..] = path else {
        return;
    };
    if rest.is_empty() {
        table.remove(*key);
    } else if let Some(inner) = table.get_mut(*key).and_then(toml::Value::as_table_mut) {
        prune(inner, rest);
        if inner.is_empty() {
            table.remove(*key);
        }
    }
}

fn check_imports(text: &str) {
    let dir = Path::new("/etc/containerd");
    let Ok(importing) = importing(text, dir, Some(Path::new("/one/more"))) else {
        return;
    };
    let all = imports(&importing);
    assert_eq!(all.len(), imports(text).len() + 1);
    assert!(
        all.iter().all(|import| Path::new(import).is_absolute()),
        "{all:?}"
    );
}

/// Checks the changes of a template, which is not TOML.
fn check_template(text: &str, handlers: &[Handler], format: i64) {
    let added = add_to_template(Some(text), handlers, format);
    assert_eq!(
        add_to_template(Some(&added), handlers, format),
        added,
        "another text the second time"
    );
    if !text.contains(MARK) {
        let removed = remove_from_template(&added);
        assert!(
            removed
                .strip_prefix(text)
                .is_some_and(|rest| rest.trim().is_empty()),
            "{removed:?}"
        );
    }
}
