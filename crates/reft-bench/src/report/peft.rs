//! Runs of a comparison in the JSON of PEFT's `method_comparison`, a file each.

use std::path::{Path, PathBuf};

use reft_models::{io_error, read_json, write_json_in_order};
use reft_train::Metric;
use serde_json::{Map, Value, json};

use crate::compare::config::slug;
use crate::{Cell, CellResult, ComparisonPlan, Error, Precision, Report, Result};

/// Directory of the files.
const DIRECTORY: &str = "peft";

/// The reported training loss is the mean over this many last steps, as in PEFT's runs.
const LAST: usize = 250;

impl Report {
    /// Writes each tested run of a chosen rate in the format of PEFT's `method_comparison`: `peft/METHOD--LABEL-lr-…-seed-….json`.
    /// Unknown values are null; memory is the process's, not a GPU's.
    ///
    /// # Errors
    /// If the task is not measured by accuracy, which those files hold, or a file cannot be read or written.
    pub fn write_peft(&self, output: &Path) -> Result<Vec<PathBuf>> {
        let plan = &self.plan;
        let metric = self.metric;
        if metric != Metric::Accuracy {
            let reason = format!(
                "PEFT's files of runs hold accuracies, and task {} is measured by {metric}",
                plan.task.name
            );
            return Err(Error::File { path: output.to_owned(), reason });
        }
        let folder = output.join(DIRECTORY);
        std::fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        let mut files = Vec::new();
        for (i, method) in self.methods.iter().enumerate() {
            for cell in method.lr.map(|lr| plan.chosen(i, lr)).unwrap_or_default() {
                let Some(result) = cell.result(plan, output)? else { continue };
                let Some(accuracy) = result.test.as_ref().map(|test| {
                    let scores = test.scores.iter().map(|score| score.value);
                    scores.sum::<f64>() / test.scores.len() as f64
                }) else {
                    continue;
                };
                let name = format!("{}-lr-{}-seed-{}", slug(&method.label), result.lr, result.seed);
                let run = PeftRun { report: self, cell, result: &result, output };
                let value = run.json(&format!("{}/{name}", method.method), accuracy)?;
                let file = folder.join(format!("{}--{name}.json", slug(&method.method)));
                write_json_in_order(&file, &value)?;
                files.push(file);
            }
        }
        Ok(files)
    }
}

/// A run, and its comparison.
struct PeftRun<'a> {
    report: &'a Report,
    cell: Cell,
    result: &'a CellResult,
    output: &'a Path,
}

impl PeftRun<'_> {
    fn json(&self, name: &str, accuracy: f64) -> Result<Value> {
        let Self { result, .. } = self;
        let plan = &self.report.plan;
        let test = result.test.as_ref();
        let seconds_of = |scores: &[crate::Score]| scores.iter().map(|s| s.seconds).sum::<f64>();
        let tested = test.map_or(0.0, |test| seconds_of(&test.scores));
        let validated = result.validation.as_ref().map_or(0.0, |score| score.seconds);
        let base = self.report.base.as_ref().and_then(|base| base.neutral_loss);
        let forgetting =
            test.and_then(|test| test.neutral_loss).zip(base).map(|(own, base)| own - base);
        let memory = result.peak_memory_bytes.unwrap_or_default();
        let last = &result.losses[result.losses.len().saturating_sub(LAST)..];
        let loss = last.iter().sum::<f64>() / last.len().max(1) as f64;
        let samples = self.samples();
        let valid = result.validation.as_ref().map(|score| score.value);
        Ok(json!({
            "run_info": {
                "created_at": self.created_at()?,
                "total_time": result.train_seconds + validated + tested,
                "experiment_name": name,
                "peft_branch": null,
                "train_config": self.train_config(),
                "peft_config": self.peft_config()?,
                "error_msg": result.diverged.clone().unwrap_or_default(),
            },
            "train_info": {
                "accelerator_memory_reserved_avg": memory,
                "accelerator_memory_max": memory,
                "accelerator_memory_reserved_99th": memory,
                "train_time": result.train_seconds,
                "file_size": result.adapter_bytes,
                "num_trainable_params": result.trainable_parameters,
                "num_total_params": plan.base_parameters + result.trainable_parameters,
                "status": "success",
                "metrics": [
                    {
                        "step": result.steps,
                        "valid accuracy": valid,
                        "train loss": loss,
                        "train samples": samples,
                        "train time": result.train_seconds,
                        "eval time": validated,
                        "tokens / sec": result.tokens_per_second(),
                    },
                    {
                        "step": result.steps,
                        "test accuracy": accuracy,
                        "train loss": loss,
                        "train samples": samples,
                        "train total tokens": result.train_tokens,
                        "forgetting": forgetting,
                    },
                ],
            },
            "meta_info": self.meta_info(),
        }))
    }

    /// When the run was written, in UTC.
    fn created_at(&self) -> Result<String> {
        let file = self.cell.directory(&self.report.plan, self.output).join(CellResult::FILE_NAME);
        let failed = io_error("read", &file);
        let time = std::fs::metadata(&file).and_then(|found| found.modified()).map_err(failed)?;
        let time = jiff::Timestamp::try_from(time);
        let time = time.map_err(|error| Error::File { path: file, reason: error.to_string() })?;
        Ok(time.strftime("%Y-%m-%dT%H:%M:%S+00:00").to_string())
    }

    /// Rows trained on; a row counts once for each epoch.
    fn samples(&self) -> usize {
        let plan = &self.report.plan;
        let (n, train) = (plan.data.train.used, &plan.config.train.options);
        let of_step = train.batch_size * train.grad_accum;
        let steps = n.div_ceil(train.batch_size).div_ceil(train.grad_accum).max(1);
        self.result.steps / steps * n + self.result.steps % steps * of_step
    }

    fn train_config(&self) -> Value {
        let ComparisonPlan { config, task, .. } = &self.report.plan;
        let train = &config.train.options;
        let model = Path::new(&config.model);
        let name = Some(model).filter(|model| model.exists()).and_then(Path::file_name);
        let model = name.map_or(config.model.clone(), |name| name.to_string_lossy().into_owned());
        let dtype = match config.kind {
            Precision::F32 => "float32",
            Precision::Bf16 => "bfloat16",
            Precision::F16 => "float16",
        };
        json!({
            "model_id": model,
            "dtype": dtype,
            "max_seq_length": train.max_length,
            "batch_size": train.batch_size * train.grad_accum,
            "batch_size_eval": config.eval_batch_size,
            "max_steps": self.result.steps,
            "eval_steps": self.result.steps,
            "compile": false,
            "use_gc": train.checkpoint_activations,
            "query_template": task.prompt,
            "seed": self.result.seed,
            "grad_norm_clip": train.max_grad_norm,
            "optimizer_type": "AdamW",
            "optimizer_kwargs": { "lr": self.result.lr, "weight_decay": train.weight_decay },
            "lr_scheduler": train.schedule,
            "use_amp": false,
            "autocast_adapter_dtype": true,
            "generation_kwargs": { "max_new_tokens": task.max_new_tokens },
            "attn_implementation": null,
            "init_kv_cache_prefix": null,
        })
    }

    /// PEFT's own configuration if the adapter was saved with one, else the method's options; null for full fine-tuning.
    fn peft_config(&self) -> Result<Value> {
        let plan = &self.report.plan;
        let Some(entry) = self.cell.method.map(|i| &plan.config.method[i]) else {
            return Ok(Value::Null);
        };
        if entry.method == "full" {
            return Ok(Value::Null);
        }
        let file = self.cell.directory(plan, self.output).join("adapter/adapter_config.json");
        if file.is_file() {
            return Ok(read_json(&file)?);
        }
        let mut config =
            Map::from_iter([("peft_type".to_owned(), json!(entry.method.to_uppercase()))]);
        if let Value::Object(options) = json!(entry.options) {
            config.extend(options);
        }
        Ok(config.into())
    }

    fn meta_info(&self) -> Value {
        let ComparisonPlan { machine, data, weights, .. } = &self.report.plan;
        let of_part = |digest: &str| json!({ "sha": digest, "created_at": null });
        json!({
            "model_info": { "sha": weights, "created_at": null },
            "dataset_info": { "train": of_part(&data.train.digest), "validation": of_part(&data.validation.digest) },
            "package_info": {
                "transformers-version": null,
                "peft-version": null,
                "datasets-version": null,
                "bitsandbytes-version": null,
                "torch-version": machine.libtorch,
                "reft-version": machine.reft,
            },
            "system_info": {
                "system": machine.system,
                "processor": machine.cpu,
                "accelerator": machine.device,
            },
            "pytorch_info": "",
        })
    }
}
