/// Mixes several numbers into one seed, so that each draw of a run is independent of the draws before it.
///
/// The mixing function is SplitMix64's (Steele, Lea and Flood 2014).
pub fn seed_of(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |state, number| {
        let z = (state ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_numbers_and_other_orders_have_other_seeds() {
        let mut seeds = std::collections::BTreeSet::new();
        for a in 0..20 {
            for b in 0..20 {
                assert!(seeds.insert(seed_of(&[a, b])), "{a} {b}");
            }
        }
    }
}
