//! Attention weights of every head: all of them small, and the chosen one large with its tokens.

use std::fmt::Write;

use crate::escape;

/// Shows the chosen head enlarged, and moves between heads with keys.
const SCRIPT: &str = include_str!("attention_maps.js");

/// The weights of some layers' heads on one prompt.
pub struct AttentionMaps<'a> {
    /// The layers, and the number of heads of each.
    pub layers: &'a [usize],
    /// Heads of a layer.
    pub heads: usize,
    /// The query tokens, one row of a map each.
    pub queries: &'a [String],
    /// The key tokens, one column of a map each; the queries are the last of them.
    pub keys: &'a [String],
    /// Layer by layer, head by head, query by query: a weight from 0 to 1 for each key.
    pub weights: &'a [f32],
}

/// Weights are written in this many steps, three hexadecimal digits each.
const STEPS: f32 = 4095.0;

/// Writes the maps: a frame with the large one, and an overview with a button for each head.
///
/// # Errors
/// If `out` cannot be written to; a string always can.
///
/// # Panics
/// If the number of weights is not layers × heads × queries × keys.
pub fn attention_maps(out: &mut String, maps: &AttentionMaps) -> std::fmt::Result {
    let AttentionMaps { layers, heads, queries, keys, weights } = maps;
    let of_head = queries.len() * keys.len();
    assert_eq!(weights.len(), layers.len() * heads * of_head, "invariant: a weight for each place");
    writeln!(
        out,
        "<div class=\"attention\" data-queries=\"{}\" data-keys=\"{}\">",
        listed(queries),
        listed(keys)
    )?;
    writeln!(
        out,
        "<figure class=\"attention-large\" hidden><figcaption><b></b><span class=\"soft\">A row is a token, and its columns are the tokens it attends to. \
         Arrow keys move, a pointer or a finger chooses.</span></figcaption>\
         <div class=\"wide\"><canvas tabindex=\"0\" role=\"img\"></canvas></div><output aria-live=\"polite\"></output></figure>"
    )?;
    writeln!(out, "<noscript><p class=\"warn\">The maps are drawn by a script.</p></noscript>")?;
    for (layer, own) in layers.iter().zip(weights.chunks((heads * of_head).max(1))) {
        writeln!(
            out,
            "<section class=\"attention-layer\" aria-label=\"Layer {layer}\"><h3>Layer {layer}</h3><div class=\"attention-heads\">"
        )?;
        for (head, own) in own.chunks(of_head.max(1)).enumerate() {
            let name = format!("Layer {layer}, head {head}: {}", summary(own, keys.len()));
            let name = escape(&name);
            write!(
                out,
                "<button type=\"button\" title=\"{name}\" aria-label=\"{name}\" data-layer=\"{layer}\" data-head=\"{head}\" data-weights=\""
            )?;
            for weight in own {
                write!(out, "{:03x}", (weight.clamp(0.0, 1.0) * STEPS).round() as u32)?;
            }
            writeln!(out, "\"><canvas aria-hidden=\"true\"></canvas><span>{head}</span></button>")?;
        }
        writeln!(out, "</div></section>")?;
    }
    writeln!(out, "</div>\n<script>{SCRIPT}</script>")
}

/// A head's mean attention over all queries: to the first key, to the token itself, and to the token before it.
fn summary(weights: &[f32], keys: usize) -> String {
    let queries = weights.len() / keys.max(1);
    let before = keys.saturating_sub(queries);
    let mean = |key: &dyn Fn(usize) -> Option<usize>| {
        let seen = (0..queries).filter_map(|query| weights.get(query * keys + key(query)?));
        100.0 * seen.sum::<f32>() / queries.max(1) as f32
    };
    let (first, own, previous) = (
        mean(&|_| Some(0)),
        mean(&|query| Some(before + query)),
        mean(&|query| (before + query).checked_sub(1)),
    );
    format!(
        "{first:.0} % to the first token, {own:.0} % to the token itself, {previous:.0} % to the one before"
    )
}

/// Texts as a JSON list in an attribute.
fn listed(texts: &[String]) -> String {
    let quoted = |text: &String| {
        let escaped = text.chars().flat_map(|c| match c {
            '"' | '\\' => vec!['\\', c],
            c if c.is_control() => format!("\\u{:04x}", u32::from(c)).chars().collect(),
            c => vec![c],
        });
        format!("\"{}\"", escaped.collect::<String>())
    };
    let texts: Vec<String> = texts.iter().map(quoted).collect();
    escape(&format!("[{}]", texts.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_has_its_weights_and_says_where_it_looks() -> std::fmt::Result {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let (queries, keys): (Vec<String>, Vec<String>) =
            (texts(&["a\"<", "b\n"]), texts(&["p", "a\"<", "b\n"]));
        let weights =
            [[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]].concat();
        let maps = AttentionMaps {
            layers: &[7],
            heads: 2,
            queries: &queries,
            keys: &keys,
            weights: &weights,
        };
        let mut out = String::new();
        attention_maps(&mut out, &maps)?;
        assert!(
            out.contains("data-queries=\"[&quot;a\\&quot;&lt;&quot;,&quot;b\\u000a&quot;]\""),
            "{out}"
        );
        assert!(out.contains("data-weights=\"800800000400400800\""), "{out}");
        assert!(out.contains("data-weights=\"000fff000000fff000\""), "{out}");
        // means over two queries: (0.5 + 0.25) / 2, (0.5 + 0.5) / 2 and (0.5 + 0.25) / 2
        assert!(out.contains("Layer 7, head 0: 38 % to the first token, 50 % to the token itself, 38 % to the one before"), "{out}");
        assert!(out.contains("Layer 7, head 1: 0 % to the first token, 50 % to the token itself, 50 % to the one before"), "{out}");
        Ok(())
    }
}
