use reft_models::{Decoder, Place, Weights};
use reft_train::Model;
use tch::{Device, Kind};

use crate::das::place::Part;
use crate::error::{Error, Result};

/// A model that can be searched.
pub trait Searched {
    /// The model that is run.
    fn model(&self) -> &dyn Model;

    /// Number of layers.
    fn layers(&self) -> usize;

    /// Where a part of a layer is, and its number of coordinates.
    ///
    /// # Errors
    /// [`Error::OptionValue`] if there is no such part.
    fn place(&self, layer: usize, part: Part) -> Result<(Place, i64)>;

    /// A model of the same shape whose weights are random.
    ///
    /// # Errors
    /// If it cannot be made.
    fn untrained(&self, seed: u64) -> Result<Box<dyn Searched + '_>>;
}

impl Searched for Decoder {
    fn model(&self) -> &dyn Model {
        self
    }

    fn layers(&self) -> usize {
        self.config().num_hidden_layers
    }

    fn place(&self, layer: usize, part: Part) -> Result<(Place, i64)> {
        let config = self.config();
        let heads = config.num_attention_heads;
        if matches!(part, Part::Head(head) if head >= heads) {
            let expected = format!("head_0 to head_{}", heads - 1);
            return Err(Error::OptionValue { option: "site", found: part.to_string(), expected });
        }
        let place = part.place(layer, config.head_dim);
        let size = place.size_in(config)?;
        Ok((place, size))
    }

    fn untrained(&self, seed: u64) -> Result<Box<dyn Searched + '_>> {
        tch::manual_seed(seed as i64);
        if let Device::Cuda(_) = self.device() {
            tch::Cuda::manual_seed_all(seed);
        }
        let config = self.config().clone();
        let weights = Weights::random(&config);
        let kind: Kind = self.kind();
        Ok(Box::new(Decoder::from_weights(config, &weights, kind, self.device())?))
    }
}
