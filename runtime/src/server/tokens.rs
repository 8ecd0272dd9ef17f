//! The tokens that hold, kept up with the log.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use millrace_core::access::{Token, TokenId, Tokens};

use crate::api::Keyring;
use crate::broker::{Deployed, EntryError, EntryName, Error, Log};

/// What all requests share of tokens. Cheap to clone.
pub(super) struct Keys<L> {
    log: Arc<L>,
    known: Arc<RwLock<Known>>,
}

#[derive(Default)]
struct Known {
    /// What it was read with. It rises, so that nothing older takes the place of what is newer.
    seen: u64,
    tokens: Arc<Tokens>,
}

impl<L> Clone for Keys<L> {
    fn clone(&self) -> Self {
        Self { log: Arc::clone(&self.log), known: Arc::clone(&self.known) }
    }
}

impl<L> fmt::Debug for Keys<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

impl<L> Keys<L> {
    /// Knows none yet.
    pub(super) fn new(log: Arc<L>) -> Self {
        Self { log, known: Arc::default() }
    }

    /// Takes over what was read, unless something newer is known. Answers with what was read.
    pub(super) fn take_over(&self, deployed: &Deployed) -> Arc<Tokens> {
        let entries = deployed.entries.iter().map(|entry| (entry.name.as_str(), &entry.content[..]));
        let mut tokens = Tokens::read(entries);
        if deployed.entries_lost {
            tokens = tokens.after_a_loss();
        }
        let tokens = Arc::new(tokens);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if deployed.seen < known.seen {
            return tokens;
        }
        let was_open = known.tokens.count() > 0 || !known.tokens.are_needed();
        if was_open && deployed.entries_lost && tokens.count() == 0 {
            tracing::error!(
                "The log has lost its tokens, or what told of them, or has some that only a later version can read: nobody revoked them. Requests are refused until there are tokens \
                 again; http.admin-token-file gives this server one that is not in the log."
            );
        }
        *known = Known { seen: deployed.seen, tokens: Arc::clone(&tokens) };
        tokens
    }

    fn current(&self) -> Arc<Tokens> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner).tokens)
    }
}

impl<L: Log> Keys<L> {
    async fn read(&self) -> Result<(Arc<Tokens>, u64), Error> {
        let deployed = self.log.deployments(None).await?;
        Ok((self.take_over(&deployed), deployed.entries_at))
    }
}

impl<L: Log> Keyring for Keys<L> {
    fn tokens(&self) -> Arc<Tokens> {
        self.current()
    }

    fn refresh(&self) -> BoxFuture<'_, Result<(Arc<Tokens>, u64), Error>> {
        self.read().boxed()
    }

    fn put(&self, id: TokenId, token: Option<Token>, builds_on: u64) -> BoxFuture<'_, Result<(), EntryError>> {
        async move {
            let name: EntryName = id.entry().parse().map_err(Error::Fatal)?;
            let put = self.log.put_entry(name, token.map(|token| token.encode().into()), builds_on).await;
            // If it is not known whether it was written, what is there counts.
            let read = self.read().await;
            put?;
            Ok(read.map(drop)?)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use millrace_core::access::{Role, Shown};
    use millrace_core::time::Timestamp;

    use super::*;
    use crate::broker::Deployments as _;
    use crate::broker::embedded::{EmbeddedLog, Options};

    fn token(seed: u8) -> (TokenId, String, Token) {
        let shown = Shown::of_random([seed; 6], [seed; 32]);
        let token = Token {
            name: "ada".to_owned(),
            secret: shown.secret(),
            roles: [Role::Admin].into(),
            functions: Vec::new(),
            topics: Vec::new(),
            rate: None,
            created_ms: 0,
            created_by: String::new(),
            expires_ms: None,
        };
        (shown.id.clone(), shown.text(), token)
    }

    #[tokio::test]
    async fn what_is_put_holds_at_once_and_nothing_is_put_that_builds_on_what_was_before() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(EmbeddedLog::open(Options::new(directory.path().join("log"))).unwrap());
        let keys = Keys::new(Arc::clone(&log));
        let holds = |text: &str| keys.tokens().caller(text, Timestamp::EPOCH).is_some();
        let ((first, text, one), (second, other, two)) = (token(1), token(2));
        let (none, at) = keys.refresh().await.unwrap();
        assert!(!none.are_needed());
        let before = log.deployments(None).await.unwrap();
        keys.put(first.clone(), Some(one), at).await.unwrap();
        assert!(holds(&text));
        let late = keys.put(second, Some(two), at).await.unwrap_err();
        assert!(matches!(late, EntryError::Conflict), "{late}");
        assert!(!holds(&other));
        // What somebody read before takes the place of nothing.
        keys.take_over(&before);
        assert!(holds(&text));
        let (all, at) = keys.refresh().await.unwrap();
        assert_eq!(all.count(), 1);
        keys.put(first, None, at).await.unwrap();
        assert!(!holds(&text) && !keys.tokens().are_needed());
        // Only what has lost something stays closed.
        let now = log.deployments(None).await.unwrap();
        keys.take_over(&Deployed { seen: now.seen + 1, entries_lost: true, ..now });
        assert!(keys.tokens().are_needed());
    }
}
