//! Deployments, components and entries: stored for the registry, which alone knows what they mean.

use std::ops::ControlFlow;

use bytes::Bytes;
use millrace_core::digest::Digest;
use millrace_core::name::FunctionName;

use super::EmbeddedLog;
use super::committer::Committer;
use super::state::State;
use super::storage::{Op, Table, prefixed};
use super::{component, deployment, entry};
use crate::broker::deployments::check_entry;
use crate::broker::{DeployError, Deployed, Deployment, Deployments, Entry, EntryError, EntryName, Error, Report};

/// The one instance there is.
const INSTANCE: &str = "embedded";

impl Deployments for EmbeddedLog {
    async fn deployments(&self, seen: Option<u64>) -> Result<Deployed, Error> {
        let mut changes = self.state().watch_deployments();
        let changed = changes.wait_for(|changes| seen != Some(*changes)).await.map(|changes| *changes);
        let seen = changed.map_err(|_| Error::Fatal("the log was closed".to_owned()))?;
        self.blocking(move |state| deployed(state, seen)).await?
    }

    async fn append_deployment(
        &self,
        function: FunctionName,
        previous: u64,
        content: Bytes,
    ) -> Result<u64, DeployError> {
        self.alone(move |committer| committer.append_deployment(function, previous, &content)).await?
    }

    async fn put_component(&self, digest: Digest, content: Bytes) -> Result<(), Error> {
        if self.has_component(digest).await? {
            return Ok(());
        }
        let value = component::encode(&digest, &content);
        self.alone(move |committer| {
            let key = component::size_key(&digest);
            let size = component::encode_size(&key, content.len());
            let component = Op::Put(Table::Components, Bytes::copy_from_slice(digest.as_bytes()), value);
            committer.write(vec![component, Op::Put(Table::State, key.into(), size)])
        })
        .await?
    }

    async fn has_component(&self, digest: Digest) -> Result<bool, Error> {
        self.blocking(move |state| {
            let size = state.storage.get(Table::State, &component::size_key(&digest));
            Ok(size.map_err(|e| unreadable(Table::State, e))?.is_some())
        })
        .await?
    }

    async fn component(&self, digest: Digest) -> Result<Option<Bytes>, Error> {
        self.blocking(move |state| {
            let value = state.storage.get(Table::Components, digest.as_bytes());
            let value = value.map_err(|e| unreadable(Table::Components, e))?;
            let content = value.map(|value| component::decode(&digest, &value)).transpose();
            content.map_err(|e| unreadable(Table::Components, e))
        })
        .await?
    }

    async fn components(&self) -> Result<Vec<Digest>, Error> {
        self.blocking(|state| {
            let mut found = Vec::new();
            let scanned = state.storage.scan(Table::State, prefixed(&[component::TAG]), &mut |key, _| {
                found.push(component::digest_of(key));
                ControlFlow::Continue(())
            });
            scanned.map_err(|e| unreadable(Table::State, e))?;
            found.into_iter().map(|digest| digest.map_err(|e| unreadable(Table::State, e))).collect()
        })
        .await?
    }

    async fn remove_component(&self, digest: Digest) -> Result<(), Error> {
        self.alone(move |committer| {
            let component = Op::Remove(Table::Components, Bytes::copy_from_slice(digest.as_bytes()));
            committer.write(vec![component, Op::Remove(Table::State, component::size_key(&digest).into())])
        })
        .await?
    }

    async fn put_entry(&self, name: EntryName, content: Option<Bytes>, builds_on: u64) -> Result<(), EntryError> {
        check_entry(content.as_ref())?;
        self.alone(move |committer| committer.put_entry(&name, content.as_deref(), builds_on)).await?
    }

    async fn report(&self, content: Bytes) -> Result<(), Error> {
        let state = self.state();
        state.set_report(Report { instance: INSTANCE.to_owned(), at: state.options.clock.now(), content, own: true });
        Ok(())
    }

    async fn reports(&self) -> Result<Vec<Report>, Error> {
        Ok(self.state().report().into_iter().collect())
    }
}

fn unreadable(table: Table, e: impl std::fmt::Display) -> Error {
    Error::Transient(format!("cannot read keyspace `{}` of the log: {e}; restore it from a backup", table.name()))
}

fn deployed(state: &State, seen: u64) -> Result<Deployed, Error> {
    // Before the entries are read: if one is changed meanwhile, whoever builds on these is told.
    let entries_at = state.entries_at();
    let (entries, entries_lost) = entries(state)?;
    // One that cannot be read is an error.
    let (deployments, deployments_lost) = (deployments(state)?, false);
    Ok(Deployed { seen, deployments, deployments_lost, entries, entries_at, entries_lost })
}

fn deployments(state: &State) -> Result<Vec<Deployment>, Error> {
    let mut found = Vec::new();
    let scanned = state.storage.scan(Table::State, prefixed(&[deployment::TAG]), &mut |key, value| {
        found.push(deployment::decode(key, &value));
        ControlFlow::Continue(())
    });
    scanned.map_err(|e| unreadable(Table::State, e))?;
    let deployments = found.into_iter().map(|found| {
        let (function, number, content) = found.map_err(|e| unreadable(Table::State, e))?;
        Ok(Deployment { function, number, content })
    });
    deployments.collect()
}

/// All entries, and whether there are some whose names cannot be read. One that is damaged has no content, and keeps nobody from the others:
/// it means nothing to anybody, and were it not there, a token that cannot be read would be none.
fn entries(state: &State) -> Result<(Vec<Entry>, bool), Error> {
    let (mut found, mut unnamed) = (Vec::new(), false);
    let scanned = state.storage.scan(Table::State, prefixed(&[entry::TAG]), &mut |key, value| {
        let content = entry::decode(key, &value).unwrap_or_else(|error| {
            let key = String::from_utf8_lossy(key);
            tracing::error!(key = &*key, %error, "An entry of the log cannot be read and counts as one without content.");
            Bytes::new()
        });
        match entry::name_of(key) {
            Some(name) => found.push(Entry { name, content }),
            None => unnamed = true,
        }
        ControlFlow::Continue(())
    });
    scanned.map_err(|e| unreadable(Table::State, e))?;
    Ok((found, unnamed))
}

impl Committer {
    fn put_entry(&mut self, name: &EntryName, content: Option<&[u8]>, builds_on: u64) -> Result<(), EntryError> {
        if self.state.entries_at() != builds_on {
            return Err(EntryError::Conflict);
        }
        let key = entry::key(name);
        let op = match content {
            Some(content) => Op::Put(Table::State, key.clone().into(), entry::encode(&key, content)),
            None => Op::Remove(Table::State, key.into()),
        };
        self.write(vec![op])?;
        self.state.entry_changed();
        Ok(())
    }

    fn append_deployment(&mut self, function: FunctionName, previous: u64, content: &[u8]) -> Result<u64, DeployError> {
        let range = deployment::key(&function, 0)..deployment::key(&function, u64::MAX);
        let last = self.state.storage.last(Table::State, range).map_err(|e| unreadable(Table::State, e))?;
        let latest = match last {
            Some((key, value)) => deployment::decode(&key, &value).map_err(|e| unreadable(Table::State, e))?.1,
            None => 0,
        };
        if latest != previous {
            return Err(DeployError::Conflict { function, expected: previous, latest });
        }
        let key = deployment::key(&function, latest + 1);
        let value = deployment::encode(&key, content);
        self.write(vec![Op::Put(Table::State, key.into(), value)])?;
        self.state.deployment_added();
        Ok(latest + 1)
    }
}
