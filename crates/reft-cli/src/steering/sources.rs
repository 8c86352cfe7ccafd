use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use clap::Args;
use reft_causal::{Direction, DirectionKind, last_hidden_states};
use reft_methods::{SteeringEdit, steering_adapter};
use reft_models::{Adapter, Component, Decoder, Model as _, Row, Site, Tokenizer};
use tch::Tensor;

use crate::generation::prompts::lines;
use crate::model::Model;

/// The sources of steering: adapters and directions.
#[derive(Debug, Args)]
#[command(next_help_heading = "Direction")]
pub struct SourceArgs {
    /// Layers that are steered, counted from 0: 14 or 10,20 [default: the layers that a direction was made at]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub layer: Vec<usize>,
    /// Component of the block: block_input, attention_output, mlp_output or block_output
    #[arg(long, value_name = "NAME", default_value = "block_output")]
    pub site: Component,
    /// Directory of a rank-1 cell of `reft das`; its direction has length 1
    #[arg(long, value_name = "DIR", conflicts_with_all = ["positive", "negative", "method"])]
    das: Option<PathBuf>,
    /// File of texts to steer towards, one per line; the hidden states of their last tokens are used
    #[arg(long, value_name = "FILE", requires = "negative")]
    pub positive: Option<PathBuf>,
    /// File of texts to steer away from, one per line
    #[arg(long, value_name = "FILE", requires = "positive")]
    pub negative: Option<PathBuf>,
    /// How the direction is computed from the texts: means = difference of means, pca = first principal
    /// component, probe = linear probe
    #[arg(long, value_name = "METHOD", value_delimiter = ',', default_value = "means", value_parser = ["means", "pca", "probe"])]
    method: Vec<String>,
    /// Remove the directions from the hidden states, instead of adding them
    #[arg(long)]
    ablate: bool,
    /// Use directions at --layer that were made at another layer
    #[arg(long, requires = "layer")]
    other_layer: bool,
}

/// An adapter that steers, with its name.
pub struct Source {
    /// Its name.
    pub name: String,
    /// The adapter, at strength 1.
    pub adapter: Box<dyn Adapter>,
}

impl Source {
    /// The directions that it adds, `[d]` each.
    pub fn directions(&self) -> BTreeMap<Site, Tensor> {
        self.adapter.directions().unwrap_or_default()
    }

    /// The adapter to save: the directions times the strength.
    ///
    /// # Errors
    /// If it adds no directions, or they are of several components.
    pub fn saved(
        &self,
        strength: f64,
        model: &Decoder,
        base_model: &str,
    ) -> Result<Box<dyn Adapter>> {
        let directions = self.directions();
        let Some(Site { component, .. }) = directions.keys().next() else {
            bail!(
                "--output keeps a direction that is added, and {} is none; it is an adapter already, or leave --ablate out: `reft steer --adapter DIR --ablate` takes a kept one out",
                self.name
            );
        };
        let scaled =
            directions.iter().map(|(site, v)| (site.layer, v.detach() * strength)).collect();
        Ok(steering_adapter(&scaled, *component, SteeringEdit::Add, model, base_model)?)
    }
}

impl SourceArgs {
    /// The files of texts that directions are made of.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.positive, &self.negative].into_iter().flatten().map(PathBuf::as_path)
    }

    /// All sources: the adapters, moved out of `model`, and the directions made here. With `apart`, each layer and each method of a direction is
    /// a source of its own. Otherwise one source steers all layers of a direction.
    ///
    /// # Errors
    /// If there is no source, or if a direction belongs to another layer or cannot be made.
    pub fn sources(
        &self,
        model: &mut Model,
        tokenizer: &Tokenizer,
        apart: bool,
    ) -> Result<Vec<Source>> {
        self.check(&model.decoder)?;
        let mut found = Vec::new();
        let names = std::mem::take(&mut model.names);
        for (adapter, name) in std::mem::take(&mut model.adapters).into_iter().zip(names) {
            // with `apart` an adapter keeps its layers: --layer is for the directions made here
            let adapter =
                if apart { adapter } else { self.placed(adapter, &name, &model.decoder)? };
            found.push(Source { adapter, name });
        }
        let mut made: Vec<(String, BTreeMap<usize, Tensor>)> = Vec::new();
        let mut keep = |name: &str, layer: usize, v: Tensor| {
            let name = if apart { format!("{name}, layer {layer}") } else { name.to_owned() };
            match made.iter_mut().find(|(own, _)| *own == name) {
                Some((_, layers)) => _ = layers.insert(layer, v),
                None => made.push((name, BTreeMap::from([(layer, v)]))),
            }
        };
        if let Some(directory) = &self.das {
            let direction = Direction::of_alignment(directory)?;
            let own = layer_of_cell(directory);
            for layer in self.layers_of("the direction of --das", own.into_iter().collect())? {
                keep("das", layer, direction.vector().shallow_clone());
            }
        }
        if let (Some(positive), Some(negative)) = (&self.positive, &self.negative) {
            if self.layer.is_empty() {
                bail!("--layer is missing: directions are made of the hidden states of a layer");
            }
            if !apart && self.method.len() > 1 {
                bail!(
                    "--method names {}; one reply is steered by one of them",
                    self.method.join(", ")
                );
            }
            let rows = |file: &Path| rows_of(tokenizer, file);
            let (positive, negative) = (rows(positive)?, rows(negative)?);
            for &layer in &self.layer {
                let site = Site { layer, component: self.site };
                let states = |rows: &[Row]| last_hidden_states(&model.decoder, rows, site);
                let (positive, negative) = (states(&positive)?, states(&negative)?);
                for method in &self.method {
                    let kind = match method.as_str() {
                        "pca" => DirectionKind::PrincipalComponent,
                        "probe" => DirectionKind::Probe,
                        _ => DirectionKind::Means,
                    };
                    let made = Direction::between(kind, &positive, &negative)?;
                    keep(method, layer, made.vector().shallow_clone());
                }
            }
        }
        let edit = if self.ablate { SteeringEdit::Remove } else { SteeringEdit::Add };
        for (name, directions) in made {
            let d = model.decoder.description().hidden_size;
            if let Some(size) = directions.values().map(|v| v.size()[0]).find(|size| *size != d) {
                bail!("the direction has {size} numbers, the model's hidden states have {d}");
            }
            let adapter = steering_adapter(&directions, self.site, edit, &model.decoder, "")?;
            found.push(Source { name, adapter });
        }
        if found.is_empty() {
            bail!("nothing steers; give --positive and --negative, --das, or --adapter");
        }
        Ok(found)
    }

    fn check(&self, model: &Decoder) -> Result<()> {
        if Component::PROJECTIONS.contains(&self.site) {
            let site = self.site;
            bail!(
                "--site is {site}, expected block_input, attention_output, mlp_output or block_output"
            );
        }
        let layers = model.description().num_hidden_layers;
        if let Some(layer) = self.layer.iter().find(|layer| **layer >= layers) {
            bail!("--layer is {layer}, the model has {layers} layers, 0 to {}", layers - 1);
        }
        Ok(())
    }

    /// The layers to use a direction at, given the layers `own` at which it was made.
    fn layers_of(&self, what: &str, own: BTreeSet<usize>) -> Result<Vec<usize>> {
        let asked: BTreeSet<usize> = self.layer.iter().copied().collect();
        if asked.is_empty() && own.is_empty() {
            bail!("--layer is missing: {what} does not say which layer it was made at");
        }
        if asked.is_empty() {
            return Ok(own.into_iter().collect());
        }
        if let Some(layer) = asked.difference(&own).next()
            && !own.is_empty()
            && !self.other_layer
        {
            let own: Vec<String> = own.iter().map(usize::to_string).collect();
            bail!(
                "--layer is {layer}, and {what} was made at {}, where hidden states mean something else; leave --layer out, or use it there all the same with --other-layer",
                own.join(", ")
            );
        }
        Ok(asked.into_iter().collect())
    }

    /// Moves an adapter's direction to the layers of `--layer`, or makes it an ablation. Adapters without a direction stay unchanged.
    fn placed(
        &self,
        adapter: Box<dyn Adapter>,
        name: &str,
        model: &Decoder,
    ) -> Result<Box<dyn Adapter>> {
        let Some(directions) = adapter.directions() else {
            if self.ablate {
                bail!(
                    "--ablate takes directions out, and {name} is an adapter of {}; leave it out",
                    adapter.method()
                );
            }
            return Ok(adapter);
        };
        let own: BTreeSet<usize> = directions.keys().map(|site| site.layer).collect();
        let layers = self.layers_of(&format!("the direction of {name}"), own.clone())?;
        let is_where_it_was = layers.iter().copied().collect::<BTreeSet<_>>() == own;
        if is_where_it_was && !self.ablate {
            return Ok(adapter);
        }
        let component = directions.keys().next().map_or(self.site, |site| site.component);
        let at = |layer: usize| {
            let own = directions.get(&Site { layer, component });
            match (own, directions.len()) {
                (Some(own), _) => Ok((layer, own.detach())),
                (None, 1) => {
                    Ok((layer, directions.values().next().map(Tensor::detach).unwrap_or_default()))
                }
                _ => Err(anyhow!(
                    "{name} has a direction for each of several layers, and none for layer {layer}"
                )),
            }
        };
        let placed = layers.into_iter().map(at).collect::<Result<_>>()?;
        let edit = if self.ablate { SteeringEdit::Remove } else { SteeringEdit::Add };
        Ok(steering_adapter(&placed, component, edit, model, "")?)
    }
}

/// The layer in the name of a search's cell: `cells/block_output-14/name/rank-1`.
fn layer_of_cell(directory: &Path) -> Option<usize> {
    let of_layer = |folder: &Path| {
        let (name, layer) = folder.file_name()?.to_str()?.rsplit_once('-')?;
        name.parse::<Component>().ok()?;
        layer.parse().ok()
    };
    directory.ancestors().take(3).find_map(of_layer)
}

/// The texts of a file, one a line.
///
/// # Errors
/// If it cannot be read, or a text has no token.
pub fn rows_of(tokenizer: &Tokenizer, file: &Path) -> Result<Vec<Row>> {
    lines(file)?.iter().map(|(_, text)| row(tokenizer, text.trim())).collect()
}

/// The tokens of a text, without a template.
///
/// # Errors
/// If it has no token.
pub fn row(tokenizer: &Tokenizer, text: &str) -> Result<Row> {
    let ids = tokenizer.encode(text, true)?;
    if ids.is_empty() {
        bail!("{text:?} has no token; give at least one");
    }
    Ok(Row::prompt(ids))
}
