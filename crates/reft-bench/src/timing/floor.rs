use std::path::Path;

use reft_core::Parameter;
use reft_models::{Adapter, Error, HookPoint, Hooks, Layout, Mode, Result, Span};
use tch::{Device, Kind, Tensor};

use crate::FLOOR;

/// The frozen floor: the cost of a step on the frozen model alone, before any method.
///
/// The embeddings require a gradient, so the forward saves activations and the backward runs through all layers. No hidden state is
/// changed and no weight has a gradient. A method that edits the first layers cannot be faster than this unless frozen work is cached.
#[derive(Debug)]
pub struct FloorAdapter {
    /// The trainer requires a parameter. This one takes no part in the forward, has no gradient and is never updated.
    placeholder: Tensor,
}

impl FloorAdapter {
    /// The floor of a model on a device.
    pub fn new(device: Device) -> Self {
        let placeholder = Tensor::zeros([1], (Kind::Float, device));
        Self { placeholder: placeholder.set_requires_grad(true) }
    }
}

impl Adapter for FloorAdapter {
    fn method(&self) -> &str {
        FLOOR
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("placeholder", &self.placeholder)]
    }

    fn hooks<'a>(&'a self, _layout: &Layout, _mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        Ok(Box::new(FloorHooks))
    }

    fn save(&self, _dir: &Path) -> Result<()> {
        let reason = "the frozen floor trains nothing and has nothing to save".to_owned();
        Err(Error::Adapter { reason })
    }
}

struct FloorHooks;

impl Hooks for FloorHooks {
    fn visit(&mut self, point: HookPoint, h: Tensor, _span: &Span) -> Result<Tensor> {
        match point {
            HookPoint::Embeddings => Ok(h.detach().set_requires_grad(true)),
            _ => Ok(h),
        }
    }
}
