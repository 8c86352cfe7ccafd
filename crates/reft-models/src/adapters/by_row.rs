use tch::Tensor;

use crate::adapters::low_rank_rows::{LowRankRow, LowRankTable, add_low_rank};
use crate::adapters::token_edits::add_token_edits;
use crate::{AdapterStack, HookPoint, Hooks, Layout, Mode, Result, Span, Stacked, send};

/// The hooks of a batch whose rows have different adapters: each stack's hooks see only its own rows.
pub(crate) struct ByRow<'a> {
    groups: Vec<Group<'a>>,
    batch_size: usize,
    low_rank: LowRankTable,
}

/// A row of a batch.
pub(crate) struct Member<'r, 'a> {
    /// A number that identifies the row while others join or leave.
    pub(crate) id: u64,
    pub(crate) stack: &'r AdapterStack<'a>,
}

/// The rows of a batch that share one stack of adapters.
struct Group<'a> {
    stack: AdapterStack<'a>,
    ids: Vec<u64>,
    /// The indices of the rows in the batch.
    rows: Vec<usize>,
    /// `rows` as a tensor on the device of the present hook point; made on first use.
    index: Option<Tensor>,
    /// The layout of these rows only, with the columns of the batch.
    layout: Layout,
    hooks: Stacked<'a>,
}

/// The columns of a pass, in the layout of some of its rows.
fn of_rows<'s>(layout: &'s Layout, span: &Span) -> Span<'s> {
    Span { layout, columns: span.columns.clone() }
}

/// Updates of the groups that can be computed together; these groups are removed from `touching`. A single such group stays in it: its own
/// hooks compute it.
fn taken<'g, 'a, T>(
    groups: &'g [Group<'a>],
    touching: &mut Vec<usize>,
    mut has: impl FnMut(&'g Group<'a>) -> Option<T>,
) -> Vec<T> {
    let (mut all, mut others) = (Vec::new(), Vec::new());
    for at in touching.iter().copied() {
        match has(&groups[at]) {
            Some(own) => all.push(own),
            None => others.push(at),
        }
    }
    if all.len() < 2 {
        return Vec::new();
    }
    *touching = others;
    all
}

impl<'a> ByRow<'a> {
    /// The hooks for forwards over a batch in which each row has its own stack. If an earlier batch had all rows of a stack, its hooks are
    /// reused.
    ///
    /// # Errors
    /// Errors of the adapters.
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

    /// The groups whose hooks act at a point of a pass.
    fn touching(&self, point: HookPoint, span: &Span) -> Vec<usize> {
        (0..self.groups.len()).filter(|at| self.groups[*at].touches(point, span)).collect()
    }

    /// The tensor at a point plus the updates that can be computed together; their groups are removed from `touching`.
    fn together(
        &mut self,
        point: HookPoint,
        h: Tensor,
        span: &Span,
        touching: &mut Vec<usize>,
    ) -> Tensor {
        let Self { groups, low_rank, .. } = self;
        match point {
            HookPoint::Output(site, _, x) => {
                let rows = taken(groups, touching, |group| {
                    let update = group.hooks.low_rank(point, &of_rows(&group.layout, span))?;
                    let row = |(row, id): (&usize, &u64)| LowRankRow { row: *row, id: *id, update };
                    Some(group.rows.iter().zip(&group.ids).map(row).collect::<Vec<_>>())
                });
                add_low_rank(low_rank, site, rows.into_iter().flatten().collect(), h, x)
            }
            HookPoint::Residual(_) => {
                let edits = taken(groups, touching, |group| {
                    let mut own = group.hooks.token_edits(point, &of_rows(&group.layout, span))?;
                    let width = span.width() as i64;
                    for token in own.iter_mut().flat_map(|edit| &mut edit.tokens) {
                        let row = group.rows[(*token / width) as usize] as i64;
                        *token = row * width + *token % width;
                    }
                    Some(own)
                });
                add_token_edits(h, &edits.concat())
            }
            HookPoint::Embeddings | HookPoint::Input(_) => h,
        }
    }

    /// Takes the hooks of a stack out, cut down to the rows `ids`; `None` if one of them is missing.
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
    fn touches(&self, point: HookPoint, span: &Span) -> bool {
        self.hooks.touches(point, &of_rows(&self.layout, span))
    }

    /// The indices of the rows on the device of a tensor.
    fn index(&mut self, beside: &Tensor) -> Tensor {
        let device = beside.device();
        let known = self.index.take().filter(|index| index.device() == device);
        let index = self.index.insert(known.unwrap_or_else(|| {
            let rows: Vec<i64> = self.rows.iter().map(|row| *row as i64).collect();
            send(&Tensor::from_slice(&rows), device)
        }));
        index.shallow_clone()
    }
}

impl Hooks for ByRow<'_> {
    /// Works without autograd only: the edited rows are written into one copy.
    fn visit(&mut self, point: HookPoint, mut h: Tensor, span: &Span) -> Result<Tensor> {
        let mut touching = self.touching(point, span);
        let all = touching.len();
        h = self.together(point, h, span, &mut touching);
        let mut is_own = touching.len() < all;
        for at in touching {
            let group = &mut self.groups[at];
            if group.rows.len() == self.batch_size {
                h = group.hooks.visit(point, h, &of_rows(&group.layout, span))?;
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
            // `own` lives until the comparison: otherwise the allocator could reuse its memory for `edited`
            let edited =
                group.hooks.visit(point, own.shallow_clone(), &of_rows(&group.layout, span))?;
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
        self.groups.iter().any(|group| group.touches(point, span))
    }

    /// All rows of a batch have the same prefix length.
    fn prefix_length(&self) -> usize {
        self.groups.iter().map(|group| group.hooks.prefix_length()).max().unwrap_or(0)
    }

    fn prefix(&mut self, layer: usize, span: &Span) -> Option<(Tensor, Tensor)> {
        let mut all: Option<(Tensor, Tensor)> = None;
        for group in &mut self.groups {
            let own_span = of_rows(&group.layout, span);
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
