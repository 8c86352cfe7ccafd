use std::path::Path;

use reft_core::{ConstantEdit, Intervention, Parameter, Subspace};
use reft_models::{Adapter, Error, HookPoint, Hooks, Layout, Mode, Result, Site, Span};
use tch::Tensor;

/// Steering: adds a direction to the hidden states of a site, of every token: those of the prompt and those that are generated.
///
/// Nothing is trained and there is no file: a direction is made from texts, or is a subspace that was searched for.
#[derive(Debug)]
pub struct SteeringAdapter {
    site: Site,
    edit: ConstantEdit,
}

impl SteeringAdapter {
    /// Adds `strength` times a direction `[d]`.
    ///
    /// # Errors
    /// [`Error::Adapter`] if the strength is no number; what [`ConstantEdit::adding`] refuses.
    pub fn new(site: Site, direction: &Tensor, strength: f64) -> Result<Self> {
        if !strength.is_finite() {
            let reason = format!("strength is {strength}, expected a number");
            return Err(Error::Adapter { reason });
        }
        Ok(Self { site, edit: ConstantEdit::adding(&(direction * strength))? })
    }
}

impl Adapter for SteeringAdapter {
    fn method(&self) -> &str {
        "steering"
    }

    fn parameters(&self) -> Vec<Parameter> {
        Vec::new()
    }

    fn hooks<'a>(&'a self, _layout: &Layout, _mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        Ok(Box::new(SteeringHooks(self)))
    }

    fn save(&self, _dir: &Path) -> Result<()> {
        let reason = "steering trains nothing and has nothing to save".to_owned();
        Err(Error::Adapter { reason })
    }
}

struct SteeringHooks<'a>(&'a SteeringAdapter);

impl Hooks for SteeringHooks<'_> {
    fn touches(&self, point: HookPoint, _span: &Span) -> bool {
        matches!(point, HookPoint::Residual(site) if site == self.0.site)
    }

    fn visit(&mut self, point: HookPoint, h: Tensor, _span: &Span) -> Result<Tensor> {
        match point {
            HookPoint::Residual(site) if site == self.0.site => {
                Ok(self.0.edit.intervene(&h, &Subspace::Whole)?)
            }
            _ => Ok(h),
        }
    }
}
