use std::sync::atomic::AtomicBool;

use reft_bench::{EncodedQuestion, Scorer, TaskConfig, encode_questions, read_questions};
use reft_models::{Adapter, AdapterStack, Decoder, Mode, Model, NoHooks, Stacked, Tokenizer};
use reft_train::{Encoding, Example, Learner, NextToken, Template, TextEncoder, Turns};
use tch::{Device, Kind};

use crate::tiny_model::{Bench, TASK, TestResult};

fn questions(
    bench: &Bench,
    task: &TaskConfig,
    file: &str,
) -> TestResult<(Tokenizer, Vec<EncodedQuestion>)> {
    let tokenizer = Tokenizer::open(&bench.path("model"))?;
    let (template, turns) = (Template::Plain, Turns::Last);
    let text = TextEncoder { tokenizer: &tokenizer, chat_template: None, template, turns };
    let encoding = Encoding { text: Some(text), vocab_size: 128, max_length: 256 };
    let questions = read_questions(task, &bench.path(file), None)?;
    let encoded = encode_questions(task, &questions, &encoding)?;
    Ok((tokenizer, encoded))
}

/// The model without adapters.
fn plain(model: &Decoder) -> Learner<'_> {
    Learner::new(model, &AdapterStack::EMPTY, &NextToken)
}

#[test]
fn the_choice_is_the_completion_with_the_lowest_loss() -> TestResult {
    let bench = Bench::new()?;
    let text = TASK
        .replace("template =", "scoring = \"log_probability\"\ntemplate =")
        .replace("\"y\"", "\"yes so\"");
    bench.write("task.toml", &text)?;
    let task = TaskConfig::open(&bench.path("task.toml"))?;
    let (tokenizer, questions) = questions(&bench, &task, "test.tsv")?;
    let decoder = Decoder::open(&bench.path("model"), Kind::Float, Device::Cpu)?;
    let stop = AtomicBool::new(false);
    let scorer = Scorer { task: &task, tokenizer: Some(&tokenizer), batch_size: 5, stop: &stop };
    let score = scorer.score(&plain(&decoder), &questions)?;
    for (question, answer) in questions.iter().zip(&score.answers) {
        let loss = |completion: &[i64]| -> TestResult<f64> {
            let mut row = question.prompt();
            row.input_ids.extend(completion);
            let mut labels = vec![-100; row.prompt_length];
            labels.extend(completion);
            let report = plain(&decoder).evaluate(&[Example::of("", row, labels)], 1, None)?;
            Ok(report.loss * report.target_tokens as f64)
        };
        let mut losses = Vec::new();
        for (choice, completion) in &question.choices {
            losses.push((loss(completion)?, choice));
        }
        let best = losses.iter().min_by(|a, b| a.0.total_cmp(&b.0)).ok_or("no choice")?;
        assert_eq!(best.1, answer);
    }
    let right =
        questions.iter().zip(&score.answers).filter(|(q, answer)| q.answer == **answer).count();
    assert_eq!(score.value, right as f64 / 24.0);
    Ok(())
}

#[test]
fn the_next_token_is_judged_by_the_logits_at_the_end_of_the_prompt() -> TestResult {
    let bench = Bench::new()?;
    bench
        .write("task.toml", &TASK.replace("template =", "scoring = \"next_token\"\ntemplate ="))?;
    let task = TaskConfig::open(&bench.path("task.toml"))?;
    let (tokenizer, questions) = questions(&bench, &task, "test.tsv")?;
    let decoder = Decoder::open(&bench.path("model"), Kind::Float, Device::Cpu)?;
    let stop = AtomicBool::new(false);
    let scorer = Scorer { task: &task, tokenizer: Some(&tokenizer), batch_size: 7, stop: &stop };
    let score = scorer.score(&plain(&decoder), &questions)?;
    for (question, answer) in questions.iter().zip(&score.answers) {
        let layout =
            reft_models::Layout::new(vec![question.prompt()], reft_models::PaddingSide::Left)?;
        let ids = layout.input_ids(Device::Cpu);
        let h = decoder.hidden_states(&ids, &layout.whole(), None, &mut NoHooks)?;
        let logits = decoder.logits(&h).squeeze_dim(0).get(-1);
        let of = |token: i64| logits.double_value(&[token]);
        let (no, yes) = (of(question.choices[0].1[0]), of(question.choices[1].1[0]));
        assert_eq!(answer, if yes > no { "y" } else { "n" });
    }
    Ok(())
}

/// An adapter that makes the model predict one token at every position.
struct Parrot(i64, Decoder);

impl Adapter for Parrot {
    fn method(&self) -> &str {
        "parrot"
    }

    fn parameters(&self) -> Vec<reft_core::Parameter> {
        Vec::new()
    }

    fn hooks<'a>(
        &'a self,
        _layout: &reft_models::Layout,
        _mode: Mode,
    ) -> reft_models::Result<Box<dyn reft_models::Hooks + 'a>> {
        Ok(Box::new(Stacked(vec![Box::new(Replace(self))])))
    }

    fn save(&self, _dir: &std::path::Path) -> reft_models::Result<()> {
        Ok(())
    }
}

/// Replaces the last block's output by the head's row of the token.
struct Replace<'a>(&'a Parrot);

impl reft_models::Hooks for Replace<'_> {
    fn visit(
        &mut self,
        point: reft_models::HookPoint,
        h: tch::Tensor,
        _span: &reft_models::Span,
    ) -> reft_models::Result<tch::Tensor> {
        let last = reft_models::Site { layer: 3, component: reft_models::Component::BlockOutput };
        if !matches!(point, reft_models::HookPoint::Residual(site) if site == last) {
            return Ok(h);
        }
        let weights = self.0.1.weights();
        let head = weights.iter().find(|(name, _)| name == "lm_head.weight");
        let row = head.expect("the model has a head").1.dense().get(self.0.0) * 1e3;
        Ok(row.expand_as(&h))
    }
}

#[test]
fn a_text_is_recalled_up_to_its_first_wrong_token() -> TestResult {
    let bench = Bench::new()?;
    let task = TaskConfig::built_in("memorise").ok_or("no such task")?;
    bench.write("m.jsonl", "{\"prompt\": \"x\", \"completion\": \"aaba\"}\n{\"prompt\": \"yz\", \"completion\": \"bcaa\"}\n")?;
    let (tokenizer, questions) = questions(&bench, &task, "m.jsonl")?;
    let a = tokenizer.token_id("a").ok_or("no a")?;
    let open = || Decoder::open(&bench.path("model"), Kind::Float, Device::Cpu);
    let (decoder, parrot) = (open()?, Parrot(a, open()?));
    let stack = AdapterStack::one(&parrot);
    let stop = AtomicBool::new(false);
    let scorer = Scorer { task: &task, tokenizer: Some(&tokenizer), batch_size: 2, stop: &stop };
    let score = scorer.score(&Learner::new(&decoder, &stack, &NextToken), &questions)?;
    assert_eq!(score.value, 2.0 / 8.0); // "aa" of "aaba", nothing of "bcaa"
    Ok(())
}

#[test]
fn a_text_file_is_one_question_of_its_first_tokens() -> TestResult {
    let bench = Bench::new()?;
    bench.write("text.txt", "abcd abcd")?;
    let task = "type = \"memorise\"\nprompt = \"id:\"\nlength = 5";
    let task = TaskConfig::parse(task, std::path::Path::new("t.toml"))?;
    let (tokenizer, encoded) = questions(&bench, &task, "text.txt")?;
    let ids = tokenizer.encode("id:abcd ", false)?;
    let example = &encoded[0].example;
    assert_eq!((encoded.len(), example.row().prompt_length), (1, 3));
    assert_eq!(example.row().input_ids, ids);
    assert_eq!(example.labels(), [&[-100; 3], &ids[3..]].concat());
    let long = TaskConfig { length: Some(11), ..task };
    let refused = questions(&bench, &long, "text.txt").map_err(|error| error.to_string());
    assert!(refused.is_err_and(|text| text.contains("has 10 tokens with its end token")));
    Ok(())
}

#[test]
fn exact_match_takes_the_whole_answer() -> TestResult {
    let bench = Bench::new()?;
    let decoder = Decoder::open(&bench.path("model"), Kind::Float, Device::Cpu)?;
    let tokenizer = Tokenizer::open(&bench.path("model"))?;
    let token = tokenizer.token_id("y").ok_or("no y")?;
    let parrot = Parrot(token, Decoder::open(&bench.path("model"), Kind::Float, Device::Cpu)?);
    let stack = AdapterStack::one(&parrot);
    let stop = AtomicBool::new(false);
    for (max_new_tokens, expected) in [(1, 0.5), (2, 0.0)] {
        let text =
            TASK.replace("template =", &format!("max_new_tokens = {max_new_tokens}\ntemplate ="));
        bench.write("task.toml", &text)?;
        let task = TaskConfig::open(&bench.path("task.toml"))?;
        let (tokenizer, questions) = questions(&bench, &task, "test.tsv")?;
        let scorer =
            Scorer { task: &task, tokenizer: Some(&tokenizer), batch_size: 9, stop: &stop };
        let score = scorer.score(&Learner::new(&decoder, &stack, &NextToken), &questions)?;
        assert_eq!(score.value, expected, "{:?}", score.answers); // the answer of half of the rows is y, and "yy" is no answer
    }
    Ok(())
}
