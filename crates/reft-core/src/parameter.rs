use tch::Tensor;

/// A trainable tensor, as an optimizer sees it.
#[derive(Debug)]
pub struct Parameter {
    /// Its name, unique within an adapter.
    pub name: String,
    /// The leaf that gradients gather in.
    pub tensor: Tensor,
    /// Whether weight decay has a meaning for it: not for the coordinates of a rotation.
    pub weight_decay: bool,
}

impl Parameter {
    /// A parameter that weight decay applies to.
    pub fn new(name: impl Into<String>, tensor: &Tensor) -> Self {
        Self { name: name.into(), tensor: tensor.shallow_clone(), weight_decay: true }
    }

    /// A parameter that weight decay must not touch.
    pub fn without_weight_decay(name: impl Into<String>, tensor: &Tensor) -> Self {
        Self { weight_decay: false, ..Self::new(name, tensor) }
    }
}
