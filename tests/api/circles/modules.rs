//! Follows the paths in a crate's code to the files that they lead to.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{ensure, Context, Result};
use syn::{visit::Visit, Attribute, Item};

use super::code::{are_for_tests, attributes, name_of, Code, Use};

/// What each file takes from each other file: the names, by both paths.
pub type Imports = BTreeMap<(PathBuf, PathBuf), BTreeSet<String>>;

/// Reads a crate from its root and returns which of its files import which. `read` returns the text
/// of a file, if it exists.
pub fn imports_below(root: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Result<Imports> {
    let mut modules = Modules(Vec::new());
    let dir = root.parent().context("a crate's root is in a folder")?;
    modules.add_file(root, dir, None, read)?;
    let mut imports = Imports::new();
    for (id, module) in modules.0.iter().enumerate() {
        for path in module
            .uses
            .iter()
            .map(|used| &used.path)
            .chain(&module.paths)
        {
            let Some(place) = modules.follow(id, path, 0) else {
                continue;
            };
            let to = &modules.0[place.module].file;
            if *to != module.file {
                let names = imports.entry((module.file.clone(), to.clone()));
                names.or_default().insert(place.name);
            }
        }
    }
    Ok(imports)
}

/// One module: a file, or what is in the braces of `mod x { … }`.
#[derive(Default)]
struct Module {
    file: PathBuf,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    /// The names of what it defines.
    items: BTreeSet<String>,
    uses: Vec<Use>,
    /// The paths of two parts or more in its code.
    paths: Vec<Vec<String>>,
}

/// The target of a path: a module, or something in it.
struct Place {
    module: usize,
    /// What it takes from there.
    name: String,
    is_module: bool,
}

/// All modules of a crate; the root is the first.
struct Modules(Vec<Module>);

impl Modules {
    /// Adds the module that a file is; its children are in `dir`.
    fn add_file(
        &mut self,
        file: &Path,
        dir: &Path,
        parent: Option<usize>,
        read: &dyn Fn(&Path) -> Option<String>,
    ) -> Result<usize> {
        let text = read(file).with_context(|| format!("read {}", file.display()))?;
        let parsed = syn::parse_file(&text).with_context(|| format!("parse {}", file.display()))?;
        let items = match are_for_tests(&parsed.attrs) {
            true => Vec::new(),
            false => parsed.items,
        };
        self.add(file, dir, parent, &items, read)
    }

    fn add(
        &mut self,
        file: &Path,
        dir: &Path,
        parent: Option<usize>,
        items: &[Item],
        read: &dyn Fn(&Path) -> Option<String>,
    ) -> Result<usize> {
        let id = self.0.len();
        self.0.push(Module {
            file: file.to_owned(),
            parent,
            ..Module::default()
        });
        let mut code = Code::default();
        for item in items.iter().filter(|item| !are_for_tests(attributes(item))) {
            code.visit_item(item);
            self.0[id].items.extend(name_of(item));
            let Item::Mod(child) = item else { continue };
            let name = child.ident.to_string();
            let below = dir.join(&name);
            let child = match &child.content {
                Some((_, items)) => self.add(file, &below, Some(id), items, read)?,
                None => {
                    let by_path = |a: &Attribute| a.path().is_ident("path");
                    ensure!(
                        !child.attrs.iter().any(by_path),
                        "{name}: #[path] is not known"
                    );
                    let places = [dir.join(format!("{name}.rs")), below.join("mod.rs")];
                    let found = places.iter().find(|path| read(path).is_some());
                    let found = found.with_context(|| format!("find the file of {name}"))?;
                    self.add_file(found, &below, Some(id), read)?
                }
            };
            self.0[id].children.insert(name, child);
        }
        self.0[id].uses = code.uses;
        self.0[id].paths = code.paths;
        Ok(id)
    }

    /// Returns where a path in a module leads, or `None` if it leads out of the crate. `depth` ends
    /// the search where re-exports lead to each other.
    fn follow(&self, from: usize, path: &[String], depth: usize) -> Option<Place> {
        let mut place = Place {
            module: from,
            name: path.first()?.clone(),
            is_module: true,
        };
        for (n, name) in path.iter().enumerate() {
            let last = n + 1 == path.len();
            let module = &self.0[place.module];
            let next = match name.as_str() {
                "crate" => Some(0),
                "self" => Some(place.module),
                "super" => Some(module.parent?),
                _ => None,
            };
            place = match next {
                Some(module) => Place { module, ..place },
                None => match self.find(place.module, name, last, depth) {
                    Found::Place(found) => found,
                    Found::Elsewhere => return None,
                    // Made by a macro, if it is not another crate.
                    Found::Nothing if n == 0 => return None,
                    Found::Nothing => Place {
                        name: name.clone(),
                        is_module: false,
                        ..place
                    },
                },
            };
            if !place.is_module {
                break;
            }
        }
        Some(place)
    }

    /// Finds a name in a module. The last name of a path is an item rather than a module.
    fn find(&self, module: usize, name: &str, last: bool, depth: usize) -> Found {
        let at = &self.0[module];
        let place = |module, is_module| {
            Found::Place(Place {
                module,
                name: name.to_owned(),
                is_module,
            })
        };
        if last && at.items.contains(name) {
            return place(module, false);
        }
        if let Some(child) = at.children.get(name) {
            return place(*child, true);
        }
        if depth > 16 {
            return Found::Nothing;
        }
        if let Some(used) = at
            .uses
            .iter()
            .find(|used| used.name.as_deref() == Some(name))
        {
            let found = self.follow(module, &used.path, depth + 1);
            return found.map_or(Found::Elsewhere, Found::Place);
        }
        if at.items.contains(name) {
            return place(module, false);
        }
        for all in at.uses.iter().filter(|used| used.name.is_none()) {
            match self.follow(module, &all.path, depth + 1) {
                Some(of) if of.is_module && of.module != module => {
                    match self.find(of.module, name, last, depth + 1) {
                        Found::Nothing => {}
                        found => return found,
                    }
                }
                _ => {}
            }
        }
        Found::Nothing
    }
}

/// What a name stands for.
enum Found {
    Place(Place),
    /// Something of another crate.
    Elsewhere,
    Nothing,
}
