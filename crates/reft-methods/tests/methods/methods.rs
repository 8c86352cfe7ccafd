//! Methods by name: their options, starts and sizes.

use reft_methods::{
    AdapterSummary, Error, INIT, INIT_TOKENS, LAYERS, METHODS, MethodOption, MethodOptions,
    Methods, N_VIRTUAL_TOKENS, POSITIONS, TargetModules, numel, options_of, remove_adapter,
    resolve,
};
use reft_models::{Layout, Model, NoHooks, PaddingSide, Row};
use serde_json::json;

use crate::declarations::small;
use crate::oracle::{
    Outcome, assert_close, base_logits, logits, loss, new_adapter, tiny_examples, tiny_llama,
};

#[test]
fn methods_that_can_start_as_the_base_model_do() -> Outcome {
    let examples = tiny_examples()?;
    for declaration in METHODS {
        let (method, decoder) = (declaration.name, tiny_llama()?);
        let base = base_logits(&decoder, &examples)?;
        let adapter = new_adapter(method, &small(declaration), &decoder)?;
        let start = logits(&decoder, &adapter, &examples, PaddingSide::Right)?;
        let cannot = ["consreft", "prefix", "prompt", "steering"].contains(&method);
        let largest = start
            .iter()
            .zip(&base)
            .map(|(start, base)| {
                // after the virtual tokens of a soft prompt
                let own = start.narrow(0, start.size()[0] - base.size()[0], base.size()[0]);
                (own - base).abs().max().double_value(&[])
            })
            .fold(0.0, f64::max);
        // LoReFT and DoRA start at the base model up to rounding: Rᵀ(R h − R h), and m / ‖W‖
        assert_eq!(largest > 5e-5, cannot, "{method}: off by {largest:e}");
        let mut parameters = adapter.parameters();
        loss(&decoder, &adapter, &examples)?.backward();
        parameters.retain(|parameter| {
            let grad = parameter.tensor.grad();
            grad.defined() && grad.abs().max().double_value(&[]) > 0.0
        });
        assert!(!parameters.is_empty(), "{method} cannot leave its start");
    }
    Ok(())
}

#[test]
fn trainable_parameters_are_those_of_the_formulas() -> Outcome {
    // d 64, MLP 128, 4 layers, keys and values 2 · 16
    let all_rows_and_columns = (64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128);
    let expected = [
        ("loreft", 4 * (2 * 8 * 64 + 8)),
        ("consreft", 4 * (8 * 64 + 8)),
        ("lora", 4 * 8 * all_rows_and_columns),
        ("dora", 4 * (8 * all_rows_and_columns + 64 + 2 * 32 + 64 + 2 * 128 + 64)),
        ("prefix", 20 * 4 * 2 * 32),
        ("prompt", 20 * 64),
        ("ia3", 4 * (32 + 32 + 128)),
        ("red", 4 * 2 * 64),
        ("brep", 4 * 2 * 128),
        ("series-adapter", 4 * (2 * 64 * 64 + 64 + 64)),
        ("full", 2 * 128 * 64 + 64 + 4 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64 + 2 * 64)),
    ];
    for (method, expected) in expected {
        let decoder = tiny_llama()?;
        let adapter = new_adapter(method, &MethodOptions::default(), &decoder)?;
        assert_eq!(numel(&adapter.parameters()), expected, "{method}");
    }
    let options = MethodOptions::default().with(&POSITIONS, "f7+l7"); // an edit for each end
    let adapter = new_adapter("loreft", &options, &tiny_llama()?)?;
    assert_eq!(numel(&adapter.parameters()), 2 * 4 * (2 * 8 * 64 + 8));
    Ok(())
}

#[test]
fn wrong_methods_and_options_are_refused_by_name() -> Outcome {
    let decoder = tiny_llama()?;
    let resolve = |method: &str, options: serde_json::Value| -> Outcome<Result<Methods, Error>> {
        let options = serde_json::from_value(options)?;
        Ok(resolve(method, &options, decoder.description()))
    };
    for method in ["lroa", "", "lora+", "loreft+nothing"] {
        let refused = resolve(method, json!({}))?;
        assert!(matches!(&refused, Err(Error::UnknownMethod { .. })), "{method}: {refused:?}");
    }
    for (method, option) in [
        ("prefix", json!({"rank": 4})),
        ("full", json!({"rank": 4})),
        ("loreft", json!({"alpha": 4.0})),
        ("lora+prefix", json!({"bottleneck_size": 4})),
    ] {
        let name = option.as_object().and_then(|o| o.keys().next().cloned()).ok_or("no option")?;
        let refused = resolve(method, option)?;
        assert!(
            matches!(&refused, Err(Error::UnknownOption { option, .. }) if *option == name),
            "{method}: {refused:?}"
        );
    }
    for (method, options, complaint) in [
        ("lora", json!({"rank": 0}), "r of model.layers.0"),
        ("lora", json!({"dropout": 1.0}), "dropout is 1"),
        ("lora", json!({"target_modules": ["qproj"]}), "\"qproj\""),
        ("lora", json!({"target_modules": ["lm_head"]}), "\"lm_head\""),
        ("lora", json!({"target_modules": "q_proj("}), "regular expression"),
        ("dora", json!({"layers": [4]}), "layer 4"),
        ("ia3", json!({"feedforward_modules": ["up_proj"]}), "feedforward_modules"),
        ("prefix", json!({"n_virtual_tokens": 0}), "n_virtual_tokens is 0"),
        ("prompt", json!({"init": "text"}), "init is \"text\""),
        ("prompt", json!({"init_tokens": []}), "init_tokens is empty"),
        ("red", json!({"components": ["attention_output"]}), "attention_output"),
        ("parallel-adapter", json!({"bottleneck_size": 0}), "bottleneck_size is 0"),
        ("loreft", json!({"rank": 65}), "rank 65"),
        ("loreft", json!({"component": "nowhere"}), "nowhere"),
        ("loreft", json!({"layers": [9]}), "layer 9"),
    ] {
        let text = match resolve(method, options.clone()) {
            Ok(Ok(_)) => return Err(format!("{method} with {options} is accepted").into()),
            Ok(Err(refused)) => refused.to_string(),
            Err(refused) => refused.to_string(), // no value of the option at all
        };
        assert!(text.contains(complaint), "{method} with {options}: {text}");
    }
    let unknown = serde_json::from_value::<MethodOptions>(json!({"rnak": 4}));
    assert!(unknown.is_err());
    Ok(())
}

#[test]
fn a_prefix_started_from_a_text_is_that_text_in_front() -> Outcome {
    let decoder = tiny_llama()?;
    let text = vec![17i64, 4, 99, 23];
    let options = MethodOptions::default();
    let options = options.with(&N_VIRTUAL_TOKENS, 4).with(&INIT_TOKENS, &text);
    let examples = tiny_examples()?;
    for method in ["prefix", "prompt"] {
        let adapter = new_adapter(method, &options, &decoder)?;
        let found = logits(&decoder, &adapter, &examples, PaddingSide::Left)?;
        for (example, found) in examples.iter().zip(found) {
            let ids = [text.as_slice(), &example.row().input_ids].concat();
            let layout = Layout::new(vec![Row::prompt(ids)], PaddingSide::Right)?;
            let ids = layout.input_ids(decoder.device());
            let h = decoder.hidden_states(&ids, &layout.whole(), None, &mut NoHooks)?;
            let expected = decoder.logits(&h).select(0, 0);
            let n = example.row().input_ids.len() as i64;
            let own = |x: &tch::Tensor| x.narrow(0, x.size()[0] - n, n);
            assert_close(method, &own(&found), &own(&expected), 2e-5); // f32, other masks
        }
    }
    Ok(())
}

/// A method sets the options that its description leaves open in the same way again.
#[test]
fn a_description_makes_the_same_method_again() -> Outcome {
    let decoder = tiny_llama()?;
    let shape = decoder.description();
    let with = |json: serde_json::Value| serde_json::from_value::<MethodOptions>(json);
    let mut cases: Vec<(&str, MethodOptions)> =
        METHODS.iter().map(|declaration| (declaration.name, small(declaration))).collect();
    cases.extend([
        ("lora", with(json!({"layers": [1, 3], "rank": 3, "alpha": 5.0, "dropout": 0.25}))?),
        ("rslora", with(json!({"target_modules": ".*(q|v)_proj", "layers": [0, 1, 2, 3]}))?),
        ("prefix", with(json!({"n_virtual_tokens": 5, "init_tokens": [7, 9]}))?),
        ("prefix", with(json!({"n_virtual_tokens": 5, "encoder_hidden_size": 12}))?),
        ("prompt", with(json!({"n_virtual_tokens": 3, "init_tokens": [7, 9, 11, 13]}))?),
        ("prompt", with(json!({"init": "random"}))?),
        ("ia3", with(json!({"target_modules": ["q_proj"], "feedforward_modules": []}))?),
        ("red", with(json!({"layers": [2], "components": ["block_output"]}))?),
        ("series-adapter", with(json!({"bottleneck_size": 7, "act_fn": "tanh"}))?),
        ("loreft", with(json!({"positions": "l1", "share_weights": false, "init": "reference"}))?),
        ("loreft+lora+prompt", MethodOptions::default()),
        ("loreft+series-adapter", with(json!({"rank": 2, "layers": [1]}))?), // two defaults of act_fn
    ]);
    for (name, options) in cases {
        let methods = resolve(name, &options, shape)?;
        let (described, all) = methods.describe();
        assert_eq!(described, name);
        for (option, value) in options.given() {
            let found = all.given().find(|(own, _)| *own == option);
            // "all layers" is left open, and a text is repeated to its length
            let is_said_anew =
                *option == INIT_TOKENS || *option == LAYERS && *value == json!([0, 1, 2, 3]);
            assert!(
                is_said_anew || found == Some((option, value)),
                "{name}: {option:?} in {all:?}"
            );
        }
        let again = resolve(name, &all, shape)?;
        assert_eq!(format!("{again:?}"), format!("{methods:?}"), "{all:?}");

        let dir = tempfile::tempdir()?;
        new_adapter(name, &options, &decoder)?.save(dir.path())?;
        let (found, read) = Methods::read(dir.path())?.describe();
        assert_eq!(found, name);
        // a directory does not say how its virtual tokens started
        let is_virtual = options_of(name)?.contains(&&N_VIRTUAL_TOKENS);
        let is_kept = |option: &MethodOption| {
            !(is_virtual && [INIT.name, INIT_TOKENS.name].contains(&option.name))
        };
        let kept = |options: &MethodOptions| -> Vec<String> {
            let kept = options.given().filter(|(option, _)| is_kept(option));
            kept.map(|(option, value)| format!("{}: {value}", option.name)).collect()
        };
        assert_eq!(kept(&read), kept(&all), "{name}");
        assert_eq!(AdapterSummary::read(dir.path())?.options, read);
        remove_adapter(dir.path())?;
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 0, "{name} leaves files");
    }
    Ok(())
}

#[test]
fn target_modules_are_names_or_a_pattern() {
    let names =
        |list: &[&str]| TargetModules::Names(list.iter().map(ToString::to_string).collect());
    for (text, expected) in [
        ("q_proj", names(&["q_proj"])),
        ("q_proj, mlp.down_proj;v_proj", names(&["q_proj", "mlp.down_proj", "v_proj"])),
        ("all-linear", TargetModules::Pattern("all-linear".into())),
        (r".*\.(q|v)_proj", TargetModules::Pattern(r".*\.(q|v)_proj".into())),
    ] {
        assert_eq!(TargetModules::from(text), expected, "{text}");
    }
}
