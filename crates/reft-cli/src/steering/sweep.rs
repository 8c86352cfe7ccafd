use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_causal::{
    Judge, KlPerToken, ReplyScores, SteeredReplies, SweepPoint, factor_reaching, reply_perplexity,
    sweep_page,
};
use reft_methods::{load_adapters, read_head};
use reft_models::{
    AdapterStack, Decoder, GenerationConfig, Row, Tokenizer, Weights, generate, write_text,
};
use reft_report::counted;
use serde_json::json;

use crate::model::{Model, adapter_directory};
use crate::steering::command::{dose, stack};
use crate::steering::sources::{Source, rows_of};
use crate::terminal::{command, note, output};

/// Many strengths, with the replies judged.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sweep")]
pub struct SweepArgs {
    /// Measure each layer and source by itself at several strengths
    ///
    /// The values are factors of the strengths, or of the strength that --kl finds.
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires_all = ["judge", "prompts"], help_heading = "Sweep")]
    sweep: Vec<f64>,
    /// Adapter whose head detects the concept, written by `reft train --objective classification`
    #[arg(long, value_name = "DIR", requires = "sweep", help_heading = "Sweep")]
    judge: Option<PathBuf>,
    /// Class of the head that stands for the concept [default: the last class]
    #[arg(long, value_name = "NAME", requires = "judge", help_heading = "Sweep")]
    class: Option<String>,
    /// File of prompts to answer, one per line
    #[arg(long, value_name = "FILE", requires = "sweep", help_heading = "Sweep")]
    prompts: Option<PathBuf>,
    /// Write an HTML page with curves: concept against divergence and against perplexity
    #[arg(long, value_name = "FILE.html", requires = "sweep", help_heading = "Sweep")]
    page: Option<PathBuf>,
}

/// A sweep over strengths.
pub struct Plan<'a> {
    /// The sources, each swept by itself.
    pub sources: &'a [Source],
    /// The strength of each.
    pub strengths: Vec<f64>,
    /// The texts that divergences are measured on.
    pub texts: &'a [Row],
    /// The divergence at factor 1, if strengths are calibrated.
    pub kl: Option<f64>,
}

impl SweepArgs {
    /// Whether a sweep is asked for.
    pub fn is_asked(&self) -> bool {
        !self.sweep.is_empty()
    }

    /// Measures every source at every strength.
    ///
    /// # Errors
    /// If the judge has no such class; errors of the model, adapters and files.
    pub fn run(
        &self,
        plan: &Plan,
        model: &Model,
        tokenizer: &Tokenizer,
        config: GenerationConfig,
        as_json: bool,
    ) -> Result<()> {
        if let Some(factor) = self.sweep.iter().find(|factor| !factor.is_finite()) {
            bail!("--sweep has {factor}, expected numbers");
        }
        let named = self.judge.as_deref().context("--judge is missing")?;
        let directory = adapter_directory(named)?;
        let weights = Weights::open(&model.path)?;
        let head = read_head(&directory, &model.decoder, &weights)?.with_context(|| {
            format!("{} has no head; train one with --objective classification", named.display())
        })?;
        let adapters = load_adapters(&directory, &model.decoder)?;
        let judge = Judge {
            class: self.class_of(head.names())?,
            head,
            stack: AdapterStack::of_boxed(&adapters)?,
        };
        let prompts = rows_of(tokenizer, self.prompts.as_deref().context("--prompts is missing")?)?;
        let n = prompts.len();
        let replies = SteeredReplies { model: &model.decoder, prompts, config, judge };
        let kl = KlPerToken::of(&model.decoder, plan.texts)?;
        let plain = replies.measure(&AdapterStack::EMPTY)?;
        let mut points = Vec::new();
        for (source, strength) in plan.sources.iter().zip(&plan.strengths) {
            let own = std::slice::from_ref(source);
            let at = |factor: f64| stack(own, &[*strength], factor);
            let unit = match plan.kl {
                Some(target) => factor_reaching("--kl", target, |factor| kl.under(&at(factor)?))?.0,
                None => 1.0,
            };
            for factor in &self.sweep {
                let steered = at(unit * factor)?;
                let strength = strength * unit * factor;
                let point = SweepPoint {
                    name: source.name.clone(),
                    layer: source.directions().keys().next().map(|site| site.layer),
                    strength,
                    kl: kl.under(&steered)?,
                    dose: dose(source, strength, model, plan.texts)?,
                    replies: replies.measure(&steered)?,
                };
                note(said(&point));
                points.push(point);
            }
        }
        if let Some(path) = &self.page {
            let facts = vec![
                format!("Judge {}", named.display()),
                format!(
                    "{} answered, {} for the divergence",
                    counted(n, "prompt"),
                    counted(plan.texts.len(), "text")
                ),
                format!("Command: `{}`", command()),
            ];
            write_text(path, &sweep_page(&points, plain, facts))?;
            note(format!("page: {}", path.display()));
        }
        output::result(as_json, &json!({ "plain": plain, "points": points }), || {
            let ReplyScores { concept, perplexity, distinct_pairs } = plain;
            output::line(format!(
                "nothing: concept {concept:.3}, perplexity {perplexity:.1}, distinct pairs {distinct_pairs:.2}"
            ))?;
            points.iter().map(said).try_for_each(output::line)
        })
    }

    /// Index of the head's output for the concept.
    fn class_of(&self, names: &[String]) -> Result<i64> {
        let Some(class) = &self.class else { return Ok(names.len().max(1) as i64 - 1) };
        let at = names.iter().position(|name| name == class);
        at.map(|at| at as i64).with_context(|| {
            format!("--class is {class:?}, the judge's classes are {}", names.join(", "))
        })
    }
}

fn said(point: &SweepPoint) -> String {
    let ReplyScores { concept, perplexity, distinct_pairs } = point.replies;
    let dose = point.dose.map_or_else(String::new, |dose| format!(", dose {dose:.2}"));
    format!(
        "{} at {:.4}: KL {:.3}{dose}, concept {concept:.3}, perplexity {perplexity:.1}, distinct pairs {distinct_pairs:.2}",
        point.name, point.strength, point.kl
    )
}

/// The factor of the strengths at which the reply to a prompt has the perplexity `target` under the plain model.
///
/// # Errors
/// If the plain reply's perplexity is as high already, or no factor reaches it.
pub fn factor_of_perplexity<'a>(
    target: f64,
    model: &Decoder,
    prompt: Row,
    config: &GenerationConfig,
    stack_at: &dyn Fn(f64) -> reft_models::Result<AdapterStack<'a>>,
) -> Result<f64> {
    let prompts = [prompt];
    let measure = |stack: &AdapterStack| -> reft_causal::Result<f64> {
        let go_on = &mut |_: usize, _: i64| ControlFlow::Continue(());
        let reply = generate(model, stack, &prompts, config, go_on)?.remove(0);
        reply_perplexity(model, &prompts, &[reply.ids])
    };
    let plain = measure(&AdapterStack::EMPTY)?;
    if target <= plain {
        bail!(
            "--perplexity is {target}, and the plain reply's is {plain:.4} already; give a higher one"
        );
    }
    // replies change by whole tokens, so the perplexity may jump past the target
    let (factor, found) = factor_reaching("--perplexity", target - plain, |factor| {
        Ok(measure(&stack_at(factor)?)? - plain)
    })?;
    note(format!(
        "strengths times {factor}: the reply's perplexity is {:.4}, the plain one's {plain:.4}",
        found + plain
    ));
    Ok(factor)
}
