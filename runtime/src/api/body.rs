//! The body of a request, within its bounds.

use std::sync::Arc;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use millrace_core::limits;
use millrace_core::units::Size;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::{Kind, Refusal};

/// A body that has arrived. Its bytes count as held until it is dropped.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) bytes: Bytes,
    _held: Option<OwnedSemaphorePermit>,
}

/// Bounds each body, and all of them together.
#[derive(Debug)]
pub(super) struct Intake {
    max_bytes: usize,
    free: Arc<Semaphore>,
}

impl Intake {
    pub(super) fn new(max_bytes: usize) -> Self {
        // A configured bound above the common one must still let one body through.
        let all = limits::BODIES_MAX_BYTES.max(max_bytes).min(Semaphore::MAX_PERMITS);
        Self { max_bytes, free: Arc::new(Semaphore::new(all)) }
    }

    /// Reads a body to its end. Bytes are accounted for as they arrive, so that who announces much and sends little
    /// holds nothing.
    pub(super) async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Received, Refusal> {
        self.read_up_to(headers, body, self.max_bytes).await
    }

    /// The same, with a bound of its own.
    pub(super) async fn read_up_to(&self, headers: &HeaderMap, body: Body, max: usize) -> Result<Received, Refusal> {
        check_encoding(headers)?;
        let announced = announced_bytes(headers).unwrap_or(0);
        match tokio::time::timeout(limits::REQUEST_READ_TIMEOUT, self.collect(body, announced, max)).await {
            Ok(received) => received,
            Err(_) => {
                let seconds = limits::REQUEST_READ_TIMEOUT.as_secs();
                Err(Refusal::new(Kind::RequestTimeout, format_args!("the body did not arrive within {seconds} s")))
            }
        }
    }

    async fn collect(&self, mut body: Body, announced: usize, max: usize) -> Result<Received, Refusal> {
        if announced > max {
            discard(body).await;
            return Err(too_large(max));
        }
        let mut held: Option<OwnedSemaphorePermit> = None;
        let mut first = Bytes::new();
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Refusal::malformed(format_args!("the body broke off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            self.hold(&mut held, data.len())?;
            if held.as_ref().is_some_and(|held| held.num_permits() > max) {
                drop(held);
                discard(body).await;
                return Err(too_large(max));
            }
            // A body that comes in one piece, as most do, is not copied.
            if first.is_empty() && whole.is_empty() {
                first = data;
                continue;
            }
            if whole.is_empty() {
                whole.reserve(announced.max(first.len() + data.len()));
                whole.extend_from_slice(&std::mem::take(&mut first));
            }
            whole.extend_from_slice(&data);
        }
        let bytes = if whole.is_empty() { first } else { whole.freeze() };
        Ok(Received { bytes, _held: held })
    }

    fn hold(&self, held: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Result<(), Refusal> {
        let permits = u32::try_from(bytes).map_err(|_| too_large(self.max_bytes))?;
        let more = Arc::clone(&self.free).try_acquire_many_owned(permits).map_err(|_| {
            let detail = "the bodies of requests under way take all the memory there is for them; try again";
            Refusal::new(Kind::TooManyRequests, detail).retry_soon()
        })?;
        match held {
            Some(held) => held.merge(more),
            None => *held = Some(more),
        }
        Ok(())
    }
}

fn too_large(max: usize) -> Refusal {
    let max = Size(max as u64);
    Refusal::new(Kind::TooLarge, format_args!("a body can have {max} here; send less, or several smaller ones"))
}

/// Reads on without keeping anything. A client that is still sending when the connection is closed may never see the
/// answer; beyond a bound that is its own fault.
async fn discard(mut body: Body) {
    let mut bytes = 0;
    while bytes < limits::DISCARDED_MAX_BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
}

fn announced_bytes(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn check_encoding(headers: &HeaderMap) -> Result<(), Refusal> {
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => Err(Refusal::new(
            Kind::UnsupportedMediaType,
            "a `Content-Encoding` is not understood; send the body as it is",
        )),
        _ => Ok(()),
    }
}
