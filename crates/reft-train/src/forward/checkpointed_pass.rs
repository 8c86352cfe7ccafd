use reft_models::{Cut, Hooks, beside};
use tch::{Kind, Tensor};

use crate::forward::pass::Pass;
use crate::{Outputs, Result, seed_of};

/// A forward with activation checkpointing (Chen et al. 2016, arXiv:1604.06174), one segment per block.
///
/// The forward keeps only the input of each block; the backward runs each block again, with its hooks, and differentiates it alone. So memory
/// holds the inputs of all blocks and the activations of one. Both runs of a block draw the same dropout.
pub(crate) struct CheckpointedPass<'p> {
    pass: Pass<'p>,
    seed: u64,
    cuts: Vec<Cut>,
    /// The input of each block, and the block.
    inputs: Vec<(usize, Tensor)>,
    /// The leaf that stands for the last block's output.
    output: Tensor,
}

impl<'p> CheckpointedPass<'p> {
    /// Runs the forward. Its outputs are to be differentiated before [`Self::backward`].
    pub(crate) fn forward(mut pass: Pass<'p>, seed: u64) -> Result<(Self, Outputs<'p>)> {
        let cuts = pass.hooks.cut();
        let mut h = pass.input();
        let mut inputs = Vec::with_capacity(pass.stages().len());
        {
            let _guard = tch::no_grad_guard();
            for block in pass.stages() {
                inputs.push((block, h.shallow_clone()));
                h = run_block(&mut pass, seed, block, h)?;
            }
        }
        let output = h.detach().set_requires_grad(true);
        let outputs = pass.finish(output.shallow_clone())?;
        Ok((Self { pass, seed, cuts, inputs, output }, outputs))
    }

    /// Continues a backward that has come to the outputs, block by block.
    pub(crate) fn backward(mut self) -> Result<()> {
        while let Some((block, input)) = self.inputs.pop() {
            let gradient = self.output.grad();
            if !gradient.defined() {
                return Ok(()); // the objective has not used this forward
            }
            // Below the first block there is something to train only if the embeddings are trained.
            let is_first = self.inputs.is_empty();
            let is_needed = !is_first || input.requires_grad();
            let leaf = input.detach().set_requires_grad(is_needed);
            let again = run_block(&mut self.pass, self.seed, block, leaf.shallow_clone())?;
            if again.requires_grad() {
                hand_on(&again, &gradient);
            }
            if is_first && is_needed {
                hand_on(&input, &leaf.grad());
            }
            self.output = leaf;
        }
        let handed: Vec<Tensor> = self
            .cuts
            .iter()
            .filter(|cut| cut.leaf.grad().defined())
            .map(|cut| (&cut.computed * cut.leaf.grad()).sum(Kind::Float))
            .collect();
        if let Some(first) = handed.first() {
            let handed: Vec<Tensor> = handed.iter().map(|own| beside(own, first)).collect();
            Tensor::stack(&handed, 0).sum(Kind::Float).backward();
        }
        Ok(())
    }
}

fn run_block(pass: &mut Pass, seed: u64, block: usize, h: Tensor) -> Result<Tensor> {
    tch::manual_seed(seed_of(&[seed, block as u64]) as i64);
    pass.run(block..block + 1, h)
}

/// Continues a backward from `tensor`, given its gradient.
fn hand_on(tensor: &Tensor, gradient: &Tensor) {
    (tensor * gradient).sum(Kind::Float).backward();
}
