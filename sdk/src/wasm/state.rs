//! The real store. Only what is called from here makes a component import it.

use std::cell::OnceCell;

use super::bindings::wasi::keyvalue::store::{self, Bucket, Error};
use crate::StateError;

pub(crate) fn get(key: &str) -> Result<Option<Vec<u8>>, StateError> {
    with(|bucket| bucket.get(key))
}

pub(crate) fn set(key: &str, value: &[u8]) -> Result<(), StateError> {
    with(|bucket| bucket.set(key, value))
}

pub(crate) fn delete(key: &str) -> Result<(), StateError> {
    with(|bucket| bucket.delete(key))
}

pub(crate) fn keys() -> Result<Vec<String>, StateError> {
    with(|bucket| {
        let (mut keys, mut cursor) = (Vec::new(), None);
        loop {
            let page = bucket.list_keys(cursor)?;
            keys.extend(page.keys);
            cursor = page.cursor;
            if cursor.is_none() {
                return Ok(keys);
            }
        }
    })
}

/// Opens the bucket once for each instance.
fn with<T>(action: impl FnOnce(&Bucket) -> Result<T, Error>) -> Result<T, StateError> {
    thread_local! {
        static BUCKET: OnceCell<Bucket> = const { OnceCell::new() };
    }
    BUCKET.with(|opened| {
        let bucket = match opened.get() {
            Some(bucket) => bucket,
            None => {
                let bucket = store::open("default").map_err(StateError::from)?;
                opened.get_or_init(|| bucket)
            }
        };
        action(bucket).map_err(StateError::from)
    })
}

impl From<Error> for StateError {
    fn from(err: Error) -> Self {
        match err {
            Error::NoSuchStore | Error::AccessDenied => Self::NotGranted,
            Error::Other(reason) => Self::Refused(reason),
        }
    }
}
