//! A set of 128-bit hashes that grows in small steps.
//!
//! Hashes are ranked by a 64-bit mix of their bits. A shard is an open-addressing table in which the rank, scaled to the
//! table's length, is a hash's home, and in which hashes lie in the order of their ranks: a search ends at the first one
//! that ranks higher, and growing is one pass from front to back. A table of many hashes has many shards, one for each
//! value of the rank's upper bits, so that no insertion copies more than one shard.

const SHARD_BITS: u32 = 8;
const SHARDS: usize = 1 << SHARD_BITS;
/// Keys in the only shard at which it becomes [`SHARDS`] shards.
const SPLIT_AT: usize = 64 * SHARDS;
/// Slots after the last home, for hashes that are pushed there by the ones before.
const SPARE: usize = 8;
const HOMES_MIN: usize = 16;
/// A slot without a hash; the hash that looks like this is kept apart.
const EMPTY: u128 = 0;

/// A set of hashes.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// None, one, or [`SHARDS`].
    shards: Vec<Shard>,
    has_empty: bool,
    len: usize,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        self.shards.capacity() * size_of::<Shard>()
            + self.shards.iter().map(|shard| shard.slots.capacity() * size_of::<u128>()).sum::<usize>()
    }

    /// The beginning of a search. Beginning several before any is finished lets their reads of memory overlap.
    pub(super) fn search(&self, hash: u128) -> Search<'_> {
        let rank = rank(hash);
        let (shard, local_rank) = if self.shards.len() == 1 { (0, rank) } else { place(rank) };
        let slots = self.shards.get(shard).and_then(|s| s.slots.get(home(local_rank, s.homes())..)).unwrap_or_default();
        Search { slots, first: slots.first().copied().unwrap_or(EMPTY), is_empty_known: self.has_empty }
    }

    /// Whether it was not there.
    pub(super) fn insert(&mut self, hash: u128) -> bool {
        let is_new =
            if hash == EMPTY { !std::mem::replace(&mut self.has_empty, true) } else { self.insert_ranked(hash) };
        self.len += usize::from(is_new);
        is_new
    }

    fn insert_ranked(&mut self, hash: u128) -> bool {
        if self.shards.is_empty() {
            self.shards.push(Shard::default());
        }
        if self.shards.len() == 1 && self.len >= SPLIT_AT {
            self.split();
        }
        if let [only] = self.shards.as_mut_slice() {
            return only.insert(hash, |rank| rank);
        }
        let (shard, _) = place(rank(hash));
        self.shards[shard].insert(hash, |rank| place(rank).1)
    }

    fn split(&mut self) {
        let Some(whole) = self.shards.pop() else { return };
        let mut rest = whole.hashes().peekable();
        self.shards = (0..SHARDS)
            .map(|number| {
                let of_shard = std::iter::from_fn(|| rest.next_if(|&hash| place(rank(hash)).0 == number));
                let hashes: Vec<u128> = of_shard.collect();
                Shard::filled(&hashes, |rank| place(rank).1)
            })
            .collect();
    }
}

/// A search that has begun.
#[derive(Clone, Copy, Default)]
pub(super) struct Search<'a> {
    /// From the home of the hash on.
    slots: &'a [u128],
    first: u128,
    is_empty_known: bool,
}

impl Search<'_> {
    /// Whether the hash, the same one as in the beginning, is there.
    pub(super) fn finish(self, hash: u128) -> bool {
        match self.first {
            _ if hash == EMPTY => self.is_empty_known,
            EMPTY => false,
            first if first == hash => true,
            _ => position(self.slots, hash, rank(hash)).is_ok(),
        }
    }
}

/// The place of the hash among slots that begin at its home, or else the place where it belongs.
fn position(slots: &[u128], hash: u128, rank_of_hash: u64) -> Result<usize, usize> {
    for (at, &slot) in slots.iter().enumerate() {
        if slot == hash {
            return Ok(at);
        }
        if slot == EMPTY || (rank(slot), slot) > (rank_of_hash, hash) {
            return Err(at);
        }
    }
    Err(slots.len())
}

/// Any hash's upper bits would do for real hashes; the mix keeps a table quick for ones that only count up.
fn rank(hash: u128) -> u64 {
    let high = u64::try_from(hash >> 64).unwrap_or_default();
    let low = u64::try_from(hash & u128::from(u64::MAX)).unwrap_or_default();
    // The multiplier is 2^64 divided by the golden ratio (Knuth, The Art of Computer Programming 3, 6.4).
    (high ^ low).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The shard of a rank, and the rank within it.
fn place(rank: u64) -> (usize, u64) {
    (usize::try_from(rank >> (u64::BITS - SHARD_BITS)).unwrap_or_default(), rank << SHARD_BITS)
}

#[derive(Debug, Default)]
struct Shard {
    /// Homes, then [`SPARE`] slots; empty until the first hash comes.
    slots: Vec<u128>,
    len: usize,
}

impl Shard {
    /// A shard of hashes in the order of their ranks. `local` gives the rank within the shard.
    fn filled(hashes: &[u128], local: impl Fn(u64) -> u64 + Copy) -> Self {
        let mut homes = homes_for(hashes.len());
        loop {
            if let Some(slots) = laid_out(hashes.iter().copied(), homes, local) {
                return Self { slots, len: hashes.len() };
            }
            homes += homes / 8;
        }
    }

    fn homes(&self) -> usize {
        self.slots.len().saturating_sub(SPARE)
    }

    fn hashes(&self) -> impl Iterator<Item = u128> {
        self.slots.iter().copied().filter(|&slot| slot != EMPTY)
    }

    /// Whether it was not there.
    fn insert(&mut self, hash: u128, local: impl Fn(u64) -> u64 + Copy) -> bool {
        let rank = rank(hash);
        loop {
            let home = home(local(rank), self.homes());
            let slots = self.slots.get(home..).unwrap_or_default();
            let Err(distance) = position(slots, hash, rank) else { return false };
            let at = home + distance;
            let is_roomy = self.homes() >= homes_for(self.len + 1);
            let free = slots.iter().skip(distance).position(|&slot| slot == EMPTY);
            match free {
                Some(distance) if is_roomy => {
                    self.slots.copy_within(at..at + distance, at + 1);
                    self.slots[at] = hash;
                    self.len += 1;
                    return true;
                }
                _ => self.grow(local),
            }
        }
    }

    fn grow(&mut self, local: impl Fn(u64) -> u64 + Copy) {
        let mut homes = self.homes();
        loop {
            homes = (homes + homes / 8).max(HOMES_MIN);
            if let Some(slots) = laid_out(self.hashes(), homes, local) {
                self.slots = slots;
                return;
            }
        }
    }
}

/// A table of this many hashes is filled to five sixths at most: beyond, searches become long quickly.
fn homes_for(len: usize) -> usize {
    (len + len / 5 + 1).max(HOMES_MIN)
}

fn home(local_rank: u64, homes: usize) -> usize {
    usize::try_from((u128::from(local_rank) * homes as u128) >> 64).unwrap_or_default()
}

/// Slots with hashes that come in the order of their ranks; none if they pile up beyond the last slot.
fn laid_out(hashes: impl Iterator<Item = u128>, homes: usize, local: impl Fn(u64) -> u64) -> Option<Vec<u128>> {
    let mut slots = vec![EMPTY; homes + SPARE];
    let mut next = 0;
    for hash in hashes {
        let at = home(local(rank(hash)), homes).max(next);
        *slots.get_mut(at)? = hash;
        next = at + 1;
    }
    Some(slots)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn contains(table: &Table, hash: u128) -> bool {
        table.search(hash).finish(hash)
    }

    #[test]
    fn hashes_that_count_up_are_found_again() {
        let mut table = Table::default();
        for hash in 0..100_000 {
            assert!(table.insert(hash), "{hash}");
            assert!(!table.insert(hash), "{hash}");
        }
        assert_eq!(table.len(), 100_000);
        assert!((0..100_000).all(|hash| contains(&table, hash)));
        assert!((100_000..200_000).all(|hash| !contains(&table, hash)));
        assert!(table.allocated_bytes() < 25 * 100_000, "{}", table.allocated_bytes());
    }

    #[test]
    fn hashes_of_one_rank_are_kept_apart() {
        // The two halves cancel one another out in the rank.
        let mut table = Table::default();
        for half in 1..5_000_u128 {
            assert!(table.insert(half << 64 | half));
        }
        assert!((1..5_000_u128).all(|half| contains(&table, half << 64 | half)));
        assert_eq!(table.len(), 4_999);
    }

    proptest! {
        #[test]
        fn a_table_is_a_set(
            hashes in prop::collection::vec(prop_oneof![any::<u128>(), 0..50_u128, Just(u128::MAX), any::<u64>().prop_map(|h| u128::from(h) << 64)], 0..500),
            others in prop::collection::vec(any::<u128>(), 0..10),
        ) {
            let mut table = Table::default();
            let mut model = BTreeSet::new();
            for &hash in &hashes {
                prop_assert_eq!(table.insert(hash), model.insert(hash));
            }
            prop_assert_eq!(table.len(), model.len());
            for hash in hashes.into_iter().chain(others).chain(0..60) {
                prop_assert_eq!(contains(&table, hash), model.contains(&hash));
            }
        }

        #[test]
        fn a_table_that_was_split_is_a_set(seed in any::<u64>(), extra in 0..3_000_u64) {
            let hash = |n: u64| KeyLike(seed, n).hash();
            let mut table = Table::default();
            let count = SPLIT_AT as u64 - 1_000 + extra;
            for n in 0..count {
                prop_assert!(table.insert(hash(n)));
            }
            prop_assert!((0..count).all(|n| contains(&table, hash(n)) && !table.insert(hash(n))));
            prop_assert!((count..count + 1_000).all(|n| !contains(&table, hash(n))));
            prop_assert_eq!(table.len() as u64, count);
        }
    }

    /// A cheap source of distinct numbers that look random.
    struct KeyLike(u64, u64);

    impl KeyLike {
        fn hash(&self) -> u128 {
            let mixed = (self.0 ^ self.1.wrapping_mul(0xff51_afd7_ed55_8ccd)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
            u128::from(mixed ^ mixed >> 33) << 64 | u128::from(self.1)
        }
    }
}
