use reft_models::{Decoder, Model, Place, Weights};

use crate::error::{Result, refuse};
use crate::interchange::base_runs::BaseRuns;
use crate::search::component_or_head::ComponentOrHead;

/// A model that can be searched.
pub trait Searched {
    /// The model that is run.
    fn model(&self) -> &dyn Model;

    /// A model of the same shape whose weights are random.
    ///
    /// # Errors
    /// If it cannot be made.
    fn untrained(&self, seed: u64) -> Result<Box<dyn Searched + '_>>;

    /// Its base runs.
    fn base_runs(&self) -> BaseRuns<'_> {
        BaseRuns::new(self.model())
    }

    /// Where a component or head of a layer is, and its number of coordinates.
    ///
    /// # Errors
    /// [`Error::OptionValue`](crate::Error::OptionValue) if there is none.
    fn place(&self, layer: usize, of_layer: ComponentOrHead) -> Result<(Place, i64)> {
        let model = self.model().description();
        let heads = model.num_attention_heads;
        if matches!(of_layer, ComponentOrHead::Head(head) if head >= heads) {
            return refuse("site", of_layer.to_string(), format!("head_0 to head_{}", heads - 1));
        }
        let place = of_layer.place(layer, model.head_dim);
        let size = model.size_of(&place)?;
        Ok((place, size))
    }
}

impl Searched for Decoder {
    fn model(&self) -> &dyn Model {
        self
    }

    fn untrained(&self, seed: u64) -> Result<Box<dyn Searched + '_>> {
        tch::manual_seed(seed as i64);
        if self.device().is_cuda() {
            tch::Cuda::manual_seed_all(seed);
        }
        let weights = Weights::random(&self.description().tensors);
        let config = self.config().clone();
        Ok(Box::new(Decoder::from_weights(config, &weights, self.kind(), self.device())?))
    }
}
