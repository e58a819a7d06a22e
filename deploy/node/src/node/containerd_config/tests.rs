use std::{collections::BTreeMap, fs, path::Path};

use super::{
    block::{BEGIN, END},
    *,
};

fn handler(name: &str) -> Handler {
    Handler {
        name: name.into(),
        shim: "/opt/caisson/current/bin/containerd-shim-caisson-v2".into(),
        by_type: false,
    }
}

fn ours() -> [Handler; 1] {
    [handler("sandbox")]
}

fn by_type() -> [Handler; 1] {
    [Handler {
        by_type: true,
        ..handler("sandbox")
    }]
}

fn names() -> [String; 1] {
    ["sandbox".into()]
}

/// Returns the files of `tests/configs` whose names end with `end`, with their text.
fn configs(end: &str) -> BTreeMap<String, String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs");
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    files
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .filter(|(name, _)| name.ends_with(end))
        .map(|(name, path)| (name, fs::read_to_string(path).unwrap()))
        .collect()
}

/// Returns the configurations that a handler can be added to.
fn good() -> BTreeMap<String, String> {
    let mut configs = configs(".toml");
    configs.retain(|name, _| !name.starts_with("refused-"));
    assert!(configs.len() >= 30, "{} configurations", configs.len());
    configs
}

#[test]
fn configuration_after_add_and_remove_is_the_same_to_the_byte() {
    for (name, text) in good() {
        let added = add(&text, &ours(), 2).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(has(&added, &ours()), "{name}: not there in\n{added}");
        // This handler was added by hand, as the README says: what install changes there, only the
        // saved bytes give back.
        if name != "handler-of-ours-by-hand.toml" {
            assert_eq!(
                remove(&added, &names()).unwrap(),
                with_end(&text, &added),
                "{name}"
            );
        }
    }
}

/// A line that had no end keeps the one that it got, since something may follow by now.
fn with_end(text: &str, added: &str) -> String {
    let grown =
        !text.is_empty() && !text.ends_with('\n') && added.starts_with(&format!("{text}\n"));
    format!("{text}{}", if grown { "\n" } else { "" })
}

#[test]
fn add_changes_no_other_setting() {
    for (name, text) in good() {
        let added = add(&text, &ours(), 2).unwrap();
        let document: toml::Table = text.trim_start_matches('\u{feff}').parse().unwrap();
        if !document.is_empty() && name != "byte-order-mark.toml" {
            assert!(
                differ_in_handlers_only(&text, &added, &names()),
                "{name}\n{added}"
            );
        }
        // No byte of the original changes, unless the runtimes are in one line.
        if !name.starts_with("inline-") && name != "handler-of-ours-by-hand.toml" {
            assert!(added.starts_with(&text), "{name}");
        }
    }
}

#[test]
fn tables_in_one_line_that_had_no_runtimes_have_none_afterwards() {
    for inside in [
        "",
        "sandbox_image = 'x'",
        "containerd = {}",
        "containerd = { runtimes = {} }",
    ] {
        let text = format!("version = 2\nplugins.'io.containerd.grpc.v1.cri' = {{ {inside} }}\n");
        let added = add(&text, &ours(), 2).unwrap();
        assert!(has(&added, &ours()), "{added}");
        let removed = remove(&added, &names()).unwrap();
        assert!(same(&removed, &text), "{removed}");
    }
}

#[test]
fn add_a_second_time_changes_nothing() {
    for (name, text) in good() {
        let added = add(&text, &ours(), 2).unwrap();
        assert_eq!(add(&added, &ours(), 2).unwrap(), added, "{name}");
    }
}

#[test]
fn handler_of_another_prefix_is_replaced() {
    let elsewhere = [Handler {
        shim: "/elsewhere/shim".into(),
        ..handler("sandbox")
    }];
    for (name, text) in good() {
        let first = add(&text, &ours(), 2).unwrap();
        let second = add(&first, &elsewhere, 2).unwrap();
        assert!(has(&second, &elsewhere) && !has(&second, &ours()), "{name}");
    }
}

#[test]
fn configuration_that_cannot_be_is_refused_with_the_reason() {
    let reasons = [
        ("refused-cri-disabled-v3.toml", "`disabled_plugins` has"),
        ("refused-docker-version-2.toml", "`disabled_plugins` has"),
        ("refused-docker.toml", "`disabled_plugins` has \"cri\""),
        (
            "refused-no-table.toml",
            "plugins.io.containerd.grpc.v1.cri.containerd is no table",
        ),
        ("refused-runtimes-in-an-array.toml", "runtimes is no table"),
        ("refused-syntax.toml", "it is no TOML"),
        (
            "refused-taken.toml",
            "the handler \"sandbox\" is there already",
        ),
        ("refused-twice.toml", "it is no TOML"),
        ("refused-version-1.toml", "its format is version 1"),
        ("refused-version-4.toml", "its format is version 4"),
    ];
    let mut configs = configs(".toml");
    configs.retain(|name, _| name.starts_with("refused-"));
    let names: Vec<_> = configs.keys().map(String::as_str).collect();
    assert_eq!(names, reasons.map(|(name, _)| name));
    for (name, reason) in reasons {
        let error = add(&configs[name], &ours(), 2).unwrap_err().to_string();
        assert!(error.contains(reason), "{name}: {error}");
    }
}

#[test]
fn handler_is_taken_out_of_a_file_that_another_tool_has_written_anew() {
    for (name, text) in good() {
        let added = add(&text, &ours(), 2).unwrap();
        let rewritten = toml::to_string(
            &added
                .trim_start_matches('\u{feff}')
                .parse::<toml::Table>()
                .unwrap(),
        );
        let removed = remove(&rewritten.unwrap(), &names()).unwrap();
        assert!(
            !has(&removed, &ours()) && parse(&removed).is_ok(),
            "{name}\n{removed}"
        );
    }
}

/// Returns the handlers of a node with two presets.
fn several() -> [Handler; 3] {
    ["sandbox", "sandbox-strict", "sandbox-nested"].map(|name| {
        let preset = name.strip_prefix("sandbox").unwrap_or_default();
        Handler {
            name: name.into(),
            shim: format!("/opt/caisson/presets/containerd-shim-caisson{preset}-v2").into(),
            by_type: false,
        }
    })
}

#[test]
fn handlers_of_presets_come_and_go_with_the_nodes() {
    let handlers = several();
    let all = handlers.clone().map(|handler| handler.name);
    for (name, text) in good() {
        let added = add(&text, &handlers, 2).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(has(&added, &handlers), "{name}: not there in\n{added}");
        assert_eq!(add(&added, &handlers, 2).unwrap(), added, "{name}");
        if name != "handler-of-ours-by-hand.toml" {
            let removed = remove(&added, &all).unwrap();
            assert_eq!(removed, with_end(&text, &added), "{name}");
        }
    }
}

#[test]
fn handler_of_a_preset_that_is_no_more_goes_with_the_block() {
    let both = add("version = 2\n", &several(), 2).unwrap();
    let one = add(&both, &ours(), 2).unwrap();
    assert_eq!(one, add("version = 2\n", &ours(), 2).unwrap());
}

#[test]
fn preset_whose_handler_is_anothers_is_refused_by_its_name() {
    let text =
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.sandbox-strict]\n\
        runtime_type = 'io.containerd.kata.v2'\n";
    let error = add(text, &several(), 2).unwrap_err().to_string();
    assert!(
        error.contains("\"sandbox-strict\" is there already"),
        "{error}"
    );
}

#[test]
fn what_others_wrote_after_the_block_stays() {
    let added = add("version = 2", &ours(), 2).unwrap();
    let removed = remove(&format!("{added}[debug]\nlevel = 'info'\n"), &names()).unwrap();
    assert_eq!(removed, "version = 2\n[debug]\nlevel = 'info'\n");
}

#[test]
fn handler_by_hand_keeps_what_more_it_says() {
    let text =
        "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.sandbox]\n\
        runtime_type = 'io.containerd.caisson.v2'\nsandboxer = 'shim' # mine\n";
    let added = add(text, &ours(), 3).unwrap();
    assert!(
        has(&added, &ours()) && added.contains("sandboxer = 'shim' # mine"),
        "{added}"
    );
    // The program that makes the sandboxes is found by the type.
    let by_type = by_type();
    assert!(has(&added, &by_type), "{added}");
}

#[test]
fn handler_of_runcs_type_is_ours_only_with_our_program() {
    let table = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.sandbox]\n\
        runtime_type = 'io.containerd.runc.v2'\n";
    let error = add(table, &ours(), 2).unwrap_err().to_string();
    assert!(error.contains("io.containerd.runc.v2"), "{error}");
    let older = format!("{table}runtime_path = '/opt/older/bin/containerd-shim-caisson-v2'\n");
    assert!(has(&add(&older, &ours(), 2).unwrap(), &ours()));
}

#[test]
fn handler_whose_type_is_the_program_is_known_as_ours() {
    let by_type = by_type();
    let added = add("version = 2\n", &by_type, 2).unwrap();
    assert!(
        has(&added, &by_type) && !added.contains("runtime_path"),
        "{added}"
    );
    let rewritten = added.replace(BEGIN, "#").replace(END, "#");
    assert!(!has(&remove(&rewritten, &names()).unwrap(), &by_type));
}

#[test]
fn runtimes_that_containerd_would_forget_are_written_out() {
    let dump = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n\
        runtime_type = \"io.containerd.runc.v2\"\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n\
        SystemdCgroup = false\n";
    let others = runtimes(dump, &names());
    let added = add_beside("version = 2\n", &ours(), 2, &others).unwrap();
    assert_eq!(runtimes(&added, &names()), others, "{added}");
    assert_eq!(add_beside(&added, &ours(), 2, &others).unwrap(), added);
    assert_eq!(remove(&added, &names()).unwrap(), "version = 2\n");
}

#[test]
fn block_has_the_files_line_ends() {
    let added = add("version = 2\r\n", &ours(), 2).unwrap();
    assert!(!added.replace("\r\n", "").contains('\n'), "{added:?}");
}

#[test]
fn file_without_settings_gets_the_format_that_containerd_reads() {
    assert!(add("", &ours(), 3)
        .unwrap()
        .contains("io.containerd.cri.v1.runtime"));
    assert!(add("# nothing\n", &ours(), 2)
        .unwrap()
        .contains("io.containerd.grpc.v1.cri"));
}

#[test]
fn template_of_k3s_is_the_same_after_add_and_remove() {
    let templates = configs(".tmpl");
    assert_eq!(templates.len(), 3);
    for (name, text) in templates {
        let added = add_to_template(Some(&text), &ours(), 2);
        assert!(
            added.starts_with(&text) && added.len() > text.len(),
            "{name}"
        );
        assert_eq!(
            add_to_template(Some(&added), &ours(), 2),
            with_end(&added, &added)
        );
        assert_eq!(
            remove_from_template(&added).trim_end(),
            text.trim_end(),
            "{name}"
        );
    }
    let made = add_to_template(None, &ours(), 3);
    assert!(made.starts_with("{{ template \"base\" . }}\n") && made.contains("cri.v1.runtime"));
}

#[test]
fn imports_are_read_and_one_more_is_said() {
    let text = "version = 3\nimports = ['/a/*.toml', \"b.toml\"] # c\n";
    assert_eq!(imports(text), ["/a/*.toml", "b.toml"]);
    let dir = Path::new("/etc/containerd");
    let more = importing(text, dir, Some(Path::new("/c"))).unwrap();
    assert_eq!(
        imports(&more),
        ["/a/*.toml", "/etc/containerd/b.toml", "/c"]
    );
    assert!(differ_in_handlers_only(text, &more, &names()));
    assert_eq!(importing("version = 3", dir, None).unwrap(), "version = 3");
}

/// Found by the fuzz target.
#[test]
fn template_whose_last_line_has_half_an_end_stays_as_it_is_the_second_time() {
    for text in ["a\n b\r", "a\r", "a\r\nb\r", "a"] {
        let added = add_to_template(Some(text), &ours(), 2);
        assert_eq!(add_to_template(Some(&added), &ours(), 2), added, "{text:?}");
        assert_eq!(remove_from_template(&added).trim_end(), text.trim_end());
    }
}

#[test]
fn file_for_k0s_has_the_handlers_in_the_format_of_its_configuration() {
    let merged = configs("k0s-merged.toml")["k0s-merged.toml"].clone();
    for format in [2, 3] {
        let file = drop_in(&ours(), format).unwrap();
        assert!(has(&file, &ours()), "{file}");
        assert_eq!(super::format(&file), Ok(Some(format)));
    }
    // k0s merges the file into its own settings (RFC 7396), which then say what `add` says.
    let mut patched: toml::Value = merged.parse::<toml::Table>().unwrap().into();
    let patch = drop_in(&ours(), 2).unwrap().parse::<toml::Table>().unwrap();
    merge(&mut patched, patch.into());
    let added = add(&merged, &ours(), 2).unwrap();
    assert_eq!(
        patched.as_table(),
        added.parse::<toml::Table>().ok().as_ref()
    );
}

fn merge(into: &mut toml::Value, patch: toml::Value) {
    match (into, patch) {
        (toml::Value::Table(into), toml::Value::Table(patch)) => {
            for (key, value) in patch {
                match into.get_mut(&key) {
                    Some(there) => merge(there, value),
                    None => drop(into.insert(key, value)),
                }
            }
        }
        (into, patch) => *into = patch,
    }
}

#[test]
fn template_of_microk8s_after_add_and_remove_is_the_same_to_the_byte() {
    let template = configs("microk8s-template.toml")["microk8s-template.toml"].clone();
    let added = add_to_template(Some(&template), &ours(), 2);
    assert!(
        added.starts_with(&template) && has(&added, &ours()),
        "{added}"
    );
    assert_eq!(remove_from_template(&added), template);
}
