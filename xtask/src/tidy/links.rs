//! Links of Markdown pages: each leads to a file of the project, and to a heading of it.

use std::fs;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// Findings about the pages among `files`, which are relative to `root`.
pub fn check(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let read = |file: &Path| {
        fs::read_to_string(root.join(file))
            .with_context(|| format!("cannot read {}", file.display()))
    };
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| is_page(file)) {
        for (number, target) in targets(&read(file)?) {
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let linked = if path.is_empty() { file.clone() } else { beside(file, path) };
            let problem = if !root.join(&linked).exists() {
                format!("no file {}", linked.display())
            } else if !anchor.is_empty()
                && is_page(&linked)
                && !headings(&read(&linked)?).iter().any(|known| known == anchor)
            {
                format!("no heading #{anchor} in {}", linked.display())
            } else {
                continue;
            };
            findings.push(format!(
                "{}:{number}: a link leads to {target}: there is {problem}",
                file.display()
            ));
        }
    }
    Ok(findings)
}

fn is_page(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "md")
}

/// The file that a path in the page `file` names.
fn beside(file: &Path, path: &str) -> PathBuf {
    let mut linked = file.parent().unwrap_or(Path::new("")).to_owned();
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir => drop(linked.pop()),
            Component::CurDir => {}
            part => linked.push(part),
        }
    }
    linked
}

/// The targets of the links and pictures of a page that are in this project, with the numbers of their lines.
fn targets(text: &str) -> impl Iterator<Item = (usize, String)> {
    parsed(text).filter_map(|(event, range)| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. })
            if !dest_url.contains("://") =>
        {
            Some((text[..range.start].matches('\n').count() + 1, dest_url.into_string()))
        }
        _ => None,
    })
}

/// The anchors of a page's headings, as GitHub makes them.
fn headings(text: &str) -> Vec<String> {
    let (mut anchors, mut heading) = (Vec::new(), None);
    for (event, _) in parsed(text) {
        match (event, &mut heading) {
            (Event::Start(Tag::Heading { .. }), _) => heading = Some(String::new()),
            (Event::Text(words) | Event::Code(words), Some(heading)) => *heading += &words,
            (Event::End(TagEnd::Heading(_)), _) => anchors.extend(heading.take().map(anchor)),
            _ => {}
        }
    }
    anchors
}

fn anchor(heading: String) -> String {
    let words = heading.to_lowercase();
    let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn parsed(text: &str) -> impl Iterator<Item = (Event<'_>, Range<usize>)> {
    Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_nowhere_are_found() -> Result<()> {
        let root = tempfile::tempdir()?;
        fs::create_dir(root.path().join("docs"))?;
        fs::write(root.path().join("docs/data.md"), "# Data\n## Files, and `rows`\n")?;
        let page = "[a](docs/data.md#files-and-rows) [b](docs/none.md) `[c](no.md)`\n![d](docs/d.svg)\n\
                    ```sh\n[e](no.md)\n```\n[f](https://example.org/no.md) [g](docs/data.md#row) [h](#top)\n";
        fs::write(root.path().join("README.md"), page)?;
        let findings = check(root.path(), &["README.md".into(), "docs/data.md".into()])?;
        let expected = [
            "README.md:1: a link leads to docs/none.md: there is no file docs/none.md",
            "README.md:2: a link leads to docs/d.svg: there is no file docs/d.svg",
            "README.md:6: a link leads to docs/data.md#row: there is no heading #row in docs/data.md",
            "README.md:6: a link leads to #top: there is no heading #top in README.md",
        ];
        assert_eq!(findings, expected);
        assert_eq!(beside(Path::new("docs/a.md"), "../examples/x.rs"), Path::new("examples/x.rs"));
        Ok(())
    }
}
