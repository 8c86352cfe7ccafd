use std::hash::{BuildHasher, RandomState};

use tch::Tensor;

use crate::KvCache;

/// Number of blocks per allocation. Allocations are kept and reused: small long-lived tensors between large short-lived ones would fragment
/// the memory.
const SHELF: usize = 64;

/// Tokens per block: a shared beginning of prompts is a whole number of blocks.
pub(crate) const BLOCK: usize = 16;

/// Most blocks for which the tables reserve memory at the start.
const RESERVED: usize = 1 << 16;

/// Stands for no block.
const NONE: u32 = u32::MAX;

/// Keys and values of the frozen model for beginnings that several prompts share.
///
/// A tree of blocks of tokens: the path to a block holds all tokens of the prompt up to its last one, on which its keys and values depend. Only
/// blocks that no adapter touches are cached, so all adapters share them. If the cache is full, the least recently used leaf is dropped.
///
/// Blocks are numbered entries of tables whose memory is reserved at the start: the cache does not fragment the memory that requests allocate
/// and free.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    most_blocks: usize,
    blocks: Vec<Block>,
    /// The tokens of all blocks, [`BLOCK`] each.
    tokens: Vec<i64>,
    /// Hash table: by the hash of a block's tokens and of its predecessor, the first block with this hash. Its size is a power of two.
    same_hash: Vec<u32>,
    hasher: RandomState,
    /// Keys and values by block number, for each part of the model `[SHELF, layers, 2, n_kv, BLOCK, d_h]` on its device.
    shelves: Vec<Vec<Tensor>>,
    /// Counts uses of the cache: the time of [`Block::used`].
    clock: u64,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    /// The previous block; [`NONE`] for the first block of a prompt.
    before: u32,
    /// Number of blocks directly after it.
    after: u32,
    /// The next block with the same hash.
    next: u32,
    used: u64,
}

impl PrefixCache {
    pub(crate) fn new(most_tokens: usize) -> Self {
        let most_blocks = (most_tokens / BLOCK).min(NONE as usize);
        let reserved = most_blocks.min(RESERVED);
        Self {
            most_blocks,
            blocks: Vec::with_capacity(reserved),
            tokens: Vec::with_capacity(reserved * BLOCK),
            same_hash: vec![NONE; reserved.next_power_of_two()],
            ..Self::default()
        }
    }

    /// Whether the cache has room for any block.
    pub(crate) fn is_on(&self) -> bool {
        self.most_blocks > 0
    }

    /// Number of tokens in the cache.
    pub(crate) fn tokens(&self) -> usize {
        self.blocks.len() * BLOCK
    }

    /// The cached blocks at the beginning of a prompt.
    fn path(&self, ids: &[i64]) -> Vec<u32> {
        let mut path: Vec<u32> = Vec::new();
        for tokens in ids.chunks_exact(BLOCK) {
            let Some(block) = self.find(path.last().copied().unwrap_or(NONE), tokens) else {
                break;
            };
            path.push(block);
        }
        path
    }

    fn find(&self, before: u32, tokens: &[i64]) -> Option<u32> {
        let mut block = self.same_hash[self.hash(before, tokens)];
        while let Some(Block { before: own, next, .. }) = self.blocks.get(block as usize) {
            if *own == before && self.tokens_of(block) == tokens {
                return Some(block);
            }
            block = *next;
        }
        None
    }

    fn tokens_of(&self, block: u32) -> &[i64] {
        &self.tokens[block as usize * BLOCK..][..BLOCK]
    }

    fn hash(&self, before: u32, tokens: &[i64]) -> usize {
        self.hasher.hash_one((before, tokens)) as usize & (self.same_hash.len() - 1)
    }

    /// Number of a prompt's first tokens that are cached.
    pub(crate) fn known(&self, ids: &[i64]) -> usize {
        self.path(ids).len() * BLOCK
    }

    /// The keys and values of cached tokens, `[layers, 2, n_kv, t, d_h]` for each part of the model; `None` without tokens.
    pub(crate) fn read(&mut self, ids: &[i64]) -> Option<Vec<Tensor>> {
        let path = self.path(ids);
        self.use_now(&path);
        let blocks: Vec<Vec<Tensor>> = path.iter().map(|block| self.at(*block).collect()).collect();
        let of_part =
            |part: usize| Tensor::cat(&blocks.iter().map(|own| &own[part]).collect::<Vec<_>>(), 3);
        blocks.first().map(|first| (0..first.len()).map(of_part).collect())
    }

    fn use_now(&mut self, path: &[u32]) {
        self.clock += 1;
        for block in path {
            self.blocks[*block as usize].used = self.clock;
        }
    }

    /// The keys and values of a block, `[layers, 2, n_kv, BLOCK, d_h]` of each part of the model.
    fn at(&self, block: u32) -> impl Iterator<Item = Tensor> {
        let (shelf, place) = (block as usize / SHELF, block as usize % SHELF);
        self.shelves[shelf].iter().map(move |shelf| shelf.get(place as i64))
    }

    /// Caches the keys and values of a row's first tokens from a prefill, in whole blocks.
    pub(crate) fn keep(&mut self, ids: &[i64], cache: &KvCache, row: usize) {
        let path = self.path(ids);
        let known = path.len() * BLOCK;
        let end = (ids.len() / BLOCK).min(self.most_blocks) * BLOCK;
        if end <= known {
            return;
        }
        self.use_now(&path);
        let new = cache.columns_of(row, known..end); // [layers, 2, n_kv, t, d_h] each
        let mut before = path.last().copied().unwrap_or(NONE);
        for (i, tokens) in ids[known..end].chunks_exact(BLOCK).enumerate() {
            let block = |own: &Tensor| own.narrow(3, (i * BLOCK) as i64, BLOCK as i64);
            let keys_values: Vec<Tensor> = new.iter().map(block).collect();
            before = self.put(before, tokens, &keys_values);
        }
    }

    /// Adds a block after `before`, or as a first one; its keys and values are `[layers, 2, n_kv, BLOCK, d_h]` for each part of the model.
    fn put(&mut self, before: u32, tokens: &[i64], keys_values: &[Tensor]) -> u32 {
        let block = if self.blocks.len() < self.most_blocks {
            self.blocks.len() as u32
        } else {
            self.drop_oldest()
        };
        let (number, hash) = (block as usize, self.hash(before, tokens));
        let new = Block { before, after: 0, next: self.same_hash[hash], used: self.clock };
        self.same_hash[hash] = block;
        if number == self.blocks.len() {
            self.blocks.push(new);
            self.tokens.extend(tokens);
        } else {
            self.blocks[number] = new;
            self.tokens[number * BLOCK..][..BLOCK].copy_from_slice(tokens);
        }
        if let Some(before) = self.blocks.get_mut(before as usize) {
            before.after += 1;
        }
        if number / SHELF == self.shelves.len() {
            let shelf = |own: &Tensor| {
                let shape: Vec<i64> = [SHELF as i64].into_iter().chain(own.size()).collect();
                Tensor::empty(shape, (own.kind(), own.device()))
            };
            self.shelves.push(keys_values.iter().map(shelf).collect());
        }
        self.at(block).zip(keys_values).for_each(|(mut at, own)| at.copy_(own));
        block
    }

    /// Drops the least recently used leaf and returns its number for reuse.
    fn drop_oldest(&mut self) -> u32 {
        let ends = self.blocks.iter().enumerate().filter(|(_, block)| block.after == 0);
        let (oldest, Block { before, next, .. }) = ends
            .min_by_key(|(_, block)| block.used)
            .map(|(number, block)| (number as u32, *block))
            .expect("invariant: a branch has an end");
        let hash = self.hash(before, self.tokens_of(oldest));
        let (mut previous, mut block) = (NONE, self.same_hash[hash]);
        while block != oldest {
            previous = block;
            block = self.blocks[block as usize].next;
        }
        match self.blocks.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => self.same_hash[hash] = next,
        }
        if let Some(before) = self.blocks.get_mut(before as usize) {
            before.after -= 1;
        }
        oldest
    }

    /// Empties the cache, as the model's weights have changed.
    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
        self.tokens.clear();
        self.same_hash.fill(NONE);
        self.shelves.clear();
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
        prefixes.keep(&third, &filled(&third), 0);
        assert_eq!((prefixes.tokens(), prefixes.known(&third)), (2 * BLOCK, 2 * BLOCK));
    }

    /// The cache keeps the same blocks as a plain list of beginnings, and the tables are never reallocated.
    #[test]
    fn blocks_come_and_go_in_place() {
        let most = 6;
        let mut prefixes = PrefixCache::new(most * BLOCK);
        let place = (prefixes.blocks.as_ptr(), prefixes.tokens.as_ptr());
        // beginnings with the time of their last use
        let mut expected: Vec<(Vec<i64>, usize)> = Vec::new();
        for time in 0..600 {
            // 12 prompts of 1 to 4 blocks that differ in the first or the third one
            let (which, n) = (time * 7 % 12, 1 + time * 5 % 4);
            let of_block = |i: usize| if i < 2 { which / 3 } else { which } as i64;
            let ids: Vec<i64> =
                (0..n * BLOCK).map(|i| of_block(i / BLOCK) * 1000 + i as i64).collect();
            let beginnings = (1..=n).map(|blocks| &ids[..blocks * BLOCK]);
            let is_there = |own: &&[i64]| expected.iter().any(|(ids, _)| ids == own);
            let known = beginnings.clone().take_while(is_there).count();
            assert_eq!(prefixes.known(&ids), known * BLOCK, "time {time}");
            let read = prefixes.read(&ids[..known * BLOCK]).map(|read| read[0].flatten(0, -1));
            let read: Vec<f32> =
                read.map_or(Vec::new(), |read| read.try_into().unwrap_or_default());
            let keys = ids[..known * BLOCK].iter().map(|id| *id as f32);
            assert_eq!(read, keys.clone().chain(keys.map(|key| -key)).collect::<Vec<_>>());
            prefixes.keep(&ids, &filled(&ids), 0);
            for beginning in beginnings {
                expected.retain(|(ids, _)| ids != beginning);
                if expected.len() == most {
                    let is_end = |(ids, _): &&(Vec<i64>, usize)| {
                        !expected
                            .iter()
                            .any(|(other, _)| other.len() > ids.len() && other.starts_with(ids))
                    };
                    let oldest =
                        expected.iter().filter(is_end).min_by_key(|(_, used)| *used).cloned();
                    expected.retain(|own| Some(own) != oldest.as_ref());
                }
                expected.push((beginning.to_vec(), time));
            }
            assert_eq!(prefixes.tokens(), expected.len() * BLOCK);
        }
        assert_eq!((prefixes.blocks.as_ptr(), prefixes.tokens.as_ptr()), place);
    }
}
