use std::ops::Range;
use std::rc::Rc;

use reft_models::{
    KeyValueRecorder, Layout, Model, NoHooks, PaddingSide, Past, Reach, Row, Span, beside, send,
};
use tch::{Device, Kind, Tensor};

use crate::Result;

/// The activations of a row that do not depend on trained parameters: tensors in the host's memory.
///
/// They are everything before a method's [`Reach`], or the cached part of a [`Reference`](crate::Reference). They do not depend on the batch
/// that asks for them: the row is computed by itself, or with the rows of its [group](crate::reuse::groups::Groups).
#[derive(Debug)]
pub(crate) struct FrozenRow {
    tensors: Vec<Tensor>,
}

impl FrozenRow {
    /// Computes rows in one forward without autograd, into the host's memory. All reaches have the same stage.
    pub(crate) fn compute(model: &dyn Model, rows: &[(Row, Reach)]) -> Result<Vec<Self>> {
        let _guard = tch::no_grad_guard();
        let blocks = model.description().num_hidden_layers;
        let stage = rows.iter().map(|(_, reach)| reach.stage).min().unwrap_or(0);
        let tokens = rows.iter().map(|(_, reach)| reach.token).max().unwrap_or(0);
        let layout =
            Layout::new(rows.iter().map(|(row, _)| row.clone()).collect(), PaddingSide::Right)?;
        let forward = model.forward(&layout.whole(), 0);
        let embeddings = forward.embed(&layout.input_ids(model.device()));
        let h = forward.run(0..stage, embeddings, None, &mut NoHooks)?; // [b, t, d]
        let mut recorder = KeyValueRecorder::default();
        if tokens > 0 && stage < blocks {
            let before = Span { layout: &layout, columns: 0..tokens };
            let mut forward = model.forward(&before, 0);
            forward.want_from(tokens - 1); // the last block needs only keys and values
            let before = h.narrow(1, 0, tokens as i64);
            let _ = forward.run(stage..blocks, before, Some(&mut recorder), &mut NoHooks)?;
        }
        let of_row = |(i, (row, reach)): (usize, &(Row, Reach))| {
            let (i, t, token) = (i as i64, row.input_ids.len() as i64, reach.token as i64);
            let of_block =
                |kv: &Tensor| beside(&kv.select(1, i).narrow(2, 0, token), &recorder.0[0]);
            let keys_and_values = (token > 0 && !recorder.0.is_empty()).then(|| {
                let of_blocks: Vec<Tensor> = recorder.0.iter().map(of_block).collect();
                Tensor::stack(&of_blocks, 0).to_device(Device::Cpu)
            });
            // a copy, so that the rest of h is freed
            let hidden_states = h.select(0, i).narrow(0, token, t - token).copy();
            let hidden_states = hidden_states.to_device(Device::Cpu);
            Self::from_tensors([hidden_states].into_iter().chain(keys_and_values))
        };
        Ok(rows.iter().enumerate().map(of_row).collect())
    }

    /// Memory that a row of `t` tokens will take.
    pub(crate) fn bytes_of(model: &dyn Model, t: usize, reach: Reach) -> usize {
        let description = model.description();
        let blocks = description.num_hidden_layers - reach.stage;
        let kv_size = (description.num_key_value_heads * description.head_dim) as usize;
        let hidden_states = (t - reach.token) * description.hidden_size as usize;
        let numbers = hidden_states + reach.token * 2 * blocks * kv_size;
        numbers * model.kind().elt_size_in_bytes()
    }

    /// A row made of these tensors, in the order of [`Self::tensors`].
    pub(crate) fn from_tensors(tensors: impl IntoIterator<Item = Tensor>) -> Self {
        Self { tensors: tensors.into_iter().collect() }
    }

    /// Its tensors.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.iter()
    }

    /// The input of stage `stage` at the tokens from `token` on: `[t − token, d]`.
    fn hidden_states(&self) -> &Tensor {
        &self.tensors[0]
    }

    /// Keys and values of the tokens before `token`, of the blocks from `stage` on: `[blocks, 2, n_kv, token, d_h]`. `None` if there
    /// is no such token or block.
    fn keys_and_values(&self) -> Option<&Tensor> {
        self.tensors.get(1)
    }

    /// Memory that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.tensors().map(|t| t.numel() * t.kind().elt_size_in_bytes()).sum()
    }

    /// The hidden states of rows as one batch `[b, width, d]` on a device: the input of a stage in the columns from the first touched
    /// token on.
    pub(crate) fn batch(rows: &[Rc<Self>], width: i64, (kind, device): (Kind, Device)) -> Tensor {
        let d = rows.first().map_or(0, |row| row.hidden_states().size()[1]);
        let hidden_states = Tensor::zeros([rows.len() as i64, width, d], (kind, Device::Cpu));
        for (i, row) in rows.iter().enumerate() {
            let t = row.hidden_states().size()[0];
            hidden_states.select(0, i as i64).narrow(0, 0, t).copy_(row.hidden_states());
        }
        send(&hidden_states, device)
    }
}

/// Keys and values of frozen columns; only the later columns have gradients.
#[derive(Debug)]
pub(crate) struct FrozenPast {
    /// For each part of the model: its first layer, and `[layers, 2, b, n_kv, columns, d_h]` on its device.
    keys_and_values: Vec<(usize, Tensor)>,
}

impl FrozenPast {
    /// The past of a batch's rows: all begin at `stage`, with `columns` columns before their first touched tokens.
    pub(crate) fn of_rows(
        rows: &[Rc<FrozenRow>],
        stage: usize,
        columns: i64,
        model: &dyn Model,
    ) -> Self {
        let (kind, placement) = (model.kind(), model.placement());
        let mut past: Option<Tensor> = None;
        for (i, row) in rows.iter().enumerate() {
            if let Some(own) = row.keys_and_values() {
                let [blocks, two, n_kv, token, d_h] = own.size()[..] else {
                    unreachable!("invariant: [blocks, 2, n_kv, token, d_h]")
                };
                let shape = [blocks, two, rows.len() as i64, n_kv, columns, d_h];
                let past = past.get_or_insert_with(|| Tensor::zeros(shape, (kind, Device::Cpu)));
                past.select(2, i as i64).narrow(3, columns - token, token).copy_(own);
            }
        }
        let runs = placement.runs(stage..model.description().num_hidden_layers);
        let of_run = |past: &Tensor, run: &Range<usize>| {
            let own = past.narrow(0, (run.start - stage) as i64, run.len() as i64);
            (run.start, send(&own, placement.device(run.start)))
        };
        let of_past = |past: &Tensor| runs.iter().map(|run| of_run(past, run)).collect();
        Self { keys_and_values: past.as_ref().map_or(Vec::new(), of_past) }
    }
}

impl Past for &FrozenPast {
    fn extend(&mut self, layer: usize, key: Tensor, value: Tensor) -> (Tensor, Tensor) {
        let mut parts = self.keys_and_values.iter().rev();
        let Some((first, past)) = parts.find(|(first, _)| *first <= layer) else {
            return (key, value);
        };
        let of_layer = past.select(0, (layer - first) as i64);
        let after = |i, own: &Tensor| Tensor::cat(&[&of_layer.select(0, i), own], 2);
        (after(0, &key), after(1, &value))
    }
}
