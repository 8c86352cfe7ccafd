use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::{LowRank, Site, send};

/// The low-rank updates of a batch's rows at one projection, one rank: for row `i` `y_i + s_i B_i A_i x_i`, all rows in two products.
///
/// The matrices are stacked in the order of the rows. They are kept from batch to batch, so only the matrices of a new row are copied.
#[derive(Debug)]
pub(crate) struct LowRankRows {
    /// The request in each slot.
    ids: Vec<u64>,
    a: Tensor, // [slots, in, r], f32
    b: Tensor, // [slots, r, out], f32, scaled
    /// The indices of the rows in the batch, here and (`index`) on the device.
    rows: Vec<usize>,
    index: Option<Tensor>,
}

/// The updates of a batch, by projection and rank.
pub(crate) type LowRankTable = BTreeMap<(Site, i64), LowRankRows>;

/// A row with an update.
pub(crate) struct LowRankRow<'a> {
    /// Its index in the batch.
    pub(crate) row: usize,
    /// Its request.
    pub(crate) id: u64,
    /// The update.
    pub(crate) update: LowRank<'a>,
}

impl LowRankRows {
    /// An empty stack for updates of the sizes of `like`.
    fn new(like: &LowRank) -> Self {
        let (rank, input) = like.a.size2().expect("invariant: A is a matrix");
        let options = (Kind::Float, like.a.device());
        let (a, b) = ([0, input, rank], [0, rank, like.b.size()[0]]);
        let (a, b) = (Tensor::empty(a, options), Tensor::empty(b, options));
        Self { ids: Vec::new(), a, b, rows: Vec::new(), index: None }
    }

    /// Sets the updates of a batch's rows; an update that has a slot already keeps it.
    fn set(&mut self, rows: &[LowRankRow]) {
        let slots = self.a.size()[0] as usize;
        if rows.len() > slots {
            let more = rows.len().max(2 * slots) as i64;
            let grown = |old: &Tensor| {
                let (n, size) = (self.ids.len() as i64, old.size());
                let new = Tensor::empty([more, size[1], size[2]], (Kind::Float, old.device()));
                new.narrow(0, 0, n).copy_(&old.narrow(0, 0, n));
                new
            };
            (self.a, self.b) = (grown(&self.a), grown(&self.b));
        }
        for (slot, LowRankRow { id, update, .. }) in rows.iter().enumerate() {
            if self.ids.get(slot) != Some(id) {
                let slot = slot as i64;
                self.a.get(slot).copy_(&update.a.tr());
                self.b.get(slot).copy_(&(update.b.tr() * update.scaling));
            }
        }
        self.ids = rows.iter().map(|row| row.id).collect();
        let places: Vec<usize> = rows.iter().map(|row| row.row).collect();
        if places != self.rows {
            (self.rows, self.index) = (places, None);
        }
    }

    /// The indices of the rows in the batch, on a device.
    fn index(&mut self, device: Device) -> Tensor {
        let index = self.index.get_or_insert_with(|| {
            let rows: Vec<i64> = self.rows.iter().map(|row| *row as i64).collect();
            send(&Tensor::from_slice(&rows), device)
        });
        index.shallow_clone()
    }

    /// `y` `[b, t, out]` with the rows' updates for the input `x` `[b, t, in]`.
    fn added(&mut self, y: &Tensor, x: &Tensor) -> Tensor {
        let n = self.rows.len() as i64;
        let is_all = self.rows.iter().copied().eq(0..y.size()[0] as usize);
        let index = (!is_all).then(|| self.index(y.device()));
        let of_rows = |all: &Tensor| match &index {
            Some(index) => all.index_select(0, index),
            None => all.shallow_clone(),
        };
        let x = of_rows(x).to_kind(Kind::Float);
        let update = x.bmm(&self.a.narrow(0, 0, n)).bmm(&self.b.narrow(0, 0, n)); // [n, t, out]
        let own = (of_rows(y) + update).to_kind(y.kind());
        match &index {
            Some(index) => y.index_copy(0, index, &own),
            None => own,
        }
    }
}

/// Adds the updates of some rows to `y` `[b, t, out]`, a projection's output for `x` `[b, t, in]`; `table` keeps the stacked matrices.
pub(crate) fn add_low_rank(
    table: &mut LowRankTable,
    site: Site,
    rows: Vec<LowRankRow>,
    mut y: Tensor,
    x: &Tensor,
) -> Tensor {
    let mut of_rank: BTreeMap<i64, Vec<LowRankRow>> = BTreeMap::new();
    for row in rows {
        of_rank.entry(row.update.a.size()[0]).or_default().push(row);
    }
    for (rank, mut rows) in of_rank {
        rows.sort_by_key(|row| row.row);
        let own = table.entry((site, rank)).or_insert_with(|| LowRankRows::new(&rows[0].update));
        own.set(&rows);
        y = own.added(&y, x);
    }
    y
}
