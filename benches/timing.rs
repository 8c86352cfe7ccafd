use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};
use tch::{Cuda, Device, Tensor};

/// Wall time of `iters` calls, with the device idle before the first and after the last.
pub fn timed(device: Device, iters: u64, mut f: impl FnMut() -> Tensor) -> Duration {
    synchronize(device);
    let start = Instant::now();
    for _ in 0..iters {
        drop(black_box(f()));
    }
    synchronize(device);
    start.elapsed()
}

fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

/// A group of cases with few samples each: the slow ones take seconds.
pub fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10);
    group.sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_secs(1));
    group
}
