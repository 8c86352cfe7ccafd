//! Rewrites template sources where minijinja differs from Jinja2: line ends, transformers' `generation` tags, and operators with other
//! results on Python's values (`~`, `%`, slices, tuples), which become filters and a function.

use crate::text::python::operators::{PRINTED, REMAINDER, SLICE, TUPLE};

/// The filter for the body of a `{% generation %}` block.
pub(crate) const GENERATION: &str = "python_generation";

/// A template rewritten for minijinja, and whether it has `{% generation %}` blocks.
pub(crate) fn rewritten(source: &str) -> (String, bool) {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let (mut text, mut rest) = (String::with_capacity(source.len()), source.as_str());
    let mut marks = false;
    while let Some(start) = ["{{", "{%", "{#"].iter().filter_map(|open| rest.find(open)).min() {
        text.push_str(&rest[..start]);
        rest = &rest[start..];
        let end_of = |close: &str| rest.find(close).map_or(rest.len(), |at| at + close.len());
        let tag = match (&rest[..2], Tag::parse(rest)) {
            ("{#", _) => &rest[..end_of("#}")],
            (_, Some(tag)) if tag.word() == Some("raw") => {
                let end = rest.find("endraw").unwrap_or(rest.len());
                &rest[..end]
            }
            (_, Some(tag)) => {
                marks |= tag.word() == Some("generation");
                text.push_str(&tag.rewritten());
                rest = &rest[tag.length..];
                continue;
            }
            // an unreadable tag: minijinja reports the error
            (_, None) => &rest[..2],
        };
        text.push_str(tag);
        rest = &rest[tag.len()..];
    }
    text.push_str(rest);
    (text, marks)
}

/// A tag: its beginning, its contents and its end.
struct Tag<'a> {
    open: &'a str,
    nodes: Vec<Node<'a>>,
    close: &'a str,
    length: usize,
}

/// A part of an expression with the whitespace before it.
struct Node<'a> {
    blanks: &'a str,
    kind: Kind<'a>,
}

enum Kind<'a> {
    /// A name or keyword.
    Word(&'a str),
    /// A number or a text.
    Literal(&'a str),
    Operator(&'a str),
    /// The opening bracket, the nodes inside, and the closing bracket with the whitespace before it.
    Group(&'a str, Vec<Node<'a>>, &'a str),
}

/// The operators, the longest first.
const OPERATORS: [&str; 22] = [
    "**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<", ">", "=", ",", ":", ".",
    "|", ";", "&", "!",
];

impl<'a> Tag<'a> {
    /// The tag at the beginning of a text.
    fn parse(text: &'a str) -> Option<Self> {
        let signs = text[2..].chars().take_while(|c| matches!(c, '-' | '+')).take(1).count();
        let end = if text.starts_with("{{") { "}}" } else { "%}" };
        let mut reader = Reader { text, at: 2 + signs };
        let open = &text[..reader.at];
        let nodes = reader.nodes(Some(end))?;
        let close = &text[reader.at..];
        let close = &close[..close.find(end)? + 2];
        Some(Self { open, nodes, close, length: reader.at + close.len() })
    }

    /// The keyword of a statement.
    fn word(&self) -> Option<&'a str> {
        match self.nodes.first()?.kind {
            Kind::Word(word) if self.open.starts_with("{%") => Some(word),
            _ => None,
        }
    }

    fn rewritten(&self) -> String {
        let mut text = self.open.to_owned();
        let Some(word) = self.word() else {
            text.push_str(&expressions(&self.nodes));
            return text + self.close;
        };
        text.push_str(self.nodes[0].blanks);
        text.push_str(&match word {
            "generation" => format!("filter {GENERATION}"),
            "endgeneration" => "endfilter".to_owned(),
            word => word.to_owned(),
        });
        let nodes = &self.nodes[1..];
        // assigned names, perhaps in parentheses, and the arguments of `caller` are not expressions
        let is_end = |node: &Node| match node.kind {
            Kind::Word("in") => word == "for",
            Kind::Operator("=") => word == "set",
            _ => false,
        };
        let names = match word {
            "for" | "set" => nodes.iter().position(is_end).map_or(nodes.len(), |at| at + 1),
            "call" => {
                usize::from(matches!(nodes.first(), Some(Node { kind: Kind::Group(..), .. })))
            }
            _ => 0,
        };
        nodes[..names].iter().for_each(|node| text.push_str(&node.as_written()));
        text + &expressions(&nodes[names..]) + self.close
    }
}

/// Reads the parts of a tag.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    /// Nodes up to a closing bracket, or up to (not including) the end of the tag; `None` if it is missing.
    fn nodes(&mut self, end: Option<&str>) -> Option<Vec<Node<'a>>> {
        let mut nodes: Vec<Node> = Vec::new();
        loop {
            let rest = &self.text[self.at..];
            let blanks = &rest[..rest.len() - rest.trim_start().len()];
            let rest = &rest[blanks.len()..];
            let first = rest.chars().next()?;
            let is_end = match end {
                Some(end) => {
                    rest.trim_start_matches(['-', '+']).starts_with(end)
                        && rest.find(end).is_some_and(|at| at <= 1)
                }
                None => matches!(first, ')' | ']' | '}'),
            };
            if is_end {
                return Some(nodes);
            }
            let is_after_dot = matches!(nodes.last(), Some(Node { kind: Kind::Operator("."), .. }));
            self.at += blanks.len();
            let kind = match first {
                '(' | '[' | '{' => {
                    let open = &rest[..1];
                    self.at += 1;
                    let inner = self.nodes(None)?;
                    let close = &self.text[self.at..];
                    let length = close.len() - close.trim_start().len() + 1;
                    self.at += length;
                    nodes.push(Node { blanks, kind: Kind::Group(open, inner, &close[..length]) });
                    continue;
                }
                '"' | '\'' => Kind::Literal(&rest[..text_length(rest)?]),
                '0'..='9' => Kind::Literal(&rest[..number_length(rest, is_after_dot)]),
                _ if first.is_alphabetic() || first == '_' => {
                    let is_part = |c: char| c.is_alphanumeric() || c == '_';
                    Kind::Word(&rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())])
                }
                _ => {
                    let operator =
                        OPERATORS.iter().find(|operator| rest.starts_with(**operator))?;
                    Kind::Operator(&rest[..operator.len()])
                }
            };
            let (Kind::Word(text) | Kind::Literal(text) | Kind::Operator(text)) = kind else {
                return None;
            };
            self.at += text.len();
            nodes.push(Node { blanks, kind });
        }
    }
}

fn text_length(rest: &str) -> Option<usize> {
    let quote = rest.chars().next()?;
    let mut is_escaped = false;
    let end = rest[1..].find(|c| {
        let is_end = c == quote && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_end
    });
    Some(end? + 2)
}

fn number_length(rest: &str, is_place: bool) -> usize {
    let is_digit = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let whole = rest.find(|c| !is_digit(c)).unwrap_or(rest.len());
    let fraction = rest[whole..].strip_prefix('.').filter(|_| !is_place);
    match fraction.filter(|digits| digits.starts_with(|c: char| c.is_ascii_digit())) {
        Some(digits) => whole + 1 + digits.find(|c| !is_digit(c)).unwrap_or(digits.len()),
        None => whole,
    }
}

/// Whether a node separates the operands of a tag's expressions.
fn is_boundary(nodes: &[Node], at: usize) -> bool {
    const WORDS: [&str; 7] = ["and", "or", "not", "in", "is", "if", "else"];
    const SIGNS: [&str; 9] = [",", ":", "=", "==", "!=", "<", "<=", ">", ">="];
    match nodes[at].kind {
        Kind::Word(word) => WORDS.contains(&word) && !follows_dot(nodes, at),
        Kind::Operator(sign) => SIGNS.contains(&sign),
        _ => false,
    }
}

fn follows_dot(nodes: &[Node], at: usize) -> bool {
    at > 0 && matches!(nodes[at - 1].kind, Kind::Operator("." | "|"))
}

fn expressions(nodes: &[Node]) -> String {
    let mut text = String::new();
    let mut begin = 0;
    for at in 0..=nodes.len() {
        if at == nodes.len() || is_boundary(nodes, at) {
            text.push_str(&concatenation(&nodes[begin..at]));
            nodes.get(at).into_iter().for_each(|node| text.push_str(&node.as_written()));
            begin = at + 1;
        }
    }
    text
}

/// The parts between operators, each with the operator before it.
fn parts<'a, 'b>(
    nodes: &'b [Node<'a>],
    is_operator: impl Fn(&str) -> bool,
) -> Vec<(Option<&'b Node<'a>>, &'b [Node<'a>])> {
    let (mut parts, mut begin, mut before) = (Vec::new(), 0, None);
    for at in 1..=nodes.len() {
        let operator = nodes.get(at).filter(|node| match node.kind {
            // after another operator it is a sign
            Kind::Operator(sign) => {
                is_operator(sign) && !matches!(nodes[at - 1].kind, Kind::Operator(_))
            }
            _ => false,
        });
        if at == nodes.len() || operator.is_some() {
            parts.push((before, &nodes[begin..at]));
            (begin, before) = (at + 1, operator);
        }
    }
    parts
}

/// `a ~ b`: concatenates both as Python prints them.
fn concatenation(nodes: &[Node]) -> String {
    match &parts(nodes, |sign| sign == "~")[..] {
        [] => String::new(),
        [_] => sum(nodes),
        parts => {
            let printed = |(_, part): &(_, &[Node])| format!("({}) | {PRINTED}", sum(part).trim());
            format!(" {} ", parts.iter().map(printed).collect::<Vec<_>>().join(" ~ "))
        }
    }
}

fn sum(nodes: &[Node]) -> String {
    let written = |(sign, part): (Option<&Node>, &[Node])| {
        sign.map(Node::as_written).unwrap_or_default() + &product(part)
    };
    parts(nodes, |sign| matches!(sign, "+" | "-")).into_iter().map(written).collect()
}

fn product(nodes: &[Node]) -> String {
    let mut text = String::new();
    for (sign, part) in parts(nodes, |sign| matches!(sign, "*" | "/" | "//" | "%")) {
        match sign {
            Some(Node { kind: Kind::Operator("%"), .. }) => {
                let values = match part {
                    [Node { kind: Kind::Group("(", values, _), .. }] => expressions(values),
                    _ => operand(part).trim().to_owned(),
                };
                text = format!(" ({}) | {REMAINDER}({values})", text.trim());
            }
            _ => {
                text.push_str(&sign.map(Node::as_written).unwrap_or_default());
                text.push_str(&operand(part));
            }
        }
    }
    text
}

/// Names, literals and groups with their attributes, arguments, indices and filters.
fn operand(nodes: &[Node]) -> String {
    let mut text = String::new();
    let (mut begin, mut is_value) = (0, false);
    for node in nodes {
        match &node.kind {
            Kind::Group("[", inner, _) if is_value && has(inner, ":") => {
                let limits = inner.split(|node| matches!(node.kind, Kind::Operator(":")));
                let limits: Vec<String> = limits
                    .map(|limit| match expressions(limit).trim() {
                        "" => "none".to_owned(),
                        limit => limit.to_owned(),
                    })
                    .collect();
                let value = text.split_off(begin);
                text.push_str(&format!(" ({} | {SLICE}({}))", value.trim(), limits.join(", ")));
            }
            Kind::Group("(", inner, close)
                if !is_value && (has(inner, ",") || inner.is_empty()) =>
            {
                let items = expressions(inner);
                text.push_str(&format!("{}{TUPLE}({items}{close}", node.blanks));
            }
            Kind::Operator(sign) => {
                text.push_str(&node.as_written());
                if !matches!(*sign, "." | "|") {
                    begin = text.len();
                }
            }
            _ => text.push_str(&node.as_written()),
        }
        is_value = !matches!(node.kind, Kind::Operator(_));
    }
    text
}

fn has(nodes: &[Node], sign: &str) -> bool {
    nodes.iter().any(|node| matches!(node.kind, Kind::Operator(found) if found == sign))
}

impl Node<'_> {
    /// The part as it is, with the contents of its brackets rewritten.
    fn as_written(&self) -> String {
        match &self.kind {
            Kind::Word(text) | Kind::Literal(text) | Kind::Operator(text) => {
                format!("{}{text}", self.blanks)
            }
            Kind::Group(open, inner, close) => {
                format!("{}{open}{}{close}", self.blanks, expressions(inner))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(source: &str) -> String {
        rewritten(source).0.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn operators_become_filters_of_all_that_they_bind() {
        for (source, expected) in [
            ("{{ a + b }}", "{{ a + b }}"),
            ("{{- x ~ 'a~%b' -}}", "{{- (x) | python_printed ~ ('a~%b') | python_printed -}}"),
            ("{% if i * 2 % 3 == 0 and j %}", "{% if (i * 2) | python_remainder(3) == 0 and j %}"),
            ("{{ '%s %s' % (a, b + 1) }}", "{{ ('%s %s') | python_remainder(a, b + 1) }}"),
            ("{{ a - b.c(d)[1:] }}", "{{ a - (b.c(d) | python_slice(1, none)) }}"),
            ("{% for m in x[::-1] %}", "{% for m in (x | python_slice(none, none, -1)) %}"),
            ("{% set ns.x = (1, 2) %}", "{% set ns.x = python_tuple(1, 2) %}"),
            ("{% for (a, b) in c %}", "{% for (a, b) in c %}"),
            (
                "{{ f(a ~ b, c=d['e:f']) }}",
                "{{ f( (a) | python_printed ~ (b) | python_printed , c=d['e:f']) }}",
            ),
            ("{{ {'a': {'b': 1}} }}", "{{ {'a': {'b': 1}} }}"),
            ("{{ a.0.b|f(1) }}{# ~ #}", "{{ a.0.b|f(1) }}{# ~ #}"),
            (
                "{%- generation -%}x{% endgeneration %}",
                "{%- filter python_generation -%}x{% endfilter %}",
            ),
            ("{% raw %}{{ a ~ b }}{% endraw %}", "{% raw %}{{ a ~ b }}{% endraw %}"),
            ("{{ 'unclosed }}", "{{ 'unclosed }}"),
        ] {
            assert_eq!(rewrite(source), expected, "{source}");
        }
    }
}
