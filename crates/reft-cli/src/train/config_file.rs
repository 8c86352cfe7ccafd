use std::path::Path;

use anyhow::{Result, anyhow, bail};
use reft_models::{Error, Key, line_of, read_text, toml_error};
use toml::Table;

use crate::train::run_options::{EXCLUSIVE, declared};

/// Reads a configuration file: options under the names of their flags, in TOML.
///
/// # Errors
/// If it cannot be read, or a field is unknown or of another type, with file and line.
pub fn read(path: &Path) -> Result<Table> {
    parse(&read_text(path)?, path)
}

fn parse(text: &str, path: &Path) -> Result<Table> {
    let given: Table = toml::from_str(text).map_err(|error| toml_error(text, path, &error))?;
    let options = checked(given).map_err(|(name, reason)| {
        let line = line_of(text, &[Key::Name(&name)]);
        Error::Line { path: path.to_owned(), line, reason: format!("{reason:#}") }
    })?;
    for (one, other) in EXCLUSIVE {
        if options.contains_key(one) && options.contains_key(other) {
            bail!("{} has both {other} and {one}; give one of them", path.display());
        }
    }
    Ok(options)
}

/// Checks options, and returns them as files keep them.
///
/// # Errors
/// The name of an unknown option, or of an option with an invalid value, and the reason.
pub fn checked(given: Table) -> Result<Table, (String, anyhow::Error)> {
    let options = declared();
    let check = |(name, value): (String, toml::Value)| {
        let value = match options.iter().find(|option| option.name == name) {
            Some(option) => option.checked(value),
            None => Err(anyhow!(
                "unknown field `{name}`; fields are named as the flags of reft train, with _ for -"
            )),
        };
        match value {
            Ok(value) => Ok((name, value)),
            Err(reason) => Err((name, reason)),
        }
    };
    given.into_iter().map(check).collect()
}

/// The options of `above`, and of `below` where `above` has none.
pub fn overlaid(below: &Table, above: &Table) -> Table {
    let mut merged = below.clone();
    for (one, other) in EXCLUSIVE {
        if above.contains_key(one) || above.contains_key(other) {
            merged.remove(one);
            merged.remove(other);
        }
    }
    merged.extend(above.clone());
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Result<Table> {
        parse(text, Path::new("run.toml"))
    }

    #[test]
    fn flags_win_over_the_file() -> Result<()> {
        let file = options("lr = 1e-3\nrank = 4\nepochs = 3\nshuffle = \"plain\"")?;
        let flags = options("lr = 2e-3\nmax_steps = 7\nno_shuffle = true")?;
        let expected = options("lr = 2e-3\nrank = 4\nmax_steps = 7\nno_shuffle = true")?;
        assert_eq!(overlaid(&file, &flags), expected);
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
            reuse_memory = "3.7 GiB"
        "#;
        let given: Table = text.parse()?;
        let options = options(text)?;
        assert_eq!(options, given);
        assert_eq!(overlaid(&Table::new(), &options), options);
        let written = crate::train::run_options::in_toml(&options);
        assert_eq!(written.parse::<Table>()?, given, "{written}");
        Ok(())
    }

    #[test]
    fn layers_and_numbers_have_one_form_whatever_form_they_are_given_in() -> Result<()> {
        for layers in ["[9, 3]", "\"9;3\"", "\"3, 9\""] {
            let given = options(&format!("layers = {layers}\nlr = 1\nalpha = 2"))?;
            assert_eq!(given, "layers = \"3;9\"\nlr = 1.0\nalpha = 2.0".parse()?);
        }
        assert_eq!(options("layers = 3")?, "layers = \"3\"".parse()?);
        assert_eq!(options("layers = \"all\"")?, "layers = \"all\"".parse()?);
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
        assert_eq!(wrong, "run.toml, line 3: lr is \"fast\", expected a number");
        let broken = message("lr = 1e-3\nrank = = 3");
        assert!(broken.starts_with("run.toml, line 2: "), "{broken}");
        let name = message("method = \"lorra\"");
        assert!(name.contains("line 1") && name.contains("loreft, direft"), "{name}");
        let kind = message("kind = \"f64\"");
        assert!(kind.contains("line 1") && kind.contains("f32, bf16, f16"), "{kind}");
        let both = message("epochs = 1\nmax_steps = 2");
        assert!(both.contains("both epochs and max_steps"), "{both}");
    }
}
