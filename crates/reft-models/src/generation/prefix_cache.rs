use std::collections::HashMap;

use tch::Tensor;

use crate::KvCache;

/// Blocks that memory is taken for at once. It is kept and used again: small tensors that live long, made between large ones that do not,
/// would scatter the program's memory.
const SHELF: usize = 64;

/// Tokens of a block: a shared part begins with the prompt and ends with a block.
pub(crate) const BLOCK: usize = 16;

/// Keys and values of the frozen model for the beginnings of prompts, for prompts that begin alike.
///
/// A tree of blocks of tokens: a block's place is all the tokens from the prompt's first to its last, which is what its keys and values
/// depend on. Only what no adapter has touched is put in, so that all of them share it. Of more tokens than it may hold, the blocks at the ends
/// of the branches go first that were used longest ago.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    most_blocks: usize,
    blocks: HashMap<u64, Block>,
    /// Where keys and values stand, of each part of the model `[SHELF, layers, 2, n_kv, BLOCK, d_h]`, on its device.
    shelves: Vec<Vec<Tensor>>,
    /// Places on the shelves that no block has.
    free: Vec<usize>,
    /// The first blocks of prompts.
    roots: HashMap<Vec<i64>, u64>,
    next_id: u64,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Block {
    tokens: Vec<i64>,
    place: usize,
    before: Option<u64>,
    after: HashMap<Vec<i64>, u64>,
    used: u64,
}

impl PrefixCache {
    pub(crate) fn new(most_tokens: usize) -> Self {
        Self { most_blocks: most_tokens / BLOCK, ..Self::default() }
    }

    /// Whether it can hold anything.
    pub(crate) fn is_on(&self) -> bool {
        self.most_blocks > 0
    }

    /// Tokens whose keys and values it holds.
    pub(crate) fn tokens(&self) -> usize {
        self.blocks.len() * BLOCK
    }

    /// The blocks that a prompt begins with.
    fn path(&self, ids: &[i64]) -> Vec<u64> {
        let mut path: Vec<u64> = Vec::new();
        for tokens in ids.chunks_exact(BLOCK) {
            let Some(id) = self.next(path.last().copied(), tokens) else { break };
            path.push(id);
        }
        path
    }

    fn next(&self, after: Option<u64>, tokens: &[i64]) -> Option<u64> {
        let next = after.map_or(&self.roots, |id| &self.blocks[&id].after);
        next.get(tokens).copied()
    }

    /// How many of a prompt's first tokens are cached.
    pub(crate) fn known(&self, ids: &[i64]) -> usize {
        self.path(ids).len() * BLOCK
    }

    /// The keys and values of tokens that are known, `[layers, 2, n_kv, t, d_h]` of each part of the model; none of no tokens.
    pub(crate) fn read(&mut self, ids: &[i64]) -> Option<Vec<Tensor>> {
        let path = self.path(ids);
        self.clock += 1;
        for id in &path {
            self.blocks.entry(*id).and_modify(|block| block.used = self.clock);
        }
        let blocks: Vec<Vec<Tensor>> =
            path.iter().map(|id| self.at(self.blocks[id].place).collect()).collect();
        let of_part =
            |part: usize| Tensor::cat(&blocks.iter().map(|own| &own[part]).collect::<Vec<_>>(), 3);
        blocks.first().map(|first| (0..first.len()).map(of_part).collect())
    }

    /// The keys and values at a place, `[layers, 2, n_kv, BLOCK, d_h]` of each part of the model.
    fn at(&self, place: usize) -> impl Iterator<Item = Tensor> {
        self.shelves[place / SHELF].iter().map(move |shelf| shelf.get((place % SHELF) as i64))
    }

    /// A place that is free, for keys and values `[layers, 2, n_kv, BLOCK, d_h]` of each part of the model.
    fn place_for(&mut self, keys_values: &[Tensor]) -> usize {
        if let Some(place) = self.free.pop() {
            return place;
        }
        let first = self.shelves.len() * SHELF;
        let shelf = |own: &Tensor| {
            let shape: Vec<i64> = [SHELF as i64].into_iter().chain(own.size()).collect();
            Tensor::empty(shape, (own.kind(), own.device()))
        };
        self.shelves.push(keys_values.iter().map(shelf).collect());
        self.free.extend((first + 1..first + SHELF).rev());
        first
    }

    /// Keeps a prefill's keys and values of a row's first tokens, as far as they fill blocks.
    pub(crate) fn keep(&mut self, ids: &[i64], cache: &KvCache, row: usize) {
        let mut path = self.path(ids);
        let known = path.len() * BLOCK;
        let end = (ids.len() / BLOCK).min(self.most_blocks) * BLOCK;
        if end <= known {
            return;
        }
        self.clock += 1;
        let new = cache.columns_of(row, known..end); // [layers, 2, n_kv, t, d_h] each
        for (i, tokens) in ids[known..end].chunks_exact(BLOCK).enumerate() {
            let before = path.last().copied();
            let id = self.next_id;
            self.next_id += 1;
            let block = |own: &Tensor| own.narrow(3, (i * BLOCK) as i64, BLOCK as i64);
            let keys_values: Vec<Tensor> = new.iter().map(block).collect();
            let place = self.place_for(&keys_values);
            self.at(place).zip(&keys_values).for_each(|(mut at, own)| at.copy_(own));
            let (tokens, after) = (tokens.to_vec(), HashMap::new());
            let siblings = match before.and_then(|id| self.blocks.get_mut(&id)) {
                Some(block) => &mut block.after,
                None => &mut self.roots,
            };
            siblings.insert(tokens.clone(), id);
            let used = self.clock;
            self.blocks.insert(id, Block { tokens, place, before, after, used });
            path.push(id);
        }
        for id in &path[..known / BLOCK] {
            self.blocks.entry(*id).and_modify(|block| block.used = self.clock);
        }
        while self.blocks.len() > self.most_blocks {
            self.drop_oldest();
        }
    }

    /// Lets the block at the end of a branch go that was used longest ago; of equals the one that came last.
    fn drop_oldest(&mut self) {
        let ends = self.blocks.iter().filter(|(_, block)| block.after.is_empty());
        let oldest = ends.min_by_key(|(id, block)| (block.used, std::cmp::Reverse(**id)));
        let Some(block) = oldest.map(|(id, _)| *id).and_then(|id| self.blocks.remove(&id)) else {
            return;
        };
        self.free.push(block.place);
        match block.before.and_then(|before| self.blocks.get_mut(&before)) {
            Some(before) => before.after.remove(&block.tokens),
            None => self.roots.remove(&block.tokens),
        };
    }

    /// Forgets everything: the model's weights are others.
    pub(crate) fn clear(&mut self) {
        *self = Self { most_blocks: self.most_blocks, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    /// A cache of one layer whose keys are the tokens and whose values are their negatives.
    fn filled(ids: &[i64]) -> KvCache {
        let keys = Tensor::from_slice(ids).to_kind(Kind::Float).view([1, 1, 1, -1, 1]);
        let mut cache =
            KvCache::of_size(1, (1, 1, ids.len() as i64, 1), (Kind::Float, &Device::Cpu.into()));
        cache.fill(&[vec![Tensor::cat(&[&keys, &-&keys], 1)]]);
        cache
    }

    fn prompt(beginning: i64, n: usize, end: i64) -> Vec<i64> {
        (0..n as i64).map(|i| beginning * 1000 + i).chain([end]).collect()
    }

    #[test]
    fn prompts_share_what_they_begin_with() {
        let mut prefixes = PrefixCache::new(100 * BLOCK);
        let long = prompt(1, 3 * BLOCK, 7);
        prefixes.keep(&long, &filled(&long), 0);
        assert_eq!((prefixes.tokens(), prefixes.known(&long)), (3 * BLOCK, 3 * BLOCK));
        let shorter = prompt(1, 2 * BLOCK + 3, 9);
        assert_eq!(prefixes.known(&shorter), 2 * BLOCK);
        assert_eq!(prefixes.known(&prompt(2, 40, 9)), 0);
        assert_eq!(prefixes.known(&long[1..]), 0, "a block depends on all that is before it");
        let read = prefixes.read(&shorter).map(|read| read[0].flatten(0, -1));
        let read: Vec<f32> = read.map_or(Vec::new(), |read| read.try_into().unwrap_or_default());
        let keys = long[..2 * BLOCK].iter().map(|id| *id as f32);
        let expected: Vec<f32> = keys.clone().chain(keys.map(|key| -key)).collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn what_was_used_longest_ago_goes_from_the_ends() {
        let mut prefixes = PrefixCache::new(4 * BLOCK);
        let [first, second, third] = [1, 2, 3].map(|beginning| prompt(beginning, 2 * BLOCK, 0));
        prefixes.keep(&first, &filled(&first), 0);
        prefixes.keep(&second, &filled(&second), 0);
        let _ = prefixes.read(&first);
        prefixes.keep(&third, &filled(&third), 0);
        let known = [&first, &second, &third].map(|ids| prefixes.known(ids));
        assert_eq!(known, [2 * BLOCK, 0, 2 * BLOCK]);
        let longer = prompt(4, 3 * BLOCK, 0);
        prefixes.keep(&longer, &filled(&longer), 0);
        assert_eq!(prefixes.tokens(), 4 * BLOCK);
        assert_eq!(prefixes.known(&longer), 3 * BLOCK);
        // longer than all there is room for
        let endless = prompt(5, 9 * BLOCK, 0);
        prefixes.keep(&endless, &filled(&endless), 0);
        assert_eq!((prefixes.tokens(), prefixes.known(&endless)), (4 * BLOCK, 4 * BLOCK));
        prefixes.clear();
        assert_eq!((prefixes.tokens(), prefixes.known(&endless)), (0, 0));
        assert!(prefixes.is_on() && !PrefixCache::new(BLOCK - 1).is_on());
    }
}
