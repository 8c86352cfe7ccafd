//! Shapes in the documentation of the libraries: what takes, returns or holds a tensor says its shape.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use syn::visit::{self, Visit};
use syn::{
    Attribute, Expr, ExprLit, Field, Ident, ImplItemFn, ItemFn, ItemMod, ItemTrait, Lit, Meta,
    Signature, TraitItemFn, Visibility,
};

/// Words that say a shape without its dimensions.
const WORDS: [&str; 3] = ["shape", "scalar", "elementwise"];

/// Findings about the Rust files of libraries among `files`, which are relative to `root`.
pub fn check(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| is_of_library(file)) {
        let text = fs::read_to_string(root.join(file))
            .with_context(|| format!("cannot read {}", file.display()))?;
        let parsed =
            syn::parse_file(&text).with_context(|| format!("cannot parse {}", file.display()))?;
        let mut silent = Silent::default();
        silent.visit_file(&parsed);
        findings.extend(silent.names.into_iter().map(|name| {
            format!(
                "{}: the documentation of {name} says no shape of its tensors: name the dimensions, as in `[rows, hidden]`",
                file.display()
            )
        }));
    }
    Ok(findings)
}

fn is_of_library(file: &Path) -> bool {
    let mut parts = file.iter();
    parts.next().is_some_and(|first| first == "crates")
        && parts.next().is_some_and(|name| name != "reft-cli" && name != "reft-test-support")
        && parts.next().is_some_and(|folder| folder == "src")
        && file.extension().is_some_and(|extension| extension == "rs")
}

/// Public names that say no shape.
#[derive(Default)]
struct Silent {
    names: Vec<String>,
    is_in_public_trait: bool,
}

impl Silent {
    fn meet(&mut self, name: &Ident, has_tensor: bool, attributes: &[Attribute]) {
        if has_tensor && !says_shape(&documentation(attributes)) {
            self.names.push(name.to_string());
        }
    }
}

impl<'a> Visit<'a> for Silent {
    fn visit_item_mod(&mut self, item: &'a ItemMod) {
        if !item.attrs.iter().any(|attribute| attribute.path().is_ident("cfg")) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'a ItemFn) {
        if matches!(item.vis, Visibility::Public(_)) {
            self.meet(&item.sig.ident, has_tensor_in(&item.sig), &item.attrs);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'a ImplItemFn) {
        if matches!(item.vis, Visibility::Public(_)) {
            self.meet(&item.sig.ident, has_tensor_in(&item.sig), &item.attrs);
        }
    }

    fn visit_item_trait(&mut self, item: &'a ItemTrait) {
        self.is_in_public_trait = matches!(item.vis, Visibility::Public(_));
        visit::visit_item_trait(self, item);
        self.is_in_public_trait = false;
    }

    fn visit_trait_item_fn(&mut self, item: &'a TraitItemFn) {
        if self.is_in_public_trait {
            self.meet(&item.sig.ident, has_tensor_in(&item.sig), &item.attrs);
        }
    }

    fn visit_field(&mut self, field: &'a Field) {
        if let (Visibility::Public(_), Some(name)) = (&field.vis, &field.ident) {
            let mut tensors = Tensors(false);
            tensors.visit_type(&field.ty);
            self.meet(name, tensors.0, &field.attrs);
        }
    }
}

/// Whether `Tensor` has been met.
struct Tensors(bool);

impl<'a> Visit<'a> for Tensors {
    fn visit_ident(&mut self, name: &'a Ident) {
        self.0 |= name == "Tensor";
    }
}

fn has_tensor_in(signature: &Signature) -> bool {
    let mut tensors = Tensors(false);
    tensors.visit_signature(signature);
    tensors.0
}

fn documentation(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(ExprLit { lit: Lit::Str(line), .. }) => Some(line.value()),
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn says_shape(text: &str) -> bool {
    let mut code = text.split('`').skip(1).step_by(2);
    code.any(|code| code.contains('[')) || WORDS.iter().any(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_public_and_has_tensors_must_say_their_shape() -> Result<()> {
        let root = tempfile::tempdir()?;
        let code = r#"
            /// The edit of `h` `[rows, hidden]`.
            pub fn said(h: &Tensor) {}
            /// Adds one, elementwise.
            pub fn in_words(h: &Tensor) {}
            /// The edit; see [`said`].
            pub fn unsaid(h: &Tensor) {}
            fn private(h: &Tensor) {}
            /// Nothing.
            pub fn without(h: f32) {}
            /// An edit.
            pub struct Edit {
                /// Directions.
                pub directions: Option<Tensor>,
                inner: Tensor,
            }
            impl Edit {
                /// The rows.
                pub fn rows(&self) -> Result<Tensor> {}
            }
            /// Edits.
            pub trait Edits {
                /// Edits.
                fn all(&self) -> Vec<Tensor>;
            }
            #[cfg(test)]
            mod tests { pub fn f(h: Tensor) {} }
        "#;
        fs::create_dir_all(root.path().join("crates/reft-core/src"))?;
        fs::create_dir_all(root.path().join("crates/reft-cli/src"))?;
        let files = [PathBuf::from("crates/reft-core/src/a.rs"), "crates/reft-cli/src/a.rs".into()];
        for file in &files {
            fs::write(root.path().join(file), code)?;
        }
        let found = check(root.path(), &files)?;
        let names = ["unsaid", "directions", "rows", "all"];
        assert_eq!(found.len(), names.len(), "{found:?}");
        for (found, name) in found.iter().zip(names) {
            let begin = format!("crates/reft-core/src/a.rs: the documentation of {name} says");
            assert!(found.starts_with(&begin), "{found}");
        }
        Ok(())
    }
}
