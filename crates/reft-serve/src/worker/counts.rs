use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::error::{Error, Result};

/// A server's metrics for Prometheus.
pub(crate) struct Counts {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    pub(crate) waiting: Gauge,
    pub(crate) in_flight: Gauge,
    pub(crate) prompt_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) first_token: Histogram,
    pub(crate) next_token: Histogram,
    pub(crate) reused_tokens: Counter,
    pub(crate) kept_tokens: Gauge,
    pub(crate) kv_bytes: Gauge,
    pub(crate) adapters: Gauge,
    pub(crate) adapter_bytes: Gauge,
}

/// Bounds of the histograms, in seconds.
const BUCKETS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

const ADAPTER_REQUESTS: &str = "reft_adapter_requests_total";
const ADAPTER_TOKENS: &str = "reft_adapter_tokens_total";
const HTTP_REQUESTS: &str = "reft_http_requests_total";

impl Counts {
    /// Numbers of this server alone: a process may have several.
    ///
    /// # Errors
    /// [`Error::Metrics`] if the exporter refuses.
    pub(crate) fn new() -> Result<Self> {
        let builder = PrometheusBuilder::new().set_buckets(&BUCKETS);
        let recorder = builder.map_err(|error| Error::Metrics(error.to_string()))?.build_recorder();
        let within = |act: &dyn Fn()| with_local_recorder(&recorder, act);
        for (name, help) in [
            (ADAPTER_REQUESTS, "Replies begun, by adapter"),
            (ADAPTER_TOKENS, "Tokens of replies, by adapter"),
            (HTTP_REQUESTS, "Answers, by path and status"),
        ] {
            within(&|| metrics::describe_counter!(name, help));
        }
        let counter = |name: &'static str, help: &'static str| {
            within(&|| metrics::describe_counter!(name, help));
            with_local_recorder(&recorder, || counter!(name))
        };
        let gauge = |name: &'static str, help: &'static str| {
            within(&|| metrics::describe_gauge!(name, help));
            with_local_recorder(&recorder, || gauge!(name))
        };
        let seconds = |name: &'static str, help: &'static str| {
            within(&|| metrics::describe_histogram!(name, help));
            with_local_recorder(&recorder, || histogram!(name))
        };
        Ok(Self {
            waiting: gauge("reft_requests_waiting", "Replies that wait for their turn"),
            in_flight: gauge("reft_requests_in_flight", "Replies in the batch"),
            prompt_tokens: counter("reft_prompt_tokens_total", "Tokens of prompts"),
            generated_tokens: counter("reft_generated_tokens_total", "Tokens of replies"),
            first_token: seconds(
                "reft_time_to_first_token_seconds",
                "From a request's arrival to its first token",
            ),
            next_token: seconds(
                "reft_time_per_token_seconds",
                "From one token of a reply to the next",
            ),
            reused_tokens: counter(
                "reft_prompt_tokens_reused_total",
                "Tokens of prompts whose keys and values were kept",
            ),
            kept_tokens: gauge(
                "reft_prefix_tokens",
                "Tokens kept for prompts that begin with them",
            ),
            kv_bytes: gauge("reft_kv_bytes", "Bytes reserved for keys and values"),
            adapters: gauge("reft_adapters_loaded", "Adapters in memory"),
            adapter_bytes: gauge("reft_adapter_bytes", "Bytes of adapters in memory"),
            handle: recorder.handle(),
            recorder,
        })
    }

    /// Counts a reply that is begun with an adapter.
    pub(crate) fn adapter_request(&self, name: &str) {
        self.add(1, || counter!(ADAPTER_REQUESTS, "adapter" => name.to_owned()));
    }

    /// Counts a token of a reply with an adapter.
    pub(crate) fn adapter_token(&self, name: &str) {
        self.add(1, || counter!(ADAPTER_TOKENS, "adapter" => name.to_owned()));
    }

    /// Counts an answer.
    pub(crate) fn answer(&self, path: &'static str, status: u16) {
        self.add(1, || counter!(HTTP_REQUESTS, "path" => path, "status" => status.to_string()));
    }

    fn add(&self, n: u64, of: impl FnOnce() -> Counter) {
        with_local_recorder(&self.recorder, of).increment(n);
    }

    /// All numbers as Prometheus reads them.
    pub(crate) fn text(&self) -> String {
        self.handle.render()
    }

    /// Sorts measured values into the histograms; otherwise they accumulate until the metrics are read.
    pub(crate) fn tidy_up(&self) {
        self.handle.run_upkeep();
    }
}
