//! `wasi:keyvalue/store`: a handler's state. There is one bucket, and all that a guest does to it is buffered.
//!
//! Bound here and not with wasmtime's crate, whose buckets are its own: here a read can wait for the log, and a write belongs to the
//! settlement of its event.

use std::fmt;

use bytestring::ByteString;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType, WasmList, WasmStr};

use super::LogLevel;
use super::bindings::Bucket;
use super::bindings::wasi::keyvalue::store::{Error, KeyResponse};
use super::host::State;
use super::state::{StateBuffer, StateError};

/// The interface, as components import it.
pub(super) const INTERFACE: &str = "wasi:keyvalue/store@0.2.0-draft";
/// The names of the one bucket that there is.
const BUCKETS: [&str; 2] = ["default", ""];
/// What the host says to a guest is logged under this name.
const CONTEXT: &str = "wasi:keyvalue";

/// The host could not read the state: not the guest's fault, so the attempt does not count.
#[derive(Debug)]
pub(super) struct Unavailable(pub(super) String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

type Answer<T> = wasmtime::Result<(Result<T, Error>,)>;

pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut store = linker.instance(INTERFACE)?;
    store.resource("bucket", ResourceType::host::<Bucket>(), |_, _| Ok(()))?;
    store.func_wrap("open", |store: StoreContextMut<'_, State>, (name,): (WasmStr,)| Ok((open(&store, &name)?,)))?;
    store.func_wrap_async("[method]bucket.get", |mut store, (_, key): (Resource<Bucket>, WasmStr)| {
        Box::new(async move {
            let key = owned(&store, &key)?;
            let value = buffer(&mut store)?.get(&key).await;
            answered(value.map(|value| value.map(|value| value.to_vec())))
        })
    })?;
    store.func_wrap_async("[method]bucket.exists", |mut store, (_, key): (Resource<Bucket>, WasmStr)| {
        Box::new(async move {
            let key = owned(&store, &key)?;
            answered(buffer(&mut store)?.get(&key).await.map(|value| value.is_some()))
        })
    })?;
    store.func_wrap(
        "[method]bucket.set",
        |mut store: StoreContextMut<'_, State>, (_, key, value): (Resource<Bucket>, WasmStr, WasmList<u8>)| {
            let (key, value) = (owned(&store, &key)?, value.as_le_slice(&store).to_vec());
            answered(buffer(&mut store)?.write(&key, Some(&value)))
        },
    )?;
    store.func_wrap(
        "[method]bucket.delete",
        |mut store: StoreContextMut<'_, State>, (_, key): (Resource<Bucket>, WasmStr)| {
            let key = owned(&store, &key)?;
            answered(buffer(&mut store)?.write(&key, None))
        },
    )?;
    store.func_wrap_async("[method]bucket.list-keys", |mut store, (_, cursor): (Resource<Bucket>, Option<u64>)| {
        Box::new(async move {
            let page = buffer(&mut store)?.list(cursor).await;
            answered(page.map(|(keys, cursor)| {
                let keys = keys.iter().map(ToString::to_string).collect();
                KeyResponse { keys, cursor }
            }))
        })
    })
}

/// All handles name the same bucket, so they need no state.
fn open(store: &StoreContextMut<'_, State>, name: &WasmStr) -> wasmtime::Result<Result<Resource<Bucket>, Error>> {
    let name = name.to_str(store)?;
    if BUCKETS.contains(&&*name) {
        return Ok(Ok(Resource::new_own(0)));
    }
    // The interface's error has no room for a reason.
    let shown = &name[..name.floor_char_boundary(80)];
    let reason = format!("there is no store `{shown}`: open `default`, the only one there is");
    store.data().logs.push(LogLevel::Error, CONTEXT, &reason);
    Ok(Err(Error::NoSuchStore))
}

fn buffer<'a>(store: &'a mut StoreContextMut<'_, State>) -> wasmtime::Result<&'a mut StateBuffer> {
    let state = store.data_mut().call_mut()?.state.as_mut();
    state.ok_or_else(|| wasmtime::format_err!("the invocation comes without state, which its function was granted"))
}

/// A key out of the guest's memory, which it cannot be larger than.
fn owned(store: &StoreContextMut<'_, State>, key: &WasmStr) -> wasmtime::Result<ByteString> {
    Ok(ByteString::from(&*key.to_str(store)?))
}

fn answered<T>(result: Result<T, StateError>) -> Answer<T> {
    match result {
        Ok(value) => Ok((Ok(value),)),
        Err(StateError::Refused(reason)) => Ok((Err(Error::Other(reason)),)),
        Err(StateError::Unavailable(reason)) => Err(Unavailable(reason).into()),
    }
}
