use tch::Tensor;

use crate::adapters::low_rank_rows::{LowRankRow, LowRankTable, add_low_rank};
use crate::{AdapterStack, HookPoint, Hooks, Layout, Mode, Result, Span, Stacked, send};

/// The hooks of a batch whose rows are used with different adapters: each sees its own rows alone.
pub(crate) struct ByRow<'a> {
    groups: Vec<Group<'a>>,
    batch_size: usize,
    low_rank: LowRankTable,
}

/// A row of a batch.
pub(crate) struct Member<'r, 'a> {
    /// A number that stays the row's when others join or leave.
    pub(crate) id: u64,
    pub(crate) stack: &'r AdapterStack<'a>,
}

/// The rows of a batch that are used with one stack of adapters.
struct Group<'a> {
    stack: AdapterStack<'a>,
    ids: Vec<u64>,
    /// The rows' places in the batch.
    rows: Vec<usize>,
    /// The same on the device, made when it is needed; none, if they are all rows in order.
    index: Option<Tensor>,
    /// The rows alone, in the columns of the batch.
    layout: Layout,
    hooks: Stacked<'a>,
}

impl<'a> ByRow<'a> {
    /// The hooks for forwards over a batch, of which each row is used with its own stack. Those of earlier batches go on where all rows of a
    /// stack were in one.
    ///
    /// # Errors
    /// What an adapter refuses.
    pub(crate) fn new(
        members: &[Member<'_, 'a>],
        layout: &Layout,
        mode: Mode,
        earlier: &mut [Self],
    ) -> Result<Self> {
        let mut shared: Vec<(&AdapterStack<'a>, Vec<usize>)> = Vec::new();
        let adapted = |(_, member): &(usize, &Member)| !member.stack.entries().is_empty();
        for (row, Member { stack, .. }) in members.iter().enumerate().filter(adapted) {
            match shared.iter_mut().find(|(other, _)| other.is_same(stack)) {
                Some((_, rows)) => rows.push(row),
                None => shared.push((stack, vec![row])),
            }
        }
        let batch_size = layout.batch_size();
        let group = |(stack, rows): (&AdapterStack<'a>, Vec<usize>)| {
            let layout =
                if rows.len() == batch_size { layout.clone() } else { layout.keep_rows(&rows) };
            let ids: Vec<u64> = rows.iter().map(|row| members[*row].id).collect();
            let kept = earlier.iter_mut().find_map(|earlier| earlier.take(stack, &ids));
            let hooks = match kept {
                Some(hooks) => hooks,
                None => stack.hooks(&layout, mode)?,
            };
            Ok(Group { stack: stack.clone(), ids, rows, index: None, layout, hooks })
        };
        let groups = shared.into_iter().map(group).collect::<Result<_>>()?;
        let low_rank = earlier.iter_mut().map(|earlier| std::mem::take(&mut earlier.low_rank));
        let low_rank = low_rank.max_by_key(LowRankTable::len).unwrap_or_default();
        Ok(Self { groups, batch_size, low_rank })
    }

    /// What a projection makes of `x`, with the updates of low rank of those rows that have no more than such a one there, and which groups
    /// these are.
    fn with_low_rank(&mut self, point: HookPoint, y: Tensor, span: &Span) -> (Tensor, Vec<usize>) {
        let HookPoint::Output(site, _, x) = point else { return (y, Vec::new()) };
        let (mut groups, mut rows) = (Vec::new(), Vec::new());
        for (at, group) in self.groups.iter().enumerate() {
            let own_span = Span { layout: &group.layout, columns: span.columns.clone() };
            if group.hooks.touches(point, &own_span)
                && let Some(update) = group.hooks.low_rank(point, &own_span)
            {
                groups.push(at);
                let row = |(row, id): (&usize, &u64)| LowRankRow { row: *row, id: *id, update };
                rows.extend(group.rows.iter().zip(&group.ids).map(row));
            }
        }
        if groups.len() < 2 {
            return (y, Vec::new()); // alone it is computed as it says itself
        }
        (add_low_rank(&mut self.low_rank, site, rows, y, x), groups)
    }

    /// Takes out the hooks of a stack, for rows that are all among its own.
    fn take(&mut self, stack: &AdapterStack, ids: &[u64]) -> Option<Stacked<'a>> {
        let at = self.groups.iter().position(|group| group.stack.is_same(stack))?;
        let place = |id: &u64| self.groups[at].ids.iter().position(|own| own == id);
        let kept: Vec<usize> = ids.iter().map(place).collect::<Option<_>>()?;
        let mut hooks = self.groups.swap_remove(at).hooks;
        hooks.keep_rows(&kept);
        Some(hooks)
    }
}

impl Group<'_> {
    /// The rows' places on the device of a tensor.
    fn index(&mut self, beside: &Tensor) -> Tensor {
        let index = self.index.get_or_insert_with(|| {
            let rows: Vec<i64> = self.rows.iter().map(|row| *row as i64).collect();
            send(&Tensor::from_slice(&rows), beside.device())
        });
        index.shallow_clone()
    }
}

impl Hooks for ByRow<'_> {
    /// Without autograd: what rows become is written into one copy.
    fn visit(&mut self, point: HookPoint, mut h: Tensor, span: &Span) -> Result<Tensor> {
        let computed;
        (h, computed) = self.with_low_rank(point, h, span);
        let mut is_own = !computed.is_empty();
        for (at, group) in self.groups.iter_mut().enumerate() {
            if computed.contains(&at) {
                continue;
            }
            let own_span = Span { layout: &group.layout, columns: span.columns.clone() };
            if !group.hooks.touches(point, &own_span) {
                continue;
            }
            if group.rows.len() == self.batch_size {
                h = group.hooks.visit(point, h, &own_span)?;
                continue;
            }
            let index = group.index(&h);
            let own = h.index_select(0, &index);
            let input = match point {
                HookPoint::Output(_, _, x) => Some(x.index_select(0, &index)),
                _ => None,
            };
            let point = match (point, &input) {
                (HookPoint::Output(site, linear, _), Some(x)) => HookPoint::Output(site, linear, x),
                _ => point,
            };
            let own_span = Span { layout: &group.layout, columns: span.columns.clone() };
            // what it was is kept until then: memory that is free again may be that of what it has become
            let edited = group.hooks.visit(point, own.shallow_clone(), &own_span)?;
            if edited.data_ptr() != own.data_ptr() {
                if !is_own {
                    h = h.copy();
                    is_own = true;
                }
                let _ = h.index_copy_(0, &index, &edited);
            }
        }
        Ok(h)
    }

    fn touches(&self, point: HookPoint, span: &Span) -> bool {
        self.groups.iter().any(|group| {
            let own = Span { layout: &group.layout, columns: span.columns.clone() };
            group.hooks.touches(point, &own)
        })
    }

    /// The same for all rows: a batch is made of such.
    fn prefix_length(&self) -> usize {
        self.groups.iter().map(|group| group.hooks.prefix_length()).max().unwrap_or(0)
    }

    fn prefix(&mut self, layer: usize, span: &Span) -> Option<(Tensor, Tensor)> {
        let mut all: Option<(Tensor, Tensor)> = None;
        for group in &mut self.groups {
            let own_span = Span { layout: &group.layout, columns: span.columns.clone() };
            let Some((key, value)) = group.hooks.prefix(layer, &own_span) else { continue };
            if group.rows.len() == self.batch_size {
                return Some((key, value));
            }
            let index = group.index(&key);
            let empty = |of: &Tensor| {
                let size = of.size();
                let shape = [self.batch_size as i64, size[1], size[2], size[3]];
                Tensor::empty(shape, (of.kind(), of.device()))
            };
            let (keys, values) = all.unwrap_or_else(|| (empty(&key), empty(&value)));
            all = Some((keys.index_copy(0, &index, &key), values.index_copy(0, &index, &value)));
        }
        all
    }
}
