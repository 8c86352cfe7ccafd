use tch::Tensor;

/// A trainable tensor, as an optimizer sees it.
#[derive(Debug)]
pub struct Parameter {
    /// Its name, unique within an adapter.
    pub name: String,
    /// The leaf that accumulates gradients, of any shape.
    pub tensor: Tensor,
    /// Whether weight decay applies to it; never to the coordinates of a rotation.
    pub weight_decay: bool,
    /// Whether it is the coordinates of a rotation, which may have a learning rate of their own.
    pub is_rotation: bool,
    /// Number of independent parts, the entries of the first dimension: the gradient of each part is clipped separately.
    /// All parameters of a run have the same number, usually 1.
    pub clip_groups: i64,
}

impl Parameter {
    /// A parameter of any shape that weight decay applies to.
    pub fn new(name: impl Into<String>, tensor: &Tensor) -> Self {
        Self {
            name: name.into(),
            tensor: tensor.shallow_clone(),
            weight_decay: true,
            is_rotation: false,
            clip_groups: 1,
        }
    }

    /// A parameter of any shape that weight decay must not touch.
    pub fn without_weight_decay(name: impl Into<String>, tensor: &Tensor) -> Self {
        Self { weight_decay: false, ..Self::new(name, tensor) }
    }

    /// The coordinates of a rotation, `[n, d, r]`: [`OrthonormalMap::raw`](crate::OrthonormalMap::raw). Weight decay must not touch them.
    pub fn rotation(name: impl Into<String>, tensor: &Tensor) -> Self {
        Self { is_rotation: true, ..Self::without_weight_decay(name, tensor) }
    }
}
