//! Reads the source of a crate: its tree of modules, and which module names what of which other module.
//!
//! Test code (`#[cfg(test)]`) is left out. A module with `#[path]` counts, but its files are not read: they are part of
//! another crate. Names inside macro calls are read as far as they are written out as paths.
//! A name that a module has itself imported is followed to where it comes from, so passing a name on hides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// The names from the root down to a module; empty for the root.
pub(crate) type ModulePath = Vec<String>;

/// A name that one module takes from another one.
#[derive(Debug)]
pub(crate) struct Import {
    /// The file that names it.
    pub(crate) file: String,
    /// The module that uses the name.
    pub(crate) from: ModulePath,
    /// The module that defines it.
    pub(crate) to: ModulePath,
    /// The name.
    pub(crate) name: String,
}

/// The modules of one crate.
#[derive(Debug)]
pub(crate) struct Crate {
    root_file: String,
    documentation: String,
    modules: BTreeMap<ModulePath, Module>,
}

/// What one module says.
#[derive(Debug, Default)]
struct Module {
    file: String,
    /// Names that `use` brings in, with the paths that they stand for.
    imported: BTreeMap<String, Vec<String>>,
    /// Every path that is written in the module, `use` included.
    paths: BTreeSet<Vec<String>>,
}

impl Crate {
    /// Reads the crate with the root file `root`; `read` returns the text of a file, or nothing if there is none.
    ///
    /// # Errors
    /// Names the file that is missing or cannot be parsed.
    pub(crate) fn read(root: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Result<Self> {
        let folder = root.parent().unwrap_or(Path::new("")).to_owned();
        let parsed = parse(root, read)?;
        let mut source = Self {
            root_file: root.display().to_string(),
            documentation: documentation(&parsed.attrs),
            modules: BTreeMap::new(),
        };
        source.add(Vec::new(), root, &folder, parsed.items, read)?;
        Ok(source)
    }

    /// The root file, as it was given.
    pub(crate) fn root_file(&self) -> &str {
        &self.root_file
    }

    /// The documentation of the root, a line for each of its lines.
    pub(crate) fn root_documentation(&self) -> &str {
        &self.documentation
    }

    /// The names of the root's modules.
    pub(crate) fn top_level(&self) -> Vec<String> {
        let paths = self.modules.keys().filter(|path| path.len() == 1);
        paths.map(|path| path[0].clone()).collect()
    }

    /// All names that modules take from other modules of this crate.
    pub(crate) fn imports(&self) -> Vec<Import> {
        let mut imports = Vec::new();
        for (from, module) in &self.modules {
            for path in &module.paths {
                if let Some((to, name)) = self.resolve(path.clone()) {
                    imports.push(Import {
                        file: module.file.clone(),
                        from: from.clone(),
                        to,
                        name,
                    });
                }
            }
        }
        imports
    }

    /// The module that defines what a path from the root means, and its name there. `None` for a circle of names.
    fn resolve(&self, mut path: Vec<String>) -> Option<(ModulePath, String)> {
        // A name may be passed on several times. The bound ends the search where two modules pass it to each other.
        for _ in 0..64 {
            let modules = (0..=path.len())
                .take_while(|end| self.modules.contains_key(&path[..*end]))
                .count();
            let place = &path[..modules - 1];
            let Some(name) = path.get(place.len()) else {
                let name = place.last().map_or("crate", String::as_str).to_owned();
                return Some((place.to_vec(), name));
            };
            let imported = &self.modules[place].imported;
            match imported.get(name).filter(|target| **target != path) {
                Some(target) => path = [target, &path[place.len() + 1..]].concat(),
                None => return Some((place.to_vec(), name.clone())),
            }
        }
        None
    }

    /// Adds a module and its children. `folder` is where the files of its children stand.
    fn add(
        &mut self,
        path: ModulePath,
        file: &Path,
        folder: &Path,
        items: Vec<syn::Item>,
        read: &dyn Fn(&Path) -> Option<String>,
    ) -> Result<()> {
        let (children, items): (Vec<_>, Vec<_>) = items
            .into_iter()
            .filter(|item| !is_for_tests(attributes(item)))
            .partition(|item| matches!(item, syn::Item::Mod(_)));
        let mut reader = Reader {
            path: path.clone(),
            children: BTreeSet::new(),
            module: Module {
                file: file.display().to_string(),
                ..Module::default()
            },
        };
        for child in &children {
            if let syn::Item::Mod(child) = child {
                reader.children.insert(child.ident.to_string());
            }
        }
        for item in &items {
            reader.visit_item(item);
        }
        self.modules.insert(path.clone(), reader.module);
        for child in children {
            let syn::Item::Mod(child) = child else {
                continue;
            };
            let name = child.ident.to_string();
            let path = [path.as_slice(), std::slice::from_ref(&name)].concat();
            if has_path(&child.attrs) {
                self.modules.insert(path, Module::default());
                continue;
            }
            let children_folder = folder.join(&name);
            match child.content {
                Some((_, items)) => self.add(path, file, &children_folder, items, read)?,
                None => {
                    let file = folder.join(format!("{name}.rs"));
                    let items = parse(&file, read)?.items;
                    self.add(path, &file, &children_folder, items, read)?;
                }
            }
        }
        Ok(())
    }
}

fn parse(file: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Result<syn::File> {
    let text = read(file).with_context(|| format!("cannot read {}", file.display()))?;
    syn::parse_file(&text).with_context(|| format!("cannot parse {}", file.display()))
}

/// The lines of `//!` or `///`.
fn documentation(attributes: &[syn::Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| {
        let value = &attribute.meta.require_name_value().ok()?;
        match &value.value {
            syn::Expr::Lit(syn::ExprLit {
                lit: syn::Lit::Str(line),
                ..
            }) if value.path.is_ident("doc") => Some(line.value() + "\n"),
            _ => None,
        }
    });
    lines.collect()
}

/// The attributes of the items that `#[cfg(test)]` usually stands at.
fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Const(item) => &item.attrs,
        _ => &[],
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let Ok(condition) = attribute.meta.require_list() else {
            return false;
        };
        condition.path.is_ident("cfg") && condition.tokens.to_string() == "test"
    })
}

fn has_path(attributes: &[syn::Attribute]) -> bool {
    attributes
        .iter()
        .any(|attribute| attribute.path().is_ident("path"))
}

/// Collects the paths of one module.
struct Reader {
    path: ModulePath,
    children: BTreeSet<String>,
    module: Module,
}

impl Reader {
    /// A path of this module as a path from the root; `None` for one of another crate, or of a name that a `use` brought.
    fn path_from_root(&self, path: &[String]) -> Option<Vec<String>> {
        let mut place = self.path.clone();
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" => {
                place.clear();
                rest = &path[1..];
            }
            "self" => rest = &path[1..],
            "super" => {
                while rest.first().is_some_and(|first| first == "super") {
                    place.pop();
                    rest = &rest[1..];
                }
            }
            first if self.children.contains(first) => {}
            _ => return None,
        }
        place.extend_from_slice(rest);
        Some(place)
    }

    fn add_use(&mut self, before: &[String], tree: &syn::UseTree) {
        let mut path = before.to_vec();
        let name = match tree {
            syn::UseTree::Path(part) => {
                path.push(part.ident.to_string());
                return self.add_use(&path, &part.tree);
            }
            syn::UseTree::Group(group) => {
                return group
                    .items
                    .iter()
                    .for_each(|tree| self.add_use(&path, tree));
            }
            syn::UseTree::Name(name) => {
                if name.ident != "self" {
                    path.push(name.ident.to_string());
                }
                path.last().cloned()
            }
            syn::UseTree::Rename(name) => {
                if name.ident != "self" {
                    path.push(name.ident.to_string());
                }
                Some(name.rename.to_string())
            }
            syn::UseTree::Glob(_) => None,
        };
        if let Some(path) = self.path_from_root(&path) {
            if let Some(name) = name {
                self.module.imported.insert(name, path.clone());
            }
            self.module.paths.insert(path);
        }
    }

    /// Reads `crate::a::b`, `self::a` and `super::a` where they are written out in a macro's tokens.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) if colons == 2 && !path.is_empty() => {
                    path.push(ident.to_string());
                    colons = 0;
                }
                other => {
                    self.add_path(&std::mem::take(&mut path));
                    colons = 0;
                    match other {
                        TokenTree::Ident(ident) => path.push(ident.to_string()),
                        TokenTree::Group(group) => self.add_tokens(group.stream()),
                        _ => {}
                    }
                }
            }
        }
        self.add_path(&path);
    }

    fn add_path(&mut self, path: &[String]) {
        if path.len() > 1
            && let Some(path) = self.path_from_root(path)
        {
            self.module.paths.insert(path);
        }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_use(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<_> = path
            .segments
            .iter()
            .map(|part| part.ident.to_string())
            .collect();
        self.add_path(&names);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.add_tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }
}
