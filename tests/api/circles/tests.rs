//! Tests of the reading itself, on crates of a few lines.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;

use super::{circles, drawing, modules::imports_below};

/// Returns the circles of a crate with these files, drawn.
fn circles_of(files: &[(&str, &str)]) -> Result<String> {
    let files: BTreeMap<&Path, &str> = files
        .iter()
        .map(|(path, text)| (Path::new(path), *text))
        .collect();
    let read = |path: &Path| files.get(path).map(|text| (*text).to_owned());
    let imports = imports_below(Path::new("src/lib.rs"), &read)?;
    let circles = circles(&imports);
    Ok(circles
        .iter()
        .map(|circle| drawing(&imports, circle))
        .collect())
}

const A_AND_B: (&str, &str) = ("src/lib.rs", "mod a; mod b;");

#[test]
fn circle_is_drawn_with_its_names() -> Result<()> {
    let drawn = circles_of(&[
        A_AND_B,
        ("src/a.rs", "use crate::b::{self, X}; pub const Y: u8 = X;"),
        ("src/b.rs", "pub fn x() -> u8 { super::a::Y }"),
    ])?;
    assert_eq!(
        drawn,
        "  src/a.rs → src/b.rs: X, b\n  src/b.rs → src/a.rs: Y\n"
    );
    Ok(())
}

#[test]
fn circle_through_a_third_file_is_found() -> Result<()> {
    let drawn = circles_of(&[
        ("src/lib.rs", "mod a; mod b; mod c;"),
        ("src/a.rs", "use crate::b::X; pub struct Y;"),
        ("src/b.rs", "pub struct X(crate::c::X);"),
        ("src/c.rs", "pub struct X(crate::a::Y);"),
    ])?;
    assert_eq!(drawn.lines().count(), 3, "{drawn}");
    Ok(())
}

#[test]
fn one_direction_is_no_circle() -> Result<()> {
    let drawn = circles_of(&[
        ("src/lib.rs", "mod a; mod b; use a::X; use b::Y;"),
        (
            "src/a.rs",
            "pub(super) use crate::b::Y; pub(in crate::b) struct X;",
        ),
        (
            "src/b.rs",
            "pub struct Y; impl Y { fn new() -> Self { Self::other() } }",
        ),
    ])?;
    assert_eq!(drawn, "");
    Ok(())
}

#[test]
fn module_and_its_child_are_a_circle_if_each_takes_from_the_other() -> Result<()> {
    for parent in ["src/a.rs", "src/a/mod.rs"] {
        let drawn = circles_of(&[
            ("src/lib.rs", "mod a;"),
            (parent, "mod child; pub struct X; fn f() { child::g() }"),
            ("src/a/child.rs", "use super::X;"),
        ])?;
        assert_eq!(drawn.lines().count(), 2, "{drawn}");
    }
    Ok(())
}

#[test]
fn declared_child_is_not_imported() -> Result<()> {
    let drawn = circles_of(&[
        ("src/lib.rs", "mod a; pub struct X;"),
        ("src/a.rs", "use crate::X;"),
    ])?;
    assert_eq!(drawn, "");
    Ok(())
}

#[test]
fn re_export_leads_to_the_file_behind_it() -> Result<()> {
    // Nobody takes anything from lib.rs itself.
    let lib = "mod a; mod b; pub use a::X as Z; pub use b::*;";
    let drawn = circles_of(&[
        ("src/lib.rs", lib),
        ("src/a.rs", "pub struct X;"),
        ("src/b.rs", "use crate::Z; pub struct Y;"),
    ])?;
    assert_eq!(drawn, "");
    let drawn = circles_of(&[
        ("src/lib.rs", lib),
        ("src/a.rs", "use crate::Y; pub struct X;"),
        ("src/b.rs", "use crate::Z; pub struct Y;"),
    ])?;
    assert_eq!(
        drawn,
        "  src/a.rs → src/b.rs: Y\n  src/b.rs → src/a.rs: X\n"
    );
    Ok(())
}

#[test]
fn imported_module_leads_to_its_children() -> Result<()> {
    let drawn = circles_of(&[
        A_AND_B,
        ("src/a/mod.rs", "pub mod child;"),
        ("src/a/child.rs", "use crate::b::Y; pub fn f() {}"),
        (
            "src/b.rs",
            "use crate::a; pub struct Y; fn g() { a::child::f() }",
        ),
    ])?;
    assert_eq!(
        drawn,
        "  src/a/child.rs → src/b.rs: Y\n  src/b.rs → src/a/child.rs: f\n"
    );
    Ok(())
}

#[test]
fn macros_and_attributes_import_too() -> Result<()> {
    for b in [
        "fn f() { println!(\"{}\", [crate::a::Y]); }",
        "use crate::a; fn f() { println!(\"{}\", a::Y); }",
        "#[error(\"{}\", crate::a::Y)] struct X;",
    ] {
        let drawn = circles_of(&[A_AND_B, ("src/a.rs", "use crate::b::X;"), ("src/b.rs", b)])?;
        assert_eq!(drawn.lines().count(), 2, "{b}: {drawn}");
    }
    Ok(())
}

#[test]
fn tests_do_not_count() -> Result<()> {
    let tests = "
        #[cfg(test)] use crate::a::Y;
        #[cfg(all(test, unix))] fn f() { crate::a::f() }
        #[cfg(test)] mod tests { use crate::a::Y; }
        #[cfg(test)] mod more;
        #[test] fn test() { crate::a::f() }
        pub struct X { #[cfg(test)] field: crate::a::Y }
        impl X { #[cfg(test)] fn f() { crate::a::f() } }
        fn g() { #[cfg(test)] let _ = crate::a::f(); }";
    let a = ("src/a.rs", "use crate::b::X;");
    assert_eq!(circles_of(&[A_AND_B, a, ("src/b.rs", tests)])?, "");
    let product = "#[cfg(not(test))] use crate::a::Y;";
    let drawn = circles_of(&[A_AND_B, a, ("src/b.rs", product)])?;
    assert_eq!(drawn.lines().count(), 2, "{drawn}");
    Ok(())
}

#[test]
fn super_of_a_module_in_braces_stays_in_the_file() -> Result<()> {
    let drawn = circles_of(&[
        ("src/lib.rs", "mod a; use a::X;"),
        (
            "src/a.rs",
            "mod part { use super::X; fn f() { super::super::a::X; } } pub struct X;",
        ),
    ])?;
    assert_eq!(drawn, "");
    let drawn = circles_of(&[
        ("src/lib.rs", "mod a; use a::X; pub struct Y;"),
        (
            "src/a.rs",
            "mod part { use super::super::Y; } pub struct X;",
        ),
    ])?;
    assert_eq!(drawn.lines().count(), 2, "{drawn}");
    Ok(())
}

#[test]
fn other_crates_do_not_count() -> Result<()> {
    let drawn = circles_of(&[
        ("src/lib.rs", "mod a; pub use other::spec; use a::X;"),
        (
            "src/a.rs",
            "use crate::spec::Spec; use std::fmt; pub struct X; fn f() { fmt::g() }",
        ),
    ])?;
    assert_eq!(drawn, "");
    Ok(())
}

#[test]
fn module_without_a_file_is_refused() {
    let error = circles_of(&[A_AND_B]).unwrap_err().to_string();
    assert!(error.contains("the file of a"), "{error}");
}
