//! A position that no longer exists: the partition waits until an operator lets it skip what is gone.

use std::fmt;

use millrace_core::dispatcher::Input;
use millrace_core::progress::Stream;
use tokio::sync::oneshot;

use super::status::Stopped;
use super::{Concluded, Exit, Owned, Revision, ended};
use crate::broker::Partition;

/// Records that were removed before a function read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The log.
    pub stream: Stream,
    /// The offset that the function wants.
    pub wanted: u64,
    /// The oldest offset there is.
    pub earliest: u64,
    /// How many that are not settled lie between.
    pub records: u64,
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, wanted, earliest, records } = self;
        let (record, was) = if *records == 1 { ("record", "was") } else { ("records", "were") };
        let log = match stream {
            Stream::Source => "",
            Stream::Redrive => " of its redrive log",
        };
        write!(f, "{records} {record}{log} {was} removed before it read them, from offset {wanted} to {}", earliest - 1)
    }
}

/// Where an operator's word is answered, once what is gone is skipped for good.
pub(super) type Skip = oneshot::Sender<Gone>;

impl<P: Partition, R: Revision> Owned<P, R> {
    /// Waits for an operator, and skips what is gone.
    pub(super) async fn gone(&mut self, stream: Stream, wanted: u64, earliest: u64) -> Result<(), Exit> {
        if self.commit_all().await? == Concluded::StartedAgain {
            return Ok(());
        }
        if stream == Stream::Source && self.follow_oldest(earliest).await? {
            return Ok(());
        }
        let gone = Gone { stream, wanted, earliest, records: self.dispatcher.missing(stream, earliest) };
        let unit = self.partition.unit();
        tracing::error!(
            %unit, %gone, "The position no longer exists; the partition waits for `millrace functions skip {}`.", unit.function
        );
        self.status.stop(Stopped::Gone(gone.clone()));
        let (mut command, mut resets) = (self.shared.command.clone(), self.shared.resets.clone());
        if self.told().is_some() {
            return Ok(());
        }
        let reply = tokio::select! {
            biased;
            _ = self.revoked.wait_for(|revoked| *revoked) => return Err(Exit::Revoked),
            _ = command.wait_for(|command| command.ends()) => return Ok(()),
            Ok(()) = resets.changed() => return Ok(()),
            Some(reply) = self.skips.recv() => reply,
        };
        self.handle(Input::Gone { stream, earliest });
        if self.commit_all().await? == Concluded::Committed {
            tracing::warn!(unit = %self.partition.unit(), %gone, "An operator let the partition skip what is gone.");
            self.go_on();
            drop(reply.send(gone));
        }
        Ok(())
    }

    /// It waits for no operator any more. Words about what was gone are not to be taken for words about something else later.
    pub(super) fn go_on(&mut self) {
        self.status.go_on();
        while self.skips.try_recv().is_ok() {}
    }

    /// Commits all that is settled, and waits for that.
    pub(super) async fn commit_all(&mut self) -> Result<Concluded, Exit> {
        loop {
            self.begin_commit();
            if self.commit.is_none() {
                return Ok(Concluded::Committed);
            }
            let result = ended(&mut self.commit).await;
            self.commit = None;
            if self.conclude(result)? == Concluded::StartedAgain {
                return Ok(Concluded::StartedAgain);
            }
        }
    }
}
