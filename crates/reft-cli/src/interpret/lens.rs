use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reft_methods::LAYERS;
use reft_models::{
    Component, Layout, Model as _, NoHooks, PaddingSide, Place, Row, Site, TokenAt, collect,
    write_text,
};
use reft_report::{Heat, HeatMap, counted, escape, figure, heat_map, page, short_share};
use serde::Serialize;
use serde_json::{Value, json};
use tch::Kind;

use crate::interpret::prompt_tokens::{PromptTokens, encoder, text_of, texts};
use crate::interpret::states::layers_of;
use crate::model::ModelArgs;
use crate::terminal::{command, note, output};

/// Show the next token that each hidden state predicts: the logit lens
///
/// The residual stream after each block goes through the final norm and the head, as if that block were the last (nostalgebraist 2020). For
/// each layer and token, the likeliest next token is shown with its probability. With --adapter the hidden states are those after its edits.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Lens",
    after_long_help = "Example:
  reft lens --model models/SmolLM2-135M-Instruct --prompt 'The capital of France is' --output lens.html"
)]
pub struct LensArgs {
    /// Prompt
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// The prompt is a user's message: the model's chat template frames it
    #[arg(long)]
    chat: bool,
    /// Layers: all, or a list such as 3;9;18
    #[arg(long, value_name = "LAYERS", default_value = "all", value_parser = |text: &str| LAYERS.parse(text))]
    layers: Value,
    /// Number of likeliest next tokens to keep for each hidden state
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,
    /// Write the map as a self-contained HTML page
    #[arg(long, value_name = "FILE.html")]
    output: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// Likeliest next tokens, the likeliest first.
type Likeliest = Vec<NextToken>;

/// A token that may come next.
#[derive(Debug, Serialize)]
struct NextToken {
    id: i64,
    text: String,
    probability: f64,
}

impl std::fmt::Display for NextToken {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{:?} {} %", self.text, short_share(self.probability))
    }
}

fn listed(likeliest: &[NextToken], between: &str) -> String {
    likeliest.iter().map(NextToken::to_string).collect::<Vec<_>>().join(between)
}

/// Runs the command.
pub fn run(args: &LensArgs) -> Result<()> {
    crate::options::check_counts([("--top", args.top)])?;
    let model = args.model.open_for("reft lens")?;
    let text = text_of(&model.path)?;
    let prompt = PromptTokens::of(&args.prompt, &text, args.chat)?;
    let tokenizer = encoder(&text, reft_train::Template::Plain)?.tokenizer;
    let decoder = &model.decoder;
    let layers = layers_of(&args.layers, decoder.description())?;
    let layout = Layout::new(vec![Row::prompt(prompt.ids.clone())], PaddingSide::Right)?;
    let at: Vec<TokenAt> = (0..prompt.ids.len()).map(|token| TokenAt { row: 0, token }).collect();
    let place = |&layer: &usize| Place::whole(Site { layer, component: Component::BlockOutput });
    let wanted = layers.iter().map(|layer| (place(layer), at.clone())).collect();
    let states = collect(decoder, &model.stack()?, &layout, wanted)?;
    let _guard = tch::no_grad_guard();
    let mut lens: Vec<Vec<Likeliest>> = Vec::new(); // by layer and token
    for state in states {
        let span = layout.whole();
        let forward = decoder.forward(&span, 0);
        let h = forward.finish(state.unsqueeze(0), &mut NoHooks)?;
        let probabilities = decoder.logits(&h.squeeze_dim(0)).softmax(-1, Kind::Float); // [t, v]
        let top = (args.top as i64).min(probabilities.size()[1]);
        let (shares, ids) = probabilities.topk(top, -1, true, true);
        let (shares, ids) = (
            Vec::<Vec<f64>>::try_from(shares.to_kind(Kind::Double))?,
            Vec::<Vec<i64>>::try_from(ids)?,
        );
        let of_token = |(shares, ids): (Vec<f64>, Vec<i64>)| -> Result<Likeliest> {
            let found = ids.iter().zip(texts(&ids, tokenizer)?).zip(shares);
            let next = |((&id, text), probability)| NextToken { id, text, probability };
            Ok(found.map(next).collect())
        };
        lens.push(shares.into_iter().zip(ids).map(of_token).collect::<Result<_>>()?);
    }
    if let Some(path) = &args.output {
        write_text(path, &drawn(&args.prompt, &prompt, &layers, &lens))?;
        note(format!("page: {}", path.display()));
    }
    let of_layer =
        |(layer, tokens): (&usize, &Vec<Likeliest>)| json!({"layer": layer, "tokens": tokens});
    let rows: Vec<Value> = layers.iter().zip(&lens).map(of_layer).collect();
    let all = json!({"prompt": args.prompt, "tokens": prompt.texts, "layers": rows});
    output::result(args.json, &all, || {
        for (layer, tokens) in layers.iter().zip(&lens) {
            let Some(last) = tokens.last() else { continue };
            output::line(format!("layer {layer:>3}, last token: {}", listed(last, ", ")))?;
        }
        Ok(())
    })
}

/// The map as a page: the last layer stands on top.
fn drawn(text: &str, prompt: &PromptTokens, layers: &[usize], lens: &[Vec<Likeliest>]) -> String {
    let cell = |likeliest: &Likeliest| {
        let NextToken { text, probability, .. } = likeliest.first()?;
        let short: String = text.trim().chars().take(8).collect();
        Some(Heat { value: *probability, text: short, title: listed(likeliest, "\n") })
    };
    let cells = lens.iter().rev().map(|tokens| tokens.iter().map(cell).collect()).collect();
    let y: Vec<String> = layers.iter().rev().map(usize::to_string).collect();
    let x: Vec<String> =
        prompt.texts.iter().map(|text| text.trim().chars().take(8).collect()).collect();
    let map = HeatMap {
        x: ("token", &x),
        y: ("layer", &y),
        cells,
        range: (0.0, 1.0),
        ends: ("0 %".to_owned(), "100 %".to_owned()),
        unit: "probability of the likeliest next token",
    };
    let facts = vec![
        format!("Prompt `{text}`"),
        format!("{}, {}", counted(prompt.ids.len(), "token"), counted(layers.len(), "layer")),
        format!("Command: `{}`", command()),
    ];
    let legend = "Each cell is the likeliest next token after its column's token, if the residual stream after its row's block were the last. A pointer on it shows others.";
    page("Logit lens", facts, legend, |out| {
        figure(
            out,
            "The likeliest next token",
            &escape("By layer and token."),
            &heat_map("Likeliest next token by layer and token", &map),
            &[],
        )
    })
}
