//! Deployments and components: stored for the registry, which alone knows what they mean.

use std::ops::ControlFlow;

use bytes::Bytes;
use millrace_core::name::FunctionName;

use super::EmbeddedLog;
use super::committer::Committer;
use super::deployment;
use super::frame::{Decoder, Encoder};
use super::state::State;
use super::storage::{Op, Table, prefixed};
use crate::broker::{DeployError, Deployment, Error};

/// The SHA-256 of a component.
pub type Digest = [u8; 32];

const COMPONENT: &str = "component";
const COMPONENT_VERSION: u8 = 1;

impl EmbeddedLog {
    /// Stores a deployment that builds on number `previous` (0 for the first); answers with its number. Durable when it
    /// returns.
    ///
    /// # Errors
    /// If the function's latest deployment is another one, or the log could not act.
    pub async fn append_deployment(
        &self,
        function: FunctionName,
        previous: u64,
        content: Bytes,
    ) -> Result<u64, DeployError> {
        self.alone(move |committer| committer.append_deployment(function, previous, &content)).await?
    }

    /// All deployments of all functions, by function and number.
    ///
    /// # Errors
    /// If the log could not be read.
    pub async fn deployments(&self) -> Result<Vec<Deployment>, Error> {
        self.blocking(deployments).await?
    }

    /// Stores a component under its digest. Durable when it returns.
    ///
    /// # Errors
    /// If the log could not act.
    pub async fn put_component(&self, digest: Digest, content: Bytes) -> Result<(), Error> {
        self.alone(move |committer| {
            let mut encoder = Encoder::new(COMPONENT_VERSION);
            encoder.raw(&content);
            let value = encoder.seal(&digest);
            committer.write(vec![Op::Put(Table::Components, Bytes::copy_from_slice(&digest), value)])
        })
        .await?
    }

    /// A component, if it is stored.
    ///
    /// # Errors
    /// If the log could not be read.
    pub async fn component(&self, digest: Digest) -> Result<Option<Bytes>, Error> {
        self.blocking(move |state| {
            let value = state.storage.get(Table::Components, &digest).map_err(|e| unreadable(Table::Components, e))?;
            let Some(value) = value else { return Ok(None) };
            let decoder = Decoder::open(COMPONENT, COMPONENT_VERSION, &digest, &value);
            let content = decoder.map_err(|e| unreadable(Table::Components, e))?.remainder();
            Ok(Some(value.slice_ref(content)))
        })
        .await?
    }
}

fn unreadable(table: Table, e: impl std::fmt::Display) -> Error {
    Error::Transient(format!("cannot read keyspace `{}` of the log: {e}; restore it from a backup", table.name()))
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

impl Committer {
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
        Ok(latest + 1)
    }
}
