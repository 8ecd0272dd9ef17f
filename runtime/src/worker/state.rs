//! Between the log, which keeps a unit's state, and the sandbox, whose guests read it.

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use futures::future::BoxFuture;

use super::{Revision, Running};
use crate::broker::{Partition, StateReader};
use crate::sandbox::{CommittedState, Error};

/// What guests may read of what is committed: nothing, unless one of the revisions was granted state.
pub(super) fn committed<P: Partition, R: Revision>(
    running: &Running<R>,
    partition: &P,
) -> Option<Arc<dyn CommittedState>> {
    running.keeps_state().then(|| Arc::new(Stored(partition.state())) as Arc<dyn CommittedState>)
}

struct Stored<S>(S);

impl<S: StateReader> CommittedState for Stored<S> {
    fn get(&self, keys: Vec<ByteString>) -> BoxFuture<'static, Result<Vec<Option<Bytes>>, Error>> {
        let read = self.0.get(keys);
        Box::pin(async { read.await.map_err(|e| Error(e.to_string())) })
    }

    fn keys(&self, after: Option<ByteString>, max: usize) -> BoxFuture<'static, Result<Vec<ByteString>, Error>> {
        let read = self.0.keys(after, max);
        Box::pin(async { read.await.map_err(|e| Error(e.to_string())) })
    }
}
