//! Components that were uploaded and never became part of a revision, as when somebody was interrupted or refused after the upload.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_core::digest::Digest;
use millrace_core::revision::History;
use tokio::time::Instant;

use super::revisions::{Known, Revisions};
use crate::broker::{Error, Log};
use crate::registry::lock;

/// So long one is kept from when this process first saw it: whoever uploaded it has time to deploy it.
const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Between two looks at what is there.
const LOOK_EVERY: Duration = Duration::from_secs(10 * 60);

/// The components that no revision names, and since when that is known.
#[derive(Debug, Default)]
pub(super) struct Strays {
    since: BTreeMap<Digest, Instant>,
    looked_at: Option<Instant>,
}

impl Strays {
    /// Takes in what is there, and answers with what no revision has named for long enough.
    fn look(&mut self, there: &[Digest], is_named: impl Fn(&Digest) -> bool, now: Instant) -> Vec<Digest> {
        let strays = there.iter().filter(|digest| !is_named(digest));
        self.since = strays.map(|digest| (*digest, self.since.get(digest).copied().unwrap_or(now))).collect();
        let due = self.since.iter().filter(|(_, since)| now.duration_since(**since) >= KEPT_FOR);
        due.map(|(digest, _)| *digest).collect()
    }
}

impl<L: Log> Revisions<L> {
    /// Removes what has been there for long and was never deployed, if it is time to look.
    pub(super) async fn remove_strays(&self, strays: &mut Strays) {
        let now = Instant::now();
        if strays.looked_at.is_some_and(|at| now.duration_since(at) < LOOK_EVERY) {
            return;
        }
        strays.looked_at = Some(now);
        // What could not be removed as its time came.
        self.remove_what_is_not_needed().await;
        if let Err(error) = self.try_to_remove_strays(strays, now).await {
            tracing::warn!(%error, "Components that were never deployed cannot be removed; later.");
        }
    }

    async fn try_to_remove_strays(&self, strays: &mut Strays, now: Instant) -> Result<(), Error> {
        if !self.knows_all() {
            return Ok(());
        }
        let there = self.log.components().await?;
        for digest in strays.look(&there, |digest| self.is_named(digest), now) {
            // Somebody may have deployed it a moment ago.
            self.refresh().await?;
            if self.knows_all() && !self.is_named(&digest) {
                self.log.remove_component(digest).await?;
                tracing::info!(%digest, "A component that was uploaded and never deployed was removed.");
            }
        }
        Ok(())
    }

    /// Whether no deployment can name a component that is not known here to be named.
    pub(super) fn knows_all(&self) -> bool {
        lock(&self.known).is_all()
    }

    /// Whether any revision of any function has this component, as far as is known.
    fn is_named(&self, digest: &Digest) -> bool {
        let known = lock(&self.known);
        known.histories.values().flat_map(|history| history.revisions()).any(|(_, source)| source.component == *digest)
    }
}

impl Known {
    /// What a newer version did can name components that this one does not find there, and so can deployments that are lost or were never
    /// read. That nothing was ever deployed is known only of a log that was read and has lost nothing.
    fn is_all(&self) -> bool {
        self.is_whole && self.histories.values().flat_map(History::changes).all(|(_, change)| change.is_ok())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use millrace_core::name::FunctionName;
    use millrace_core::revision::{Action, Change, histories};
    use millrace_core::time::Timestamp;

    use super::*;
    use crate::broker::Deployments as _;
    use crate::config::Config;
    use crate::server::Server;

    #[test]
    fn what_no_revision_names_is_kept_for_a_day() {
        let [a, b] = [Digest::of(b"a"), Digest::of(b"b")];
        let (began, mut strays) = (Instant::now(), Strays::default());
        let hour = Duration::from_secs(3600);
        for (hours, there, named, expected) in [
            (0, vec![a], false, vec![]),
            (23, vec![a, b], false, vec![]),
            (24, vec![a, b], false, vec![a]),
            // One that was deployed meanwhile begins anew.
            (30, vec![a, b], true, vec![]),
            (48, vec![b], false, vec![]),
            // And so does one that was gone.
            (60, vec![], false, vec![]),
            (72, vec![b], false, vec![]),
            (96, vec![b], false, vec![b]),
        ] {
            assert_eq!(strays.look(&there, |_| named, began + hour * hours), expected, "after {hours} h");
        }
    }

    #[test]
    fn all_is_known_only_of_what_was_read_and_has_lost_nothing() {
        let readable = Change::new(Action::Pause, Timestamp::EPOCH, "").encode();
        let function: FunctionName = "shop.pay".parse().unwrap();
        for (is_whole, contents, expected) in [
            (true, vec![], true),
            (true, vec![&readable[..]], true),
            // By a later version.
            (true, vec![&readable[..], &b"?"[..]], false),
            (false, vec![], false),
            (false, vec![&readable[..]], false),
        ] {
            let deployments = (1..).zip(&contents).map(|(number, content)| (&function, number, *content));
            let known = Known { histories: histories(deployments), is_whole, ..Known::default() };
            assert_eq!(known.is_all(), expected, "{is_whole} {contents:?}");
        }
        assert!(!Known::default().is_all(), "nothing was read");
    }

    #[tokio::test]
    async fn what_was_uploaded_where_nothing_was_ever_deployed_is_removed_unless_that_is_uncertain() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config { data: directory.path().to_owned(), ..Config::default() };
        let server = Server::open(config).await.unwrap();
        let (revisions, began) = (&server.revisions, Instant::now());
        let content = Bytes::from_static(b"refused");
        let digest = Digest::of(&content);
        server.log.put_component(digest, content).await.unwrap();
        for (is_whole, left) in [(false, &[digest][..]), (true, &[])] {
            let mut strays = Strays::default();
            lock(&revisions.known).is_whole = is_whole;
            for (now, left) in [(began, &[digest][..]), (began + KEPT_FOR, left)] {
                revisions.try_to_remove_strays(&mut strays, now).await.unwrap();
                assert_eq!(&server.log.components().await.unwrap()[..], left, "{is_whole}");
            }
        }
    }
}
