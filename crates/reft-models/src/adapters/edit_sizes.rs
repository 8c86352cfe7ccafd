use tch::{Kind, Tensor};

use crate::{
    AdapterStack, ContextLimit, HookPoint, Hooks, Layout, Mode, Model, PaddingSide, Result, Row,
    Span, Stacked,
};

impl AdapterStack<'_> {
    /// How much the adapters change each token of a row: the largest `|edited − h| / |h|` over all hook points of the forward. 0: the token is
    /// changed nowhere.
    ///
    /// `h` is the input of a hook point, with the changes of earlier points. Tokens that an adapter puts before the row have no entry.
    ///
    /// # Errors
    /// A row that does not fit; errors of an adapter.
    pub fn edit_sizes(&self, model: &dyn Model, row: Row) -> Result<Vec<f64>> {
        let _guard = tch::no_grad_guard();
        row.input_ids.iter().try_for_each(|id| model.check_token(*id))?;
        let context = ContextLimit::of(model.description(), self);
        context.check([("the prompt", row.input_ids.len())])?;
        let layout = self.layout(Layout::new(vec![row], PaddingSide::Right)?);
        let hooks = self.hooks(&layout, Mode::Eval)?;
        let mut measured = Measured { hooks, largest: None };
        let _states = model.whole_pass(&layout, &mut measured)?;
        let sizes = match measured.largest {
            Some(sizes) => Vec::<f64>::try_from(layout.own(&sizes, 0).to_kind(Kind::Double))
                .expect("invariant: sizes are a vector"),
            None => vec![0.0; layout.width()],
        };
        Ok(sizes[self.virtual_tokens()..].to_vec())
    }
}

/// Hooks that record the largest change of each token.
struct Measured<'a> {
    hooks: Stacked<'a>,
    /// `[b, t]` in f32.
    largest: Option<Tensor>,
}

impl Hooks for Measured<'_> {
    fn visit(&mut self, point: HookPoint, h: Tensor, span: &Span) -> Result<Tensor> {
        let before = h.shallow_clone();
        let after = self.hooks.visit(point, h, span)?;
        // virtual tokens replace no token
        if matches!(point, HookPoint::Embeddings) || after.data_ptr() == before.data_ptr() {
            return Ok(after);
        }
        let norm = |x: &Tensor| {
            x.to_kind(Kind::Float).norm_scalaropt_dim(2.0, [-1i64].as_slice(), false) // [b, t]
        };
        let size =
            norm(&(&after - &before)) / norm(&before).clamp_min(f64::from(f32::MIN_POSITIVE));
        self.largest = Some(match self.largest.take() {
            Some(largest) => largest.maximum(&size),
            None => size,
        });
        Ok(after)
    }

    fn touches(&self, point: HookPoint, span: &Span) -> bool {
        self.hooks.touches(point, span)
    }

    fn prefix_length(&self) -> usize {
        self.hooks.prefix_length()
    }

    fn prefix(&mut self, layer: usize, span: &Span) -> Option<(Tensor, Tensor)> {
        self.hooks.prefix(layer, span)
    }
}
