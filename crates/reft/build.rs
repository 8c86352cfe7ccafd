//! Turns the pages of `docs/` into modules of the documentation: a text for each page, with links to the others, and `book.rs`.

use std::error::Error;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::{env, fs};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag};

/// The pages; a package does not have them.
const PAGES: &str = "../../docs";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(has_pages)");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("Cargo gives no OUT_DIR")?);
    let mut names = Vec::new();
    if Path::new(PAGES).is_dir() {
        println!("cargo::rerun-if-changed={PAGES}");
        println!("cargo::rustc-cfg=has_pages");
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

/// A page for rustdoc, which takes code without a language for Rust. Links to pages name their modules; of a link or picture of another file, only
/// its text stays.
fn page(text: &str, names: &[String]) -> String {
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
        let source = &text[range.clone()];
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language)))
                if language.is_empty() =>
            {
                let end = range.start + source.len() - source.trim_start_matches(['`', '~']).len();
                edits.push((end..end, "text".to_owned()));
            }
            Event::Start(Tag::CodeBlock(CodeBlockKind::Indented)) => {
                let begin = text[..range.start].rfind('\n').map_or(0, |end| end + 1);
                let lines = text[begin..range.end].lines().map(|line| {
                    let code = line.strip_prefix("    ").unwrap_or_default();
                    format!("{code}\n")
                });
                let fenced = format!("```text\n{}```\n", lines.collect::<String>());
                edits.push((begin..range.end, fenced));
            }
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. })
                if !dest_url.starts_with("http") && !dest_url.starts_with('#') =>
            {
                let Some(end) = source.rfind("](") else { continue };
                let target = range.start + end..range.end;
                let (file, anchor) =
                    dest_url.split_at(dest_url.find('#').unwrap_or(dest_url.len()));
                match file.strip_suffix(".md").filter(|name| names.iter().any(|n| n == name)) {
                    Some(name) => {
                        edits.push((target, format!("](crate::book::{name}{anchor})")));
                    }
                    None => {
                        let open = source.len() - source.trim_start_matches(['!', '[']).len();
                        edits.push((range.start..range.start + open, String::new()));
                        edits.push((target, String::new()));
                    }
                }
            }
            _ => {}
        }
    }
    edits.sort_by_key(|(range, _)| range.start);
    let (mut out, mut at) = (String::new(), 0);
    for (range, new) in edits {
        out += &text[at..range.start];
        out += &new;
        at = range.end;
    }
    out + &text[at..]
}
