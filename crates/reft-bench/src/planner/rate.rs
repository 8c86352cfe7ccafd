use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

/// Share of the rate of bare matrix products that a whole step reaches: measured, see docs/performance.md.
pub const EFFICIENCY: f64 = 0.7;

/// Products that are timed last at least this long together.
const LONG_ENOUGH: Duration = Duration::from_millis(300);

/// Floating-point operations per second of the products that a step is made of: `[tokens, d] × [d, f]`, the median of several.
pub fn product_rate(tokens: i64, d: i64, f: i64, kind: Kind, device: Device) -> f64 {
    let _guard = tch::no_grad_guard();
    let (x, w) = (Tensor::ones([tokens, d], (kind, device)), Tensor::ones([f, d], (kind, device)));
    let once = || {
        let started = Instant::now();
        // reading a number waits for the device
        let _last = x.linear(&w, None::<Tensor>).double_value(&[0, 0]);
        started.elapsed()
    };
    let _warm_up = (once(), once());
    let started = Instant::now();
    let mut seconds = Vec::new();
    while started.elapsed() < LONG_ENOUGH || seconds.len() < 5 {
        seconds.push(once().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    (2 * tokens * d * f) as f64 / seconds[seconds.len() / 2]
}
