//! State as one invocation sees it: its own writes, above those that are not committed yet, above what is committed.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use futures::future::BoxFuture;
use millrace_core::limits;
use millrace_core::state::{KeyPage, Overlay, StateWrite, Writes, lookup, page};

use super::Error;

/// What is committed of a unit's state.
pub trait CommittedState: Send + Sync {
    /// The values under these keys, one for each and in their order.
    fn get(&self, keys: Vec<ByteString>) -> BoxFuture<'static, Result<Vec<Option<Bytes>>, Error>>;

    /// The keys after `after` in ascending order, at most `max`; fewer only if there are no more.
    fn keys(&self, after: Option<ByteString>, max: usize) -> BoxFuture<'static, Result<Vec<ByteString>, Error>>;
}

/// Nothing is committed.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoState;

impl CommittedState for NoState {
    fn get(&self, keys: Vec<ByteString>) -> BoxFuture<'static, Result<Vec<Option<Bytes>>, Error>> {
        Box::pin(std::future::ready(Ok(vec![None; keys.len()])))
    }

    fn keys(&self, _after: Option<ByteString>, _max: usize) -> BoxFuture<'static, Result<Vec<ByteString>, Error>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
}

/// What there is before an invocation writes anything. Cheap to clone.
///
/// The overlay is that of the invocation's beginning. A commit that ends meanwhile changes nothing: what it wrote is the same in both.
#[derive(Clone)]
pub struct StateView {
    committed: Arc<dyn CommittedState>,
    overlay: Arc<Overlay>,
}

impl StateView {
    /// What is committed, with the writes above it that are not.
    #[must_use]
    pub fn new(committed: Arc<dyn CommittedState>, overlay: Arc<Overlay>) -> Self {
        Self { committed, overlay }
    }
}

impl fmt::Debug for StateView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateView").field("overlay", &self.overlay).finish_non_exhaustive()
    }
}

/// Why a handler's use of its state failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The handler asked for more than there is; the text says of what.
    #[error("{0}")]
    Refused(String),
    /// The host could not read: the attempt does not count.
    #[error("the state could not be read: {0}")]
    Unavailable(String),
}

impl From<Error> for StateError {
    fn from(Error(reason): Error) -> Self {
        Self::Unavailable(reason)
    }
}

/// The state during one invocation. Writes stay here, where later reads see them.
#[derive(Debug)]
pub struct StateBuffer {
    view: StateView,
    writes: Writes,
    /// Where each page that was listed ended.
    pages: Vec<ByteString>,
}

impl StateBuffer {
    /// Nothing written yet.
    #[must_use]
    pub fn new(view: StateView) -> Self {
        Self { view, writes: Writes::default(), pages: Vec::new() }
    }

    fn layers(&self) -> [&Writes; 3] {
        let [staged, sealed] = self.view.overlay.layers();
        [&self.writes, staged, sealed]
    }

    /// The value under a key, if there is one.
    ///
    /// # Errors
    /// If the key is too long, or the host could not read.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, StateError> {
        check_key(key)?;
        if let Some(known) = lookup(&self.layers(), key) {
            return Ok(known.cloned());
        }
        let values = self.view.committed.get(vec![key.into()]).await?;
        Ok(values.into_iter().next().flatten())
    }

    /// Stores a value, or removes it.
    ///
    /// # Errors
    /// If a bound is exceeded; nothing changes then.
    pub fn write(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), StateError> {
        check_key(key)?;
        let (key_bytes, value_bytes) = (key.len(), value.map_or(0, <[u8]>::len));
        let max = limits::STATE_VALUE_MAX_BYTES;
        refuse(value_bytes > max, || format!("the value has {value_bytes} bytes, more than {max}"))?;
        let earlier = self.writes.get(key);
        let max = limits::STATE_WRITES_MAX_KEYS;
        refuse(earlier.is_none() && self.writes.len() >= max, || {
            format!("the invocation has written {max} keys, and may not write more")
        })?;
        let replaced = earlier.map_or(0, |value| key_bytes + value.map_or(0, Bytes::len));
        let max = limits::STATE_WRITES_MAX_BYTES;
        refuse(self.writes.bytes() - replaced + key_bytes + value_bytes > max, || {
            format!("the invocation would write more than {max} bytes")
        })?;
        self.writes.push(StateWrite { key: key.into(), value: value.map(Bytes::copy_from_slice) });
        Ok(())
    }

    /// A page of keys in ascending order, and what to ask for to get the next one, if there is one. Without a cursor it is the first page.
    ///
    /// # Errors
    /// If this invocation was not given that cursor, it has listed too many pages, or the host could not read.
    pub async fn list(&mut self, cursor: Option<u64>) -> Result<(Vec<ByteString>, Option<u64>), StateError> {
        let at = |cursor: u64| {
            let ended = usize::try_from(cursor).ok().and_then(|at| self.pages.get(at)).cloned();
            ended.ok_or_else(|| StateError::Refused(format!("this invocation was not given the cursor {cursor}")))
        };
        let after = cursor.map(at).transpose()?;
        let max = limits::STATE_PAGES_MAX;
        refuse(self.pages.len() >= max, || format!("the invocation has listed {max} pages, and may not list more"))?;
        let max = limits::STATE_PAGE_MAX_KEYS;
        let committed = self.view.committed.keys(after.clone(), max).await?;
        let KeyPage { keys, next } = page(&self.layers(), &committed, after.as_ref(), max);
        let cursor = next.map(|next| {
            self.pages.push(next);
            self.pages.len() as u64 - 1
        });
        Ok((keys, cursor))
    }

    /// What was written.
    #[must_use]
    pub fn into_writes(self) -> Writes {
        self.writes
    }
}

fn check_key(key: &str) -> Result<(), StateError> {
    let (bytes, max) = (key.len(), limits::STATE_KEY_MAX_BYTES);
    refuse(key.is_empty(), || "the key is empty".to_owned())?;
    refuse(bytes > max, || format!("the key has {bytes} bytes, more than {max}"))
}

fn refuse(when: bool, why: impl FnOnce() -> String) -> Result<(), StateError> {
    if when { Err(StateError::Refused(why())) } else { Ok(()) }
}
