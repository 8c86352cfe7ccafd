//! Configuration files: options under the names of their flags, in TOML.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use toml::Table;

use crate::train_options::TrainOptions;

/// Options of which only one can hold: given on the command line, one puts aside the other of a file.
const EXCLUSIVE: [(&str, &str); 2] = [("epochs", "max_steps"), ("shuffle", "no_shuffle")];

/// Reads a configuration file.
///
/// # Errors
/// If it cannot be read, or a field is unknown or of another type, with file and line.
pub fn read(path: &Path) -> Result<TrainOptions> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read configuration {}", path.display()))?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<TrainOptions> {
    let options: TrainOptions = toml::from_str(text).or_else(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = 1 + before.matches('\n').count();
        bail!("{}, line {line}: {}", path.display(), error.message().replace('\n', ", "))
    })?;
    for (one, other) in EXCLUSIVE {
        let table = table(&options)?;
        if table.contains_key(one) && table.contains_key(other) {
            bail!("{} has both {one} and {other}; give one of them", path.display());
        }
    }
    Ok(options)
}

/// The options of `below` with those of `above` over them.
///
/// # Errors
/// If they have no form in TOML.
pub fn overlaid(below: &TrainOptions, above: &TrainOptions) -> Result<TrainOptions> {
    let (mut merged, above) = (table(below)?, table(above)?);
    for (one, other) in EXCLUSIVE {
        if above.contains_key(one) || above.contains_key(other) {
            merged.remove(one);
            merged.remove(other);
        }
    }
    merged.extend(above);
    merged.try_into().context("cannot put the options together")
}

/// The options that are given, by name.
///
/// # Errors
/// If they have no form in TOML.
pub fn table(options: &TrainOptions) -> Result<Table> {
    Table::try_from(options).context("cannot write the options as TOML")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn options(text: &str) -> Result<TrainOptions> {
        parse(text, Path::new("run.toml"))
    }

    #[test]
    fn flags_win_over_the_file() -> Result<()> {
        let file = options("lr = 1e-3\nrank = 4\nepochs = 3\nshuffle = \"plain\"")?;
        let flags = options("lr = 2e-3\nmax_steps = 7\nno_shuffle = true")?;
        let merged = overlaid(&file, &flags)?;
        assert_eq!((merged.lr, merged.rank), (Some(2e-3), Some(4)));
        assert_eq!((merged.epochs, merged.max_steps), (None, Some(7)));
        assert_eq!((merged.shuffle, merged.no_shuffle), (None, Some(true)));
        Ok(())
    }

    #[test]
    fn every_option_is_read_as_it_is_written() -> Result<()> {
        let text = r#"
            model = "m"
            data = "d.jsonl"
            output = "o"
            init_adapter = "a"
            method = "direft-orth"
            layers = "3;9"
            component = "mlp_output"
            rank = 3
            positions = "f1+l2"
            position_rule = "pyreft"
            share_weights = true
            orthonormal_map = "qr"
            act_fn = "tanh"
            add_bias = false
            dropout = 0.25
            alpha = 12.0
            target_modules = ["q_proj", "v_proj"]
            feedforward_modules = ".*down_proj"
            n_virtual_tokens = 5
            init_text = "Answer:"
            init_tokens = [3, 1]
            encoder_hidden_size = 32
            components = ["mlp_output"]
            bottleneck_size = 16
            init = "reference"
            template = "alpaca"
            max_length = 64
            drop_too_long = true
            validation = 0.1
            shuffle = "none"
            epochs = 2
            batch_size = 3
            grad_accum = 4
            lr = 0.005
            schedule = "cosine"
            warmup_ratio = 0.1
            weight_decay = 0.01
            max_grad_norm = 0.5
            seed = 7
            eval_every = 5
            checkpoint_every = 6
            kind = "bf16"
            device = "cpu"
            threads = 2
        "#;
        let given: Table = text.parse()?;
        let options = options(text)?;
        assert_eq!(table(&options)?, given);
        assert_eq!(options.output, Some(PathBuf::from("o")));
        assert_eq!(overlaid(&TrainOptions::default(), &options)?, options);
        Ok(())
    }

    #[test]
    fn unknown_fields_and_wrong_types_are_named_with_their_line() {
        let message =
            |text: &str| options(text).map_or_else(|e| e.to_string(), |o| format!("{o:?}"));
        let unknown = message("lr = 1e-3\nlearning_rate = 2");
        assert!(
            unknown.starts_with("run.toml, line 2: unknown field `learning_rate`"),
            "{unknown}"
        );
        let wrong = message("\n\nlr = \"fast\"");
        assert!(wrong.starts_with("run.toml, line 3: invalid type: string \"fast\""), "{wrong}");
        let broken = message("lr = 1e-3\nrank = = 3");
        assert!(broken.starts_with("run.toml, line 2: "), "{broken}");
        let name = message("method = \"lorra\"");
        assert!(name.contains("line 1") && name.contains("loreft, direft"), "{name}");
        let both = message("epochs = 1\nmax_steps = 2");
        assert!(both.contains("both epochs and max_steps"), "{both}");
    }
}
