//! The house rules as a test: levels of modules, sizes of files and functions,
//! module docs, generated files in step.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use syn::{spanned::Spanned, visit::Visit};

/// Lines of a file without its tests at most.
const FILE_LINES_MAX: usize = 500;
/// Lines of a function at most.
const FUNCTION_LINES_MAX: usize = 70;

/// The level of each module; a module imports only from lower levels, or from
/// itself. `ARCHITECTURE.md` shows the same table.
const LEVELS: &[(&str, u8)] = &[
    ("api", 0),
    ("event", 0),
    ("wire", 0),
    ("dialect", 0),
    ("runtime", 0),
    ("policy", 1),
    ("verify", 2),
    ("egress", 2),
    ("access", 2),
    ("secrets", 2),
    ("store", 2),
    ("routing::index", 2),
    ("routing", 3),
    ("delivery", 4),
    ("inbox", 3),
    ("ingest", 3),
    ("dispatch", 3),
    ("controller", 4),
    ("cli", 4),
    ("main", 5),
    ("lib", 5),
    ("bin", 5),
];

struct Source {
    path: PathBuf,
    module: String,
    text: String,
    syntax: syn::File,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    collect(&root, &mut paths);
    assert!(paths.len() > 10, "found only {} files under {}", paths.len(), root.display());
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let syntax = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let relative = path.strip_prefix(&root).unwrap().with_extension("");
            let module = relative.to_string_lossy().replace('/', "::");
            Source { path, module, text, syntax }
        })
        .collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|e| e == "rs") {
            paths.push(path);
        }
    }
    paths.sort();
}

/// The level of a module path such as `routing::index::feed`; the longest entry
/// of the table that is a prefix counts.
fn level(module: &str) -> Option<u8> {
    LEVELS
        .iter()
        .filter(|(name, _)| module == *name || module.strip_prefix(name).is_some_and(|rest| rest.starts_with("::")))
        .max_by_key(|(name, _)| name.len())
        .map(|(_, level)| *level)
}

fn is_test_item(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| {
        a.path().is_ident("test")
            || a.path().segments.last().is_some_and(|s| s.ident == "test")
            || (a.path().is_ident("cfg") && a.parse_args::<syn::Ident>().is_ok_and(|i| i == "test"))
    })
}

#[derive(Default)]
struct Walker {
    long_functions: Vec<(String, usize)>,
    test_lines: usize,
    paths: Vec<Vec<String>>,
}

impl Walker {
    fn function(&mut self, name: &syn::Ident, span: proc_macro2::Span) {
        let lines = span.end().line - span.start().line + 1;
        if lines > FUNCTION_LINES_MAX {
            self.long_functions.push((name.to_string(), lines));
        }
    }
}

impl<'a> Visit<'a> for Walker {
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if is_test_item(&item.attrs) {
            self.test_lines += item.span().end().line - item.span().start().line + 1;
        } else {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'a syn::ItemFn) {
        self.function(&item.sig.ident, item.block.span());
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'a syn::ImplItemFn) {
        self.function(&item.sig.ident, item.block.span());
        syn::visit::visit_impl_item_fn(self, item);
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        flatten(&item.tree, &mut Vec::new(), &mut self.paths);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        self.paths.push(path.segments.iter().map(|s| s.ident.to_string()).collect());
        syn::visit::visit_path(self, path);
    }
}

fn flatten(tree: &syn::UseTree, prefix: &mut Vec<String>, paths: &mut Vec<Vec<String>>) {
    match tree {
        syn::UseTree::Path(p) => {
            prefix.push(p.ident.to_string());
            flatten(&p.tree, prefix, paths);
            prefix.pop();
        }
        syn::UseTree::Group(group) => group.items.iter().for_each(|item| flatten(item, prefix, paths)),
        syn::UseTree::Name(n) => paths.push(prefix.iter().cloned().chain([n.ident.to_string()]).collect()),
        syn::UseTree::Rename(r) => paths.push(prefix.iter().cloned().chain([r.ident.to_string()]).collect()),
        syn::UseTree::Glob(_) => paths.push(prefix.clone()),
    }
}

fn walk(source: &Source) -> Walker {
    let mut walker = Walker::default();
    walker.visit_file(&source.syntax);
    walker
}

#[test]
fn every_module_imports_only_from_lower_levels() {
    let mut wrong = Vec::new();
    for source in sources() {
        let own = level(&source.module).unwrap_or_else(|| {
            panic!("{} has no level: add it to tests/it/tidy.rs and ARCHITECTURE.md", source.module)
        });
        let own_top = source.module.split("::").next().unwrap_or_default();
        for path in walk(&source).paths {
            let Some(("crate" | "posthorn", rest)) = path.split_first().map(|(first, rest)| (first.as_str(), rest))
            else {
                continue;
            };
            let target = rest.join("::");
            let Some(target_level) = level(&target) else { continue };
            let inside = rest.first().is_some_and(|top| top == own_top);
            if target_level > own || (target_level == own && !inside && own != 0) {
                wrong.push(format!("{} (level {own}) imports {target} (level {target_level})", source.module));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_and_functions_keep_to_the_size_budget() {
    let mut wrong = Vec::new();
    for source in sources() {
        let walker = walk(&source);
        let lines = source.text.lines().count() - walker.test_lines;
        let is_test = source.module.ends_with("::tests") || source.module.contains("::tests::");
        if lines > FILE_LINES_MAX && !is_test {
            wrong.push(format!("{}: {lines} lines without tests, at most {FILE_LINES_MAX}", source.path.display()));
        }
        for (name, lines) in walker.long_functions {
            wrong.push(format!("{}: {name} has {lines} lines, at most {FUNCTION_LINES_MAX}", source.path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<_> = sources().into_iter().filter(|s| !s.text.starts_with("//!")).map(|s| s.path).collect();
    assert!(silent.is_empty(), "no module docs in {silent:#?}");
}

#[test]
fn every_module_stands_in_the_architecture_page() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    let shown: BTreeMap<_, _> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            let level: u8 = cells.next()?.trim().parse().ok()?;
            Some((cells.next()?.trim().to_owned(), level))
        })
        .flat_map(|(names, level)| {
            names.split(", ").map(move |name| (name.trim_matches('`').to_owned(), level)).collect::<Vec<_>>()
        })
        .collect();
    for (name, level) in LEVELS.iter().filter(|(name, _)| *name != "lib" && *name != "routing") {
        assert_eq!(shown.get(*name), Some(level), "{name} is not in ARCHITECTURE.md at level {level}");
    }
}
