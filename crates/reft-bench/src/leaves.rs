//! The leaves of a baseline: how they start, and how checkpoints keep them.

use std::collections::BTreeMap;

use reft_core::Parameter;
use reft_models::{Error, Result};
use tch::{Device, Kind, Tensor, no_grad};

/// Makes `tensor` a trainable leaf, in f32 whatever the model's kind: an optimizer's small steps would be rounded away in half.
pub(crate) fn leaf(tensor: &Tensor, device: Device) -> Tensor {
    tensor.detach().to_kind(Kind::Float).to_device(device).copy().set_requires_grad(true)
}

/// Uniform in ±1/√`fan_in`, as `torch.nn.Linear` starts. Drawn on the CPU, so that every device starts alike.
pub(crate) fn uniform(shape: &[i64], fan_in: i64) -> Tensor {
    let bound = 1.0 / (fan_in as f64).sqrt();
    Tensor::empty(shape, (Kind::Float, Device::Cpu)).uniform_(-bound, bound)
}

/// Normal with mean 0 and variance 1, as `torch.nn.Embedding` starts.
pub(crate) fn normal(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

/// The numbers of an adapter.
pub(crate) fn numel(parameters: &[Parameter]) -> i64 {
    parameters.iter().map(|parameter| parameter.tensor.numel() as i64).sum()
}

/// Copies of the leaves by name.
pub(crate) fn state_of(parameters: &[Parameter]) -> BTreeMap<String, Tensor> {
    let copy = |parameter: &Parameter| (parameter.name.clone(), parameter.tensor.detach().copy());
    parameters.iter().map(copy).collect()
}

/// Writes a [`state_of`] into the leaves; nothing is changed if a tensor is missing, unexpected or misshapen.
pub(crate) fn load_state(parameters: &[Parameter], state: &BTreeMap<String, Tensor>) -> Result<()> {
    let mut problems = Vec::new();
    for Parameter { name, tensor, .. } in parameters {
        match state.get(name) {
            None => problems.push(format!("{name} is missing")),
            Some(found) if found.size() != tensor.size() => problems.push(format!(
                "{name} has shape {:?}, expected {:?}",
                found.size(),
                tensor.size()
            )),
            Some(_) => {}
        }
    }
    let is_known = |name: &str| parameters.iter().any(|parameter| parameter.name == name);
    let unexpected = state.keys().filter(|name| !is_known(name));
    problems.extend(unexpected.map(|name| format!("{name} is unexpected")));
    if !problems.is_empty() {
        let problems = problems.join("; ");
        return Err(Error::Adapter { reason: format!("not this adapter's state: {problems}") });
    }
    no_grad(|| {
        for Parameter { name, tensor, .. } in parameters {
            tensor.shallow_clone().copy_(&state[name]);
        }
    });
    Ok(())
}
