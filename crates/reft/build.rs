//! Turns the pages of `docs/` into modules of the documentation: a text for each page, with links to the others, and `book.rs`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The pages; a package does not have them.
const PAGES: &str = "../../docs";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("Cargo gives no OUT_DIR")?);
    let mut names = Vec::new();
    if Path::new(PAGES).is_dir() {
        println!("cargo::rerun-if-changed={PAGES}");
        for file in fs::read_dir(PAGES)? {
            let name =
                file?.file_name().into_string().map_err(|name| format!("{name:?} is not UTF-8"))?;
            names.extend(name.strip_suffix(".md").map(str::to_owned));
        }
    }
    names.sort();
    let mut book = String::new();
    for name in &names {
        let text = fs::read_to_string(Path::new(PAGES).join(format!("{name}.md")))?;
        fs::write(out.join(format!("{name}.md")), page(&text, &names))?;
        book += &format!(
            "#[doc = include_str!(concat!(env!(\"OUT_DIR\"), \"/{name}.md\"))]\npub mod {name} {{}}\n"
        );
    }
    Ok(fs::write(out.join("book.rs"), book)?)
}

/// A page for rustdoc, which takes code without a language for Rust.
fn page(text: &str, names: &[String]) -> String {
    let mut lines = Vec::new();
    let (mut is_fenced, mut is_indented, mut is_in_list) = (false, false, false);
    for line in text.lines() {
        let is_blank = line.trim().is_empty();
        if is_indented && !is_blank && !line.starts_with("    ") {
            is_indented = false;
            lines.push("```".to_owned());
        }
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
            let needs_language = is_fenced && line == "```";
            lines.push(if needs_language { "```text".to_owned() } else { line.to_owned() });
            continue;
        }
        if is_fenced {
            lines.push(line.to_owned());
            continue;
        }
        if !is_blank && !line.starts_with(' ') {
            let after_number = line.trim_start_matches(|c: char| c.is_ascii_digit());
            is_in_list =
                line.starts_with("- ") || (after_number.starts_with(". ") && after_number != line);
        }
        let follows_blank = lines.last().is_none_or(|last| last.is_empty());
        if let Some(code) =
            line.strip_prefix("    ").filter(|_| is_indented || (follows_blank && !is_in_list))
        {
            if !is_indented {
                is_indented = true;
                lines.push("```text".to_owned());
            }
            lines.push(code.to_owned());
        } else {
            lines.push(linked(line, names));
        }
    }
    if is_indented {
        lines.push("```".to_owned());
    }
    lines.join("\n") + "\n"
}

/// Links to pages name their modules. Of a link or picture of another file, only its text stays.
fn linked(line: &str, names: &[String]) -> String {
    let (mut out, mut rest) = (String::new(), line);
    while let Some((before, after)) = rest.split_once("](")
        && let Some((target, following)) = after.split_once(')')
    {
        out += before;
        let (file, anchor) = target.split_at(target.find('#').unwrap_or(target.len()));
        let module =
            file.strip_suffix(".md").filter(|name| names.iter().any(|known| known == name));
        if target.starts_with("http") || target.starts_with('#') {
            out += &format!("]({target})");
        } else if let Some(module) = module {
            out += &format!("](crate::book::{module}{anchor})");
        } else if let Some(open) = out.rfind('[') {
            let text = out.split_off(open);
            out = out.trim_end_matches('!').to_owned() + &text[1..];
        }
        rest = following;
    }
    out + rest
}
