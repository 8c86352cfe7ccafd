//! The contents of a package, for programs that look for known defects: a CycloneDX 1.6 document.

use anyhow::Result;
use serde_json::{Value, json};

use crate::packing::contents::{Contents, Package};

/// A library that is packed beside the program.
#[derive(Debug)]
pub struct Library {
    /// Name of the file.
    pub file: String,
    /// SHA-256 of the file as packed.
    pub sha256: String,
    /// pip's name of the release that it was taken from: `torch==2.11.0`.
    pub requirement: String,
}

/// The document. It holds neither time nor random number, so the same contents give the same bytes.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn document(version: &str, contents: &Contents, libraries: &[Library]) -> Result<String> {
    let crates = contents.packages.iter().map(of_crate);
    let components: Vec<Value> = crates.chain(libraries.iter().map(of_library)).collect();
    let mut dependencies: Vec<Value> = contents
        .packages
        .iter()
        .map(|package| {
            let uses = package.uses.iter().map(|&index| reference(&contents.packages[index]));
            json!({ "ref": reference(package), "dependsOn": uses.collect::<Vec<_>>() })
        })
        .collect();
    let program = "reft";
    let direct = components
        .iter()
        .filter(|component| component["name"] == "reft-cli" || component["type"] == "file");
    let direct: Vec<&Value> = direct.map(|component| &component["bom-ref"]).collect();
    dependencies.push(json!({ "ref": program, "dependsOn": direct }));
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": { "component": { "type": "application", "bom-ref": program, "name": program, "version": version } },
        "components": components,
        "dependencies": dependencies,
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn reference(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

fn of_crate(package: &Package) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(package),
        "name": package.name,
        "version": package.version,
        "licenses": [{ "expression": package.licence }],
    });
    if let Some(sha256) = &package.sha256 {
        component["purl"] = json!(reference(package)); // our own crates are in no registry
        component["hashes"] = json!([{ "alg": "SHA-256", "content": sha256 }]);
    }
    component
}

fn of_library(library: &Library) -> Value {
    let release = library.requirement.replace("==", "@");
    json!({
        "type": "file",
        "bom-ref": library.file,
        "name": library.file,
        "version": release.split('@').nth(1).unwrap_or_default(),
        "purl": format!("pkg:pypi/{release}"),
        "hashes": [{ "alg": "SHA-256", "content": library.sha256 }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_libraries_and_who_uses_whom_are_listed() -> Result<()> {
        let package = |name: &str, sha256: Option<&str>, uses| Package {
            name: name.into(),
            version: "1.2.0".into(),
            licence: "MIT".into(),
            folder: "/src".into(),
            sha256: sha256.map(str::to_owned),
            uses,
        };
        let packages =
            vec![package("below", Some("ab"), vec![]), package("reft-cli", None, vec![0])];
        let library = Library {
            file: "libc10.so".into(),
            sha256: "cd".into(),
            requirement: "torch==2.11.0".into(),
        };
        let written = document("0.1.0", &Contents { packages }, &[library])?;
        let bill: Value = serde_json::from_str(&written)?;
        assert_eq!(bill["metadata"]["component"]["version"], "0.1.0");
        let [below, own, c10] = [0, 1, 2].map(|index| &bill["components"][index]);
        assert_eq!(below["purl"], "pkg:cargo/below@1.2.0");
        assert_eq!(below["hashes"][0]["content"], "ab");
        assert_eq!(own["purl"], Value::Null);
        assert_eq!(
            (&c10["purl"], &c10["version"]),
            (&json!("pkg:pypi/torch@2.11.0"), &json!("2.11.0"))
        );
        let uses = |index: usize| &bill["dependencies"][index]["dependsOn"];
        assert_eq!(uses(1), &json!(["pkg:cargo/below@1.2.0"]));
        assert_eq!(uses(2), &json!(["pkg:cargo/reft-cli@1.2.0", "libc10.so"]));
        Ok(())
    }
}
