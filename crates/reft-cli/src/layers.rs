//! `--layers`: which decoder blocks are edited.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Layers by number, or all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Layers {
    /// Every decoder block.
    #[default]
    All,
    /// These, 0-based, in ascending order, each once.
    Some(Vec<usize>),
}

impl Layers {
    /// The layers of a model with `n` of them.
    ///
    /// # Errors
    /// If one is out of range.
    pub fn of_model(&self, n: usize) -> Result<Vec<usize>> {
        let Self::Some(layers) = self else { return Ok((0..n).collect()) };
        if let Some(layer) = layers.iter().find(|layer| **layer >= n) {
            bail!(
                "--layers: layer {layer} is out of range, the model has {n} layers, 0 to {}",
                n - 1
            );
        }
        Ok(layers.clone())
    }

    fn from_list(mut layers: Vec<usize>) -> Result<Self> {
        layers.sort_unstable();
        if let Some(pair) = layers.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("layer {} is named twice; name each layer once", pair[0]);
        }
        if layers.is_empty() {
            bail!("no layer is named; use all, or layers such as 3;9;18");
        }
        Ok(Self::Some(layers))
    }
}

impl FromStr for Layers {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        if s.trim() == "all" {
            return Ok(Self::All);
        }
        let number = |part: &str| {
            let part = part.trim();
            part.parse().or_else(|_| {
                bail!("{part:?} in {s:?} is no layer; use all, one layer such as 15, or several such as 3;9;18 (counted from 0)")
            })
        };
        Self::from_list(s.split([';', ',']).map(number).collect::<Result<_>>()?)
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Some(layers) => {
                let numbers: Vec<String> = layers.iter().map(usize::to_string).collect();
                f.write_str(&numbers.join(";"))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Layers {
    /// Takes what the flag takes, and also a number or a list of numbers.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LayersVisitor;

        impl<'de> Visitor<'de> for LayersVisitor {
            type Value = Layers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"all\", a layer, or layers such as \"3;9;18\" or [3, 9, 18]")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Layers, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, layer: i64) -> Result<Layers, E> {
                self.visit_str(&layer.to_string())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Layers, A::Error> {
                let mut layers = Vec::new();
                while let Some(layer) = list.next_element()? {
                    layers.push(layer);
                }
                Layers::from_list(layers).map_err(A::Error::custom)
            }
        }

        deserializer.deserialize_any(LayersVisitor)
    }
}

impl serde::Serialize for Layers {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_all_one_or_several_in_any_order() -> Result<()> {
        let layers = |text: &str| text.parse::<Layers>()?.of_model(20);
        assert_eq!(layers("all")?, (0..20).collect::<Vec<_>>());
        assert_eq!(layers("15")?, [15]);
        assert_eq!(layers("18;3;9")?, [3, 9, 18]);
        assert_eq!(layers("3, 9,18")?, [3, 9, 18]);
        Ok(())
    }

    #[test]
    fn layers_out_of_range_repeated_or_misspelled_are_errors() {
        let layers = |text: &str| text.parse::<Layers>().and_then(|layers| layers.of_model(4));
        for wrong in
            ["4", "0;4", "1;1", "", ";", "1;", "-1", "all;1", "one", "1..3", "99999999999999999999"]
        {
            assert!(layers(wrong).is_err(), "{wrong:?} is taken for layers");
        }
    }

    #[test]
    fn a_config_file_may_hold_a_number_or_a_list() -> Result<()> {
        #[derive(Deserialize)]
        struct File {
            layers: Layers,
        }
        for text in ["layers = [18, 3, 9]", "layers = \"3;9;18\""] {
            assert_eq!(toml::from_str::<File>(text)?.layers, Layers::Some(vec![3, 9, 18]));
        }
        assert_eq!(toml::from_str::<File>("layers = 15")?.layers.to_string(), "15");
        for wrong in
            ["layers = [1, 1]", "layers = -1", "layers = 1.5", "layers = []", "layers = [-1]"]
        {
            assert!(toml::from_str::<File>(wrong).is_err(), "{wrong} is accepted");
        }
        Ok(())
    }
}
