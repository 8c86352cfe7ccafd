use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_causal::{ComponentOrHead, Metric, PromptPair};
use reft_methods::LAYERS;
use reft_models::{Model as _, Place, write_text};
use reft_report::{Heat, HeatMap, figure, heat_map, page};
use serde_json::{Value, json};

use crate::interpret::prompt_tokens::{PromptTokens, encoder, text_of};
use crate::interpret::states::layers_of;
use crate::machine::MachineOptions;
use crate::model::{open_config, open_decoder};
use crate::options::{Flags, List};
use crate::terminal::{command, note, output};

/// Find which hidden states carry an answer: activation patching
///
/// One hidden state at a time, the source run's value replaces the base run's, and the metric of the next token is computed. On the scale
/// shown, 0 is the metric of the base run and 1 the metric of the source run. Attribution patching is shown beside it: the first-order
/// estimate of the same effect, from one gradient. Base and source must have the same number of tokens.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Patching",
    after_long_help = "Example:
  reft patch --model models/SmolLM2-135M-Instruct --base 'Alice sat down because' --source 'Peter sat down because' \\
      --metric 'logit( he)-logit( she)' --output patch.html"
)]
pub struct PatchArgs {
    /// Model: a Hugging Face directory, a GGUF file, or a hub name such as org/name
    #[arg(long, value_name = "DIR")]
    model: String,
    /// Base prompt: the prompt that is run
    #[arg(long, value_name = "TEXT")]
    base: String,
    /// Source prompt: the prompt whose hidden states are put into the base run
    #[arg(long, value_name = "TEXT")]
    source: String,
    /// Metric: logit(TOKEN), logprob(TOKEN) or prob(TOKEN), or one of them minus another
    #[arg(long, value_name = "METRIC")]
    metric: String,
    /// Components: block_input, attention_output, mlp_output, block_output, or a head such as head_3
    #[arg(long, value_name = "LIST", default_value = "block_output")]
    sites: List<ComponentOrHead>,
    /// Layers: all, or a list such as 3;9;18
    #[arg(long, value_name = "LAYERS", default_value = "all", value_parser = |text: &str| LAYERS.parse(text))]
    layers: Value,
    /// The prompts are users' messages: the model's chat template frames them
    #[arg(long)]
    chat: bool,
    /// Write the maps as a self-contained HTML page
    #[arg(long, value_name = "FILE.html")]
    output: Option<PathBuf>,
    /// Print all numbers as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: Flags<MachineOptions>,
}

/// A metric by layer and token.
type Map = Vec<Vec<f64>>;

/// Runs the command.
pub fn run(args: &PatchArgs) -> Result<()> {
    open_config(&args.model)?.1.check_predicts("reft patch")?;
    args.machine.0.set_up()?;
    let (path, decoder) = open_decoder(&args.model, &args.machine.0)?;
    let text = text_of(&path)?;
    let tokenizer = encoder(&text, reft_train::Template::Plain)?.tokenizer;
    let metric =
        Metric::parse(&args.metric, tokenizer).map_err(|error| anyhow::anyhow!("--{error}"))?;
    let prompt = |text_: &str| PromptTokens::of(text_, &text, args.chat);
    let (base, source) = (prompt(&args.base)?, prompt(&args.source)?);
    let shown = |tokens: &PromptTokens| format!("{:?}", tokens.texts);
    let pair = PromptPair::new(&decoder, base.ids.clone(), source.ids.clone(), &metric)
        .with_context(|| format!("base {} and source {}", shown(&base), shown(&source)))?;
    let (at_base, at_source) = pair.ends()?;
    if at_base == at_source {
        bail!("{metric} is {at_base:.4} of both prompts; choose a metric that tells them apart");
    }
    let share = |value: f64| (value - at_base) / (at_source - at_base);
    let description = decoder.description();
    let layers = layers_of(&args.layers, description)?;
    let mut maps: Vec<(String, [Map; 2])> = Vec::new();
    for site in &args.sites.0 {
        let places: Vec<Place> =
            layers.iter().map(|&layer| site.place(layer, description.head_dim)).collect();
        for place in &places {
            description.size_of(place).with_context(|| format!("--sites {site}"))?;
        }
        let shares = |values: Vec<f64>| values.into_iter().map(share).collect();
        let patched = pair.patching(&places)?.into_iter().map(shares).collect();
        let effect = |values: Vec<f64>| -> Vec<f64> {
            values.into_iter().map(|effect| effect / (at_source - at_base)).collect()
        };
        let attributed = pair.attribution(&places)?.into_iter().map(effect).collect();
        maps.push((site.to_string(), [patched, attributed]));
    }
    if let Some(path) = &args.output {
        let facts = vec![
            format!("Base `{}`, source `{}`", args.base, args.source),
            format!("`{metric}` is {at_base:.3} of the base and {at_source:.3} of the source"),
            format!("Command: `{}`", command()),
        ];
        write_text(path, &drawn(facts, &base, &source, &layers, &maps))?;
        note(format!("page: {}", path.display()));
    }
    let of_site = |(site, [patched, attributed]): &(String, [Map; 2])| json!({"site": site, "patching": patched, "attribution": attributed});
    let sites: Vec<Value> = maps.iter().map(of_site).collect();
    let all = json!({
        "base": {"tokens": base.texts, "metric": at_base},
        "source": {"tokens": source.texts, "metric": at_source},
        "layers": layers,
        "sites": sites,
    });
    output::result(args.json, &all, || {
        output::line(format!("{metric}: base {at_base:.3}, source {at_source:.3}"))?;
        for (site, [patched, _]) in &maps {
            output::line(format!(
                "{site}, share of the difference that a hidden state carries over:"
            ))?;
            for (layer, values) in layers.iter().zip(patched) {
                let strongest = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
                let Some((token, value)) = strongest else { continue };
                let text = &source.texts[token];
                output::line(format!(
                    "  layer {layer:>3}: {:>4.0} % at token {token} {text:?}",
                    100.0 * value
                ))?;
            }
        }
        Ok(())
    })
}

/// The maps as a page: the last layer stands on top.
fn drawn(
    facts: Vec<String>,
    base: &PromptTokens,
    source: &PromptTokens,
    layers: &[usize],
    maps: &[(String, [Map; 2])],
) -> String {
    let name = |(base, source): (&String, &String)| -> String {
        let short = |text: &str| text.trim().chars().take(8).collect::<String>();
        if base == source { short(base) } else { format!("{}→{}", short(base), short(source)) }
    };
    let x: Vec<String> = base.texts.iter().zip(&source.texts).map(name).collect();
    let y: Vec<String> = layers.iter().rev().map(usize::to_string).collect();
    let legend = "A cell is the change of the metric when the source's hidden state is put there alone, in percent of the whole difference between base and source. Attribution is its first order: it is cheap, and wrong where the model is far from linear.";
    page("Activation patching", facts, legend, |out| {
        for (site, [patched, attributed]) in maps {
            for (title, note, values) in [
                ("patching", "Run by run.", patched),
                ("attribution", "By the gradient of one run.", attributed),
            ] {
                let cell = |value: &f64| {
                    let percent = format!("{:.0}", 100.0 * value);
                    Some(Heat {
                        value: *value,
                        text: percent.clone(),
                        title: format!("{percent} %"),
                    })
                };
                let cells = values.iter().rev().map(|row| row.iter().map(cell).collect()).collect();
                let map = HeatMap {
                    x: ("token", &x),
                    y: ("layer", &y),
                    cells,
                    range: (0.0, 1.0),
                    ends: ("0 %, the base".to_owned(), "100 %, the source".to_owned()),
                    unit: "share of the difference",
                };
                let title = format!("{site}, {title}");
                figure(out, &title, note, &heat_map(&title, &map), &[])?;
            }
        }
        Ok(())
    })
}
