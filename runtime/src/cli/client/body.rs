//! A request's body that tells how much of it was sent.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

/// What is handed over at once.
const PIECE_BYTES: usize = 64 * 1024;

/// How many bytes were handed to the connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent(Arc<AtomicU64>);

impl Sent {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// What was sent was not taken.
    pub(super) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// All of it in memory; a connection takes it piece by piece.
#[derive(Debug, Default)]
pub(super) struct Body {
    rest: Bytes,
    sent: Option<Sent>,
}

impl Body {
    pub(super) fn counted(content: Bytes, sent: Sent) -> Self {
        Self { rest: content, sent: Some(sent) }
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(content: T) -> Self {
        Self { rest: content.into(), sent: None }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Self { rest, sent } = self.get_mut();
        if rest.is_empty() {
            return Poll::Ready(None);
        }
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        if let Some(Sent(sent)) = sent {
            sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn each_piece_is_counted_and_nothing_is_lost() {
        for length in [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES - 1] {
            let content: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let sent = Sent::default();
            let mut body = Body::counted(content.clone().into(), sent.clone());
            let mut taken = Vec::new();
            while let Some(frame) = body.frame().await {
                taken.extend(frame.unwrap().into_data().unwrap());
                let left = hyper::body::Body::size_hint(&body).exact();
                assert_eq!((sent.bytes(), left), (taken.len() as u64, Some((length - taken.len()) as u64)));
            }
            assert_eq!((taken, hyper::body::Body::is_end_stream(&body)), (content, true), "{length}");
        }
    }
}
