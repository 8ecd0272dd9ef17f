//! State of handlers that is not committed yet, and what a reader sees of it.
//!
//! A handler's state is a map from keys to values, one for each unit of ownership. What a handler writes lies in layers above what is
//! committed: the writes of the invocation under way, those of settlements that are not sealed, those of the commit under way.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use bytestring::ByteString;

/// One change of a unit's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateWrite {
    /// What it is found by.
    pub key: ByteString,
    /// What is stored from now on; none removes what is.
    pub value: Option<Bytes>,
}

impl StateWrite {
    /// What it counts for: the bytes of its key and its value.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        size_bytes(&self.key, self.value.as_ref())
    }
}

fn size_bytes(key: &ByteString, value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(0, Bytes::len)
}

/// Writes, of each key the last one. Takes no memory while it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    by_key: BTreeMap<ByteString, Option<Bytes>>,
    bytes: usize,
}

impl Writes {
    /// Adds a write, in place of an earlier one of the same key.
    pub fn push(&mut self, StateWrite { key, value }: StateWrite) {
        self.bytes += size_bytes(&key, value.as_ref());
        if let Some((earlier, value)) = self.by_key.remove_entry(&key) {
            self.bytes -= size_bytes(&earlier, value.as_ref());
        }
        self.by_key.insert(key, value);
    }

    /// What this key was written to, if it was written: none in it says that it was deleted.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Option<&Bytes>> {
        self.by_key.get(key).map(Option::as_ref)
    }

    /// How many keys were written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Bytes of all keys and values.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// All writes, by key.
    pub fn iter(&self) -> impl Iterator<Item = StateWrite> + '_ {
        self.by_key.iter().map(|(key, value)| StateWrite { key: key.clone(), value: value.clone() })
    }

    /// The keys within bounds, and whether they are there after the write.
    fn range<'a>(
        &'a self,
        after: Option<&ByteString>,
        up_to: Option<&ByteString>,
    ) -> impl Iterator<Item = (&'a ByteString, bool)> {
        let range = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let range = self.by_key.range::<ByteString, _>(range).map(|(key, value)| (key, value.is_some()));
        range.take_while(move |(key, _)| up_to.is_none_or(|last| *key <= last))
    }
}

impl FromIterator<StateWrite> for Writes {
    fn from_iter<I: IntoIterator<Item = StateWrite>>(writes: I) -> Self {
        let mut all = Self::default();
        writes.into_iter().for_each(|write| all.push(write));
        all
    }
}

/// What a unit's settled events have written and no commit has made durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    /// Joins the next commit.
    staged: Writes,
    /// In the commit under way.
    sealed: Writes,
}

impl Overlay {
    /// Takes in what an event wrote that completed.
    pub fn stage(&mut self, writes: Writes) {
        if self.staged.is_empty() {
            self.staged = writes;
        } else {
            writes.by_key.into_iter().for_each(|(key, value)| self.staged.push(StateWrite { key, value }));
        }
    }

    /// What a commit must write. It stays visible until [`Overlay::committed`].
    ///
    /// # Panics
    /// If a commit is under way: only one is at a time.
    pub fn seal(&mut self) -> Vec<StateWrite> {
        assert!(self.sealed.is_empty(), "one commit of a unit is under way at a time");
        self.sealed = std::mem::take(&mut self.staged);
        self.sealed.iter().collect()
    }

    /// The commit under way is durable: readers of what is committed see its writes from now on.
    pub fn committed(&mut self) {
        self.sealed = Writes::default();
    }

    /// Whether all that was written is committed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.staged.is_empty() && self.sealed.is_empty()
    }

    /// Bytes that the next commit writes.
    #[must_use]
    pub const fn staged_bytes(&self) -> usize {
        self.staged.bytes()
    }

    /// Its layers, newest first.
    #[must_use]
    pub const fn layers(&self) -> [&Writes; 2] {
        [&self.staged, &self.sealed]
    }
}

/// What the newest of these layers that knows the key says of it: none if what is committed decides, none in it if it was deleted.
#[must_use]
pub fn lookup<'a>(layers: &[&'a Writes], key: &str) -> Option<Option<&'a Bytes>> {
    layers.iter().find_map(|layer| layer.get(key))
}

/// Some of the keys there are, in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPage {
    /// The keys.
    pub keys: Vec<ByteString>,
    /// Where to go on, if there may be more: after this key.
    pub next: Option<ByteString>,
}

/// The keys after `after`, at most `max`, as they are with these layers, the newest first, above what is committed. `committed` holds the
/// committed keys after `after`, in ascending order; fewer than `max` of them are all there are.
#[must_use]
pub fn page(layers: &[&Writes], committed: &[ByteString], after: Option<&ByteString>, max: usize) -> KeyPage {
    // Beyond the last committed key it is not known what there is, unless it was the last of all.
    let up_to = if committed.len() < max { None } else { committed.last() };
    let mut present: BTreeMap<&ByteString, bool> = committed.iter().map(|key| (key, true)).collect();
    for layer in layers.iter().rev() {
        present.extend(layer.range(after, up_to));
    }
    let mut there = present.into_iter().filter(|(_, there)| *there).map(|(key, _)| key.clone());
    let keys: Vec<ByteString> = there.by_ref().take(max).collect();
    let next = if there.next().is_some() { keys.last().cloned() } else { up_to.cloned() };
    KeyPage { keys, next }
}

#[cfg(test)]
mod tests;
