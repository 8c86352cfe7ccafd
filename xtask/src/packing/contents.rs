//! The crates in the program, for its licences and its bill of materials.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command;
use crate::workspace::Workspace;

/// One crate in the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence, as an SPDX expression.
    pub licence: String,
    /// The folder of its source.
    pub folder: PathBuf,
    /// SHA-256 of its archive in the registry; `None` for our own crates.
    pub sha256: Option<String>,
    /// The crates that it uses: indices into [`Contents::packages`].
    pub uses: Vec<usize>,
}

/// Everything that is linked into the program, by name and version.
#[derive(Debug)]
pub struct Contents {
    /// The crates.
    pub packages: Vec<Package>,
}

impl Contents {
    /// The program itself.
    ///
    /// # Errors
    /// If the program is not among the packages.
    pub fn own(&self) -> Result<&Package> {
        let mut packages = self.packages.iter();
        packages.find(|package| package.name == ROOT).context("invariant: the program is in it")
    }
}

/// The crate whose program is packed.
const ROOT: &str = "reft-cli";

/// Asks Cargo for the crates of the program. Crates of build scripts, macros and tests are left out.
///
/// # Errors
/// If Cargo cannot be asked, or the lock file has no digest of a crate from the registry.
pub fn read(workspace: &Workspace) -> Result<Contents> {
    let mut cargo = workspace.cargo();
    cargo.args(["metadata", "--format-version", "1", "--locked"]);
    cargo.args(["--filter-platform", "x86_64-unknown-linux-gnu"]);
    let metadata: Value = serde_json::from_str(&command::output(&mut cargo)?)
        .context("cannot read the output of `cargo metadata`")?;
    let lock = fs::read_to_string(workspace.root().join("Cargo.lock"))
        .context("cannot read Cargo.lock")?;
    of(&metadata, &digests(&lock))
}

/// Digests in a lock file by name and version.
fn digests(lock: &str) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    for block in lock.split("[[package]]") {
        let field = |name: &str| {
            let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
            line.map(|value| value.trim_matches('"').to_owned())
        };
        if let (Some(name), Some(version), Some(digest)) =
            (field("name"), field("version"), field("checksum"))
        {
            found.insert((name, version), digest);
        }
    }
    found
}

fn of(metadata: &Value, digests: &BTreeMap<(String, String), String>) -> Result<Contents> {
    let list = |value: &'static str| metadata[value].as_array().into_iter().flatten();
    let packages: BTreeMap<&str, &Value> =
        list("packages").filter_map(|package| Some((package["id"].as_str()?, package))).collect();
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let root = packages.iter().find(|(_, package)| package["name"] == ROOT);
    let (root, _) = root.with_context(|| format!("`cargo metadata` lists no {ROOT}"))?;
    let is_macro = |id: &str| {
        let targets = packages.get(id).and_then(|package| package["targets"].as_array());
        let kinds = targets.into_iter().flatten().filter_map(|target| target["kind"].as_array());
        kinds.flatten().any(|kind| kind == "proc-macro")
    };
    let linked = |id: &str| -> Vec<&str> {
        let dependencies = nodes.get(id).and_then(|node| node["deps"].as_array());
        let is_normal = |dependency: &&Value| {
            let kinds = dependency["dep_kinds"].as_array();
            kinds.into_iter().flatten().any(|kind| kind["kind"].is_null())
        };
        let normal = dependencies.into_iter().flatten().filter(is_normal);
        normal.filter_map(|one| one["pkg"].as_str()).filter(|id| !is_macro(id)).collect()
    };
    let (mut ids, mut waiting) = (BTreeSet::from([*root]), vec![*root]);
    while let Some(id) = waiting.pop() {
        waiting.extend(linked(id).into_iter().filter(|id| ids.insert(id)));
    }
    let mut order: Vec<&str> = ids.into_iter().collect();
    let text = |id: &str, field: &str| packages[id][field].as_str().unwrap_or_default().to_owned();
    order.sort_by_key(|id| (text(id, "name"), text(id, "version")));
    let place: BTreeMap<&str, usize> =
        order.iter().enumerate().map(|(index, id)| (*id, index)).collect();
    let package = |id: &&str| {
        let (name, version) = (text(id, "name"), text(id, "version"));
        let is_ours = packages[id]["source"].is_null();
        let sha256 = digests.get(&(name.clone(), version.clone())).cloned();
        if sha256.is_none() && !is_ours {
            anyhow::bail!("Cargo.lock has no checksum of {name} {version}");
        }
        let manifest = PathBuf::from(text(id, "manifest_path"));
        Ok(Package {
            licence: text(id, "license").replace('/', " OR "),
            folder: manifest.parent().context("a manifest lies in a folder")?.to_owned(),
            uses: linked(id).into_iter().map(|id| place[id]).collect(),
            name,
            version,
            sha256,
        })
    };
    Ok(Contents { packages: order.iter().map(package).collect::<Result<_>>()? })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(name: &str, kind: &str, licence: &str) -> Value {
        json!({
            "id": name, "name": name, "version": "1.0.0", "license": licence, "manifest_path": format!("/src/{name}/Cargo.toml"),
            "source": if name == ROOT { Value::Null } else { json!("registry") }, "targets": [{ "kind": [kind] }],
        })
    }

    fn node(name: &str, dependencies: &[(&str, Value)]) -> Value {
        let one =
            |(pkg, kind): &(&str, Value)| json!({ "pkg": pkg, "dep_kinds": [{ "kind": kind }] });
        json!({ "id": name, "deps": dependencies.iter().map(one).collect::<Vec<_>>() })
    }

    #[test]
    fn what_is_linked_is_listed_and_what_only_builds_or_tests_is_not() -> Result<()> {
        let metadata = json!({
            "packages": [
                package(ROOT, "lib", "MIT"), package("used", "lib", "MIT/Apache-2.0"), package("below", "lib", "Zlib"),
                package("macros", "proc-macro", "MIT"), package("of-macros", "lib", "MIT"), package("builds", "lib", "MIT"),
                package("tests", "lib", "MIT"), package("elsewhere", "lib", "MIT"),
            ],
            "resolve": { "nodes": [
                node(ROOT, &[("used", Value::Null), ("macros", Value::Null), ("builds", json!("build")), ("tests", json!("dev"))]),
                node("used", &[("below", Value::Null)]),
                node("macros", &[("of-macros", Value::Null)]),
            ]},
        });
        let lock = "[[package]]\nname = \"used\"\nversion = \"1.0.0\"\nsource = \"registry\"\nchecksum = \"ab\"\n\n[[package]]\nname = \"below\"\nversion = \"1.0.0\"\nchecksum = \"cd\"\n";
        let contents = of(&metadata, &digests(lock))?;
        let named: Vec<_> = contents.packages.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(named, ["below", ROOT, "used"]);
        let used = &contents.packages[2];
        assert_eq!(
            (used.licence.as_str(), used.sha256.as_deref()),
            ("MIT OR Apache-2.0", Some("ab"))
        );
        assert_eq!(
            (&used.uses, &contents.packages[1].uses, contents.packages[1].sha256.as_ref()),
            (&vec![0], &vec![2], None)
        );
        assert_eq!(used.folder, PathBuf::from("/src/used"));
        let error = of(&metadata, &digests("")).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("Cargo.lock has no checksum of below 1.0.0"));
        Ok(())
    }
}
