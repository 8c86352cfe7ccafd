use std::fmt::Write;

use reft_report::{COLOURS, Curve, Names, Scale, curves, escape, figure, page};
use serde::Serialize;

use crate::ReplyScores;

/// A source of steering at one strength.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SweepPoint {
    /// The name of the source.
    pub name: String,
    /// The layer of its direction, if it has one.
    pub layer: Option<usize>,
    /// The strength.
    pub strength: f64,
    /// The divergence of next tokens from the plain model's on the texts, in nats per token.
    pub kl: f64,
    /// The length of the added vector as a share of the median length of the hidden states there, if it is a direction.
    pub dose: Option<f64>,
    /// The scores of the replies.
    pub replies: ReplyScores,
}

/// A sweep as a self-contained page: concept against divergence, against perplexity, and all numbers.
pub fn sweep_page(points: &[SweepPoint], plain: ReplyScores, facts: Vec<String>) -> String {
    let mut names: Vec<&str> = Vec::new();
    for point in points {
        if !names.contains(&point.name.as_str()) {
            names.push(&point.name);
        }
    }
    let drawn = |x: &dyn Fn(&SweepPoint) -> f64, at_none: f64| -> Vec<Curve> {
        let of_name = |(i, name): (usize, &&str)| {
            let own = points.iter().filter(|point| point.name == **name);
            let own = own.map(|point| (x(point), point.replies.concept));
            let points = [(at_none, plain.concept)].into_iter().chain(own).collect();
            Curve { label: (*name).to_owned(), colour: i % COLOURS, points }
        };
        names.iter().enumerate().map(of_name).collect()
    };
    let legend = "Concept: the judge's mean probability that a reply shows the concept. KL: the mean divergence of next tokens from the plain \
                  model's. Perplexity: of the replies under the plain model. Dose: the length of what is added by the median length of the \
                  hidden states. Distinct pairs: different pairs of neighbouring tokens, of all pairs of a reply.";
    page("Steering", facts, legend, |out| {
        writeln!(out, "<h2>Plots</h2>\n<div class=\"plots\">")?;
        let of_kl = drawn(&|point| point.kl, 0.0);
        let names = Names { x: "KL per token (nats)", y: "concept" };
        let plot = curves(&of_kl, &names, Scale::Linear);
        figure(out, "Concept against divergence", "Higher on the left is better.", &plot, &of_kl)?;
        let of_perplexity = drawn(&|point| point.replies.perplexity, plain.perplexity);
        let names = Names { x: "perplexity under the plain model", y: "concept" };
        let plot = curves(&of_perplexity, &names, Scale::Linear);
        figure(
            out,
            "Concept against fluency",
            "Each curve from no strength on.",
            &plot,
            &of_perplexity,
        )?;
        writeln!(out, "</div>\n<h2>Numbers</h2>")?;
        table(out, points, plain)
    })
}

fn table(out: &mut String, points: &[SweepPoint], plain: ReplyScores) -> std::fmt::Result {
    let heads = ["source", "strength", "KL", "dose", "concept", "perplexity", "distinct pairs"];
    write!(out, "<div class=\"scroll\"><table><thead><tr>")?;
    heads.iter().try_for_each(|head| write!(out, "<th>{head}</th>"))?;
    write!(out, "</tr></thead><tbody>")?;
    let mut row = |name: &str, strength: f64, kl: f64, dose: Option<f64>, of: ReplyScores| {
        let dose = dose.map_or_else(|| "–".to_owned(), |dose| format!("{dose:.2}"));
        writeln!(
            out,
            "<tr><td>{}</td><td>{strength:.3}</td><td>{kl:.3}</td><td>{dose}</td><td>{:.3}</td><td>{:.2}</td><td>{:.2}</td></tr>",
            escape(name),
            of.concept,
            of.perplexity,
            of.distinct_pairs
        )
    };
    row("nothing", 0.0, 0.0, None, plain)?;
    for point in points {
        row(&point.name, point.strength, point.kl, point.dose, point.replies)?;
    }
    writeln!(out, "</tbody></table></div>")
}
