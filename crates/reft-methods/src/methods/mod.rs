//! The methods other than ReFT, one file each, and the lists of all methods. A new method is a file here and a line in one of the two lists.

pub(crate) mod bottleneck;
pub(crate) mod brep;
pub(crate) mod head_alone;
pub(crate) mod ia3;
pub(crate) mod lora;
pub(crate) mod prefix;
pub(crate) mod prompt;
pub(crate) mod red;
pub(crate) mod road;
pub(crate) mod steering;
pub(crate) mod weights;

use crate::MethodDeclaration;
use crate::reft::declaration as reft;

/// Every method that works on any model.
pub static METHODS: &[&MethodDeclaration] = &[
    &reft::LOREFT,
    &reft::DIREFT,
    &reft::DIREFT_ORTH,
    &reft::NOREFT,
    &reft::CONSREFT,
    &reft::LOBIREFT,
    &lora::LORA,
    &lora::RSLORA,
    &lora::DORA,
    &prefix::PREFIX,
    &prompt::PROMPT,
    &ia3::IA3,
    &road::ROAD,
    &red::RED,
    &brep::BREP,
    &steering::STEERING,
    &bottleneck::SERIES,
    &bottleneck::PARALLEL,
    &weights::full::FULL,
];

/// Methods that only some runs can use: they need a model with biases, or an objective with a head.
pub static SPECIAL_METHODS: &[&MethodDeclaration] =
    &[&weights::bitfit::BITFIT, &head_alone::HEAD_ALONE];
