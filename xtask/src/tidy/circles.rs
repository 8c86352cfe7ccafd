//! Circles of imports between files of different folders: neither folder can be read without the other.
//!
//! A file imports another if its code, without tests, names an item of the other, by `use` or by a path. A re-exported item belongs to the
//! file that defines it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Which files each file imports.
type Imports = BTreeMap<PathBuf, BTreeSet<PathBuf>>;

/// Longest chain of re-exports that is followed.
const MAX_STEPS: usize = 16;

/// Findings about the crates whose `lib.rs` or `main.rs` is among `files`, which are relative to `root`.
pub fn check(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let is_root = |file: &&PathBuf| file.ends_with("src/lib.rs") || file.ends_with("src/main.rs");
    for file in files.iter().filter(is_root) {
        let folder = file.parent().context("a file in a folder")?;
        let mut modules = Modules::default();
        modules.read_file(&root.join(folder), Path::new(file.file_name().context("a file")?), 0)?;
        for (chain, size) in circles(&modules.imports()) {
            let chain: Vec<_> = chain.iter().map(|file| file.display().to_string()).collect();
            findings.push(format!(
                "{}: {} is a circle of imports between folders, of {size} files that all hang together",
                folder.display(),
                chain.join(" → ")
            ));
        }
    }
    Ok(findings)
}

/// For each group of files in several folders that all import each other, directly or not: the shortest circle, and the size of the group.
fn circles(imports: &Imports) -> Vec<(Vec<&Path>, usize)> {
    let ways: BTreeMap<&Path, _> =
        imports.keys().map(|file| (file.as_path(), ways_from(imports, file))).collect();
    let mut shortest: BTreeMap<Vec<&Path>, Vec<&Path>> = BTreeMap::new();
    for (from, targets) in imports {
        for to in targets.iter().filter(|to| to.parent() != from.parent()) {
            let (from, to) = (from.as_path(), to.as_path());
            let back = &ways[to];
            if !back.contains_key(from) {
                continue;
            }
            let mut chain = vec![from];
            let mut file = from;
            while file != to {
                file = back[file];
                chain.push(file);
            }
            chain.push(from);
            chain.reverse();
            let imports_to = |file: &&Path| ways[file].contains_key(to);
            let together: Vec<&Path> = back.keys().copied().filter(imports_to).collect();
            let known = shortest.entry(together).or_insert_with(|| chain.clone());
            if chain.len() < known.len() {
                *known = chain;
            }
        }
    }
    shortest.into_iter().map(|(together, chain)| (chain, together.len())).collect()
}

/// The files that `start` imports, directly or not, each with its predecessor on the shortest way.
fn ways_from<'a>(imports: &'a Imports, start: &'a Path) -> BTreeMap<&'a Path, &'a Path> {
    let mut before = BTreeMap::from([(start, start)]);
    let mut queue = VecDeque::from([start]);
    while let Some(file) = queue.pop_front() {
        for target in imports.get(file).into_iter().flatten() {
            if !before.contains_key(target.as_path()) {
                before.insert(target, file);
                queue.push_back(target);
            }
        }
    }
    before
}

/// A path in code, `crate`, `self`, `super` or a name first.
type Names = Vec<String>;

/// A module: a file's, or one inside a file.
#[derive(Default)]
struct Module {
    /// The file that holds it.
    file: PathBuf,
    parent: usize,
    children: BTreeMap<String, usize>,
    /// Names that `use` brings in, each with its path.
    used: BTreeMap<String, Names>,
    /// Paths in the module's own code.
    followed: BTreeSet<Names>,
}

/// The modules of a crate, its root first.
#[derive(Default)]
struct Modules(Vec<Module>);

impl Modules {
    /// Reads a module's file and the files below it; `file` is relative to the folder `source`.
    fn read_file(&mut self, source: &Path, file: &Path, parent: usize) -> Result<usize> {
        let path = source.join(file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let tokens: TokenStream =
            text.parse().map_err(|error| anyhow!("{} is not Rust: {error}", path.display()))?;
        let module = self.add(file, parent);
        let is_folder = ["lib.rs", "main.rs", "mod.rs"].iter().any(|name| file.ends_with(name));
        let folder = if is_folder { file.with_file_name("") } else { file.with_extension("") };
        self.read(source, &folder, module, tokens)?;
        Ok(module)
    }

    fn add(&mut self, file: &Path, parent: usize) -> usize {
        self.0.push(Module { file: file.to_owned(), parent, ..Module::default() });
        self.0.len() - 1
    }

    /// Reads code of a module with the files of its child modules in `folder`.
    fn read(
        &mut self,
        source: &Path,
        folder: &Path,
        module: usize,
        code: TokenStream,
    ) -> Result<()> {
        let tokens: Vec<TokenTree> = code.into_iter().collect();
        let mut i = 0;
        while let Some(token) = tokens.get(i) {
            let (before, rest) = (&tokens[..i], &tokens[i + 1..]);
            let length = match (token, rest) {
                (TokenTree::Punct(_), [TokenTree::Group(attribute), ..])
                    if attribute.to_string().replace(' ', "") == "[cfg(test)]" =>
                {
                    rest.iter().take_while(|token| !is_body(token) && !is(token, ';')).count() + 1
                }
                (TokenTree::Ident(word), [TokenTree::Ident(name), body, ..]) if word == "mod" => {
                    let name = name.to_string();
                    let child = if let TokenTree::Group(body) = body {
                        let child = self.add(&self.0[module].file.clone(), module);
                        self.read(source, &folder.join(&name), child, body.stream())?;
                        child
                    } else {
                        let beside = folder.join(format!("{name}.rs"));
                        let below = folder.join(&name).join("mod.rs");
                        let file = if source.join(&beside).is_file() { beside } else { below };
                        self.read_file(source, &file, module)?
                    };
                    self.0[module].children.insert(name, child);
                    2
                }
                (TokenTree::Ident(word), _) if word == "use" => {
                    let length = rest.iter().take_while(|token| !is(token, ';')).count();
                    let mut used = Vec::new();
                    read_use(&rest[..length], Vec::new(), &mut used);
                    if !is_public(before) {
                        self.0[module].followed.extend(used.iter().map(|(_, path)| path.clone()));
                    }
                    self.0[module].used.extend(used);
                    length
                }
                (TokenTree::Ident(first), _) if !is_inside_a_path(before) => {
                    let mut path = vec![first.to_string()];
                    path.extend(rest.chunks(3).map_while(next_name));
                    let length = 3 * (path.len() - 1);
                    self.0[module].followed.insert(path);
                    length
                }
                (TokenTree::Group(group), _) => {
                    self.read(source, folder, module, group.stream())?;
                    0
                }
                _ => 0,
            };
            i += 1 + length;
        }
        Ok(())
    }

    /// The file that defines the item of a path in a module; `None` if the item is not of this crate.
    fn file(&self, module: usize, path: &[String], steps: usize) -> Option<&Path> {
        let (first, mut rest) = path.split_first()?;
        let mut at = module;
        match first.as_str() {
            "crate" => at = 0,
            "self" => {}
            "super" => at = self.0[module].parent,
            name => {
                let Module { children, used, .. } = &self.0[module];
                if !used.contains_key(name) && (rest.is_empty() || !children.contains_key(name)) {
                    return None;
                }
                rest = path;
            }
        }
        while let Some((name, below)) = rest.split_first() {
            let Module { children, used, parent, .. } = &self.0[at];
            let child =
                children.get(name).filter(|_| !below.is_empty() || !used.contains_key(name));
            match (child, used.get(name)) {
                (Some(child), _) => at = *child,
                (None, Some(path)) if steps < MAX_STEPS => {
                    return self.file(at, &[path, below].concat(), steps + 1);
                }
                (None, Some(_)) => return None, // a name of another crate, imported as itself
                _ if name == "super" => at = *parent,
                _ => break,
            }
            rest = below;
        }
        Some(&self.0[at].file)
    }

    fn imports(&self) -> Imports {
        let mut imports = Imports::new();
        for (i, module) in self.0.iter().enumerate() {
            let targets = module.followed.iter().filter_map(|path| self.file(i, path, 0));
            let targets = targets.filter(|target| *target != module.file).map(Path::to_owned);
            imports.entry(module.file.clone()).or_default().extend(targets);
        }
        imports
    }
}

/// The names that a `use` brings in, each with its path.
fn read_use(tokens: &[TokenTree], mut path: Names, found: &mut Vec<(String, Names)>) {
    let mut name = None;
    for (i, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(word) if word == "as" => {
                name = tokens.get(i + 1).map(TokenTree::to_string);
                break;
            }
            TokenTree::Ident(word) if word == "self" && !path.is_empty() => {}
            TokenTree::Ident(word) => path.push(word.to_string()),
            TokenTree::Group(several) => {
                let several: Vec<TokenTree> = several.stream().into_iter().collect();
                for one in several.split(|token| is(token, ',')).filter(|one| !one.is_empty()) {
                    read_use(one, path.clone(), found);
                }
                return;
            }
            token if is(token, '*') => name = Some("*".to_owned()),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
    found.extend(name.or_else(|| path.last().cloned()).map(|name| (name, path)));
}

/// The next name of a path, from two colons and it.
fn next_name(tokens: &[TokenTree]) -> Option<String> {
    match tokens {
        [a, b, TokenTree::Ident(name)] if is(a, ':') && is(b, ':') => Some(name.to_string()),
        _ => None,
    }
}

/// Whether the tokens before a name make it a later part of a path, a field or a method.
fn is_inside_a_path(before: &[TokenTree]) -> bool {
    match before {
        [.., a, b] if is(b, ':') => is(a, ':'),
        [.., a, b] if is(b, '.') => !is(a, '.'), // two dots are a range
        _ => false,
    }
}

/// Whether `pub`, or `pub(…)`, stands before a `use`.
fn is_public(before: &[TokenTree]) -> bool {
    let is_group = |token: &&TokenTree| matches!(token, TokenTree::Group(_));
    before
        .iter()
        .rev()
        .find(|token| !is_group(token))
        .is_some_and(|token| token.to_string() == "pub")
}

fn is_body(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
}

fn is(token: &TokenTree, c: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == c)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A crate `c` with `files` below its `src`, and the circles in it.
    fn findings(files: &[(&str, &str)]) -> Result<Vec<String>> {
        let root = tempfile::tempdir()?;
        let paths: Vec<PathBuf> =
            files.iter().map(|(path, _)| Path::new("crates/c/src").join(path)).collect();
        for (path, (_, content)) in paths.iter().zip(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().context("a file in a folder")?)?;
            fs::write(path, content)?;
        }
        check(root.path(), &paths)
    }

    /// Two folders with a file in each, of the given contents.
    fn of_two(lib: &str, one: &str, two: &str) -> Result<Vec<String>> {
        findings(&[
            ("lib.rs", &format!("mod one; mod two; {lib}")),
            ("one/mod.rs", "pub(crate) mod a; pub(crate) use a::{A, make as made};"),
            ("one/a.rs", one),
            ("two/mod.rs", "mod b; pub use self::b::B;"),
            ("two/b.rs", two),
        ])
    }

    const CIRCLE: &str = "crates/c/src: one/a.rs → two/b.rs → one/a.rs is a circle of imports between folders, of 2 files that all hang together";

    #[test]
    fn a_circle_between_folders_is_found_however_it_is_written() -> Result<()> {
        let one = "use crate::two::B; pub struct A; pub fn make() {}";
        for two in [
            "use crate::one::a::A; pub struct B;",
            "use crate::{one::{self, A}}; pub struct B;",
            "pub struct B; fn f(a: crate::one::made::X) {}",
            "pub struct B; fn f() { println!(\"{}\", crate::one::a::make()) }",
            "pub struct B; fn f() { use super::super::one; let x = [..one::A::ALL]; }",
            "pub struct B; mod inside { use super::super::super::one::A as C; }",
            "use crate::A; pub struct B;",
            "use crate::one; pub struct B(one::A);",
        ] {
            assert_eq!(of_two("pub use one::A;", one, two)?, [CIRCLE], "{two}");
        }
        Ok(())
    }

    #[test]
    fn what_is_no_import_makes_no_circle() -> Result<()> {
        let one = "use crate::two::B; pub struct A; pub fn make() {}";
        for two in [
            "pub struct B; #[cfg(test)] mod tests { use crate::one::A; }",
            "#[cfg(test)] use crate::one::{A}; pub struct B;",
            "//! [`crate::one::A`]\n// crate::one::A\n pub struct B; const S: &str = \"crate::one::A\";",
            "pub use crate::one::A; pub struct B;",
            "use one::A; use std::one::a; pub struct B;",
            "pub struct B; fn f(a: B) { a.one::<u8>() }",
        ] {
            assert_eq!(of_two("pub use one::A; pub use two::B;", one, two)?, [""; 0], "{two}");
        }
        Ok(())
    }

    #[test]
    fn a_circle_within_one_folder_is_fine() -> Result<()> {
        let found = findings(&[
            ("main.rs", "mod one; mod top; fn main() { top::run() }"),
            ("top.rs", "use crate::one::a; pub fn run() { a::go() }"),
            ("one/mod.rs", "pub mod a; pub mod b; pub struct Here;"),
            ("one/a.rs", "use super::{Here, b}; pub fn go() { b::go() }"),
            ("one/b.rs", "use crate::one::a; pub fn go() { a::go() }"),
        ])?;
        assert_eq!(found, [""; 0]);
        Ok(())
    }

    #[test]
    fn a_long_circle_is_shown_by_its_shortest_part_and_counted_whole() -> Result<()> {
        let found = findings(&[
            ("lib.rs", "mod error; mod one; mod two; mod apart; pub use error::Error;"),
            ("error.rs", "pub enum Error { Two(crate::two::Two) }"),
            ("one/mod.rs", "use crate::Error; pub struct One;"),
            ("two/mod.rs", "mod deep; pub use deep::Two; pub fn new() -> Two {}"),
            ("two/deep.rs", "use crate::one::One; use crate::error::Error; pub struct Two;"),
            ("apart.rs", "use crate::{one::One, two};"),
        ])?;
        assert_eq!(
            found,
            [
                "crates/c/src: error.rs → two/deep.rs → error.rs is a circle of imports between folders, of 3 files that all hang together"
            ]
        );
        Ok(())
    }
}
