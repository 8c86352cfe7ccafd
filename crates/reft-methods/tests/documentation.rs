//! The tables in docs/methods.md are those of the declarations. With `REFT_WRITE_DOCS=1` they are written anew.

use std::fmt::Write;
use std::path::Path;

use reft_methods::{METHODS, Merging, MethodDeclaration, MethodOption, all_options};

const BEGIN: &str = "<!-- methods: begin -->\n";
const END: &str = "<!-- methods: end -->";

/// A row of a table in Markdown.
fn row<const N: usize>(cells: [&str; N]) -> String {
    let cells =
        cells.map(|cell| if cell.is_empty() { "–".to_owned() } else { cell.replace('|', "\\|") });
    format!("| {} |\n", cells.join(" | "))
}

fn table<const N: usize>(heads: [&str; N], rows: impl Iterator<Item = String>) -> String {
    row(heads) + &row(["---"; N]) + &rows.collect::<String>()
}

/// Names as code, with commas between them.
fn code<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

fn of_method(method: &&MethodDeclaration) -> String {
    let merges = match method.merging {
        Merging::IntoWeights => "yes".to_owned(),
        Merging::Never(reason) => format!("no: {reason}"),
    };
    let yes_or_no = |is_so| if is_so { "yes" } else { "no" };
    let (acts, per_row) = (yes_or_no(method.acts_on_generated), yes_or_no(method.per_row));
    let name = format!("`{}`<br>{}", method.name, method.title);
    let files = code(method.files.names().iter().copied());
    let options = code(method.options.iter().map(|option| option.name));
    row([&name, method.equation, method.source, &files, &merges, acts, per_row, &options])
}

fn of_option(option: &&MethodOption) -> String {
    let methods = METHODS.iter().filter(|method| method.options.contains(option));
    let methods = code(methods.map(|method| method.name));
    row([&code([option.flag().as_str()]), option.default, option.help, &methods])
}

#[test]
fn tables_of_methods_and_options_are_those_of_the_declarations()
-> Result<(), Box<dyn std::error::Error>> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/methods.md"));
    let text = std::fs::read_to_string(path)?;
    let (before, rest) =
        text.split_once(BEGIN).ok_or("docs/methods.md has no begin of the tables")?;
    let (found, after) = rest.split_once(END).ok_or("docs/methods.md has no end of the tables")?;

    let heads = [
        "method",
        "computes",
        "paper",
        "files",
        "merges into the weights",
        "acts on generated tokens",
        "an adapter per row",
        "options",
    ];
    let mut expected = table(heads, METHODS.iter().map(of_method));
    let heads = ["option", "default", "what it is", "methods"];
    write!(expected, "\n{}", table(heads, all_options().iter().map(of_option)))?;

    if std::env::var_os("REFT_WRITE_DOCS").is_some() {
        std::fs::write(path, [before, BEGIN, &expected, END, after].concat())?;
        return Ok(());
    }
    let advice = "run REFT_WRITE_DOCS=1 cargo test -p reft-methods --test documentation";
    assert!(
        found == expected,
        "the tables in docs/methods.md are not those of the methods; {advice}"
    );
    Ok(())
}
