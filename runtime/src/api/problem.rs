//! Why a request was refused, as a problem body (<https://www.rfc-editor.org/rfc/rfc9457>).

use std::fmt;
use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::types::{Hidden, PROBLEM_PREFIX, PROBLEM_TYPE, Problem};
use crate::broker::{CatalogError, Error, PublishError};

/// After this time something else may have made room.
const SOON: Duration = Duration::from_secs(1);
/// After this time retention, or a person, may have made room.
const LATER: Duration = Duration::from_secs(30);

/// The kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    CompilerUnavailable,
    Conflict,
    DeadLetterNotOpen,
    Forbidden,
    ForeignHost,
    ForeignOrigin,
    Internal,
    InvalidEvent,
    InvalidFunction,
    InvalidSignature,
    Lockout,
    LogBusy,
    LogFailed,
    LogFull,
    LogUnavailable,
    MalformedRequest,
    MethodNotAllowed,
    NotReady,
    RateLimited,
    RequestTimeout,
    ReservedTopic,
    TooLarge,
    TooManyRequests,
    Unauthenticated,
    UnknownComponent,
    UnknownDeadLetter,
    UnknownFunction,
    UnknownPartition,
    UnknownPath,
    UnknownRevision,
    UnknownToken,
    UnknownTopic,
    UnsupportedMediaType,
}

impl Kind {
    /// The last part of its URI, its title and its status.
    pub(super) const fn parts(self) -> (&'static str, &'static str, StatusCode) {
        use StatusCode as S;
        match self {
            Self::CompilerUnavailable => {
                ("compiler-unavailable", "Nothing can be compiled at the moment", S::SERVICE_UNAVAILABLE)
            }
            Self::Conflict => ("conflict", "The function was changed meanwhile, or elsewhere", S::CONFLICT),
            Self::DeadLetterNotOpen => ("dead-letter-not-open", "The dead letter is not open", S::CONFLICT),
            Self::Forbidden => ("forbidden", "The token does not allow this", S::FORBIDDEN),
            Self::ForeignHost => ("foreign-host", "The request is meant for another host", S::FORBIDDEN),
            Self::ForeignOrigin => ("foreign-origin", "The request comes from a foreign web page", S::FORBIDDEN),
            Self::Internal => ("internal", "The runtime could not answer", S::INTERNAL_SERVER_ERROR),
            Self::InvalidEvent => ("invalid-event", "The event is not valid", S::BAD_REQUEST),
            Self::InvalidFunction => ("invalid-function", "The function cannot be deployed", S::UNPROCESSABLE_ENTITY),
            Self::InvalidSignature => {
                ("invalid-signature", "The component is not signed as it has to be", S::UNPROCESSABLE_ENTITY)
            }
            Self::Lockout => ("lockout", "Nobody could make tokens any more, or there are too many", S::CONFLICT),
            Self::LogBusy => ("log-busy", "Too many writes are waiting", S::TOO_MANY_REQUESTS),
            Self::LogFailed => ("log-failed", "The log cannot go on", S::SERVICE_UNAVAILABLE),
            Self::LogFull => ("log-full", "The log is full", S::SERVICE_UNAVAILABLE),
            Self::LogUnavailable => ("log-unavailable", "The log did not answer", S::SERVICE_UNAVAILABLE),
            Self::MalformedRequest => ("malformed-request", "The request is malformed", S::BAD_REQUEST),
            Self::MethodNotAllowed => ("method-not-allowed", "The method is not allowed here", S::METHOD_NOT_ALLOWED),
            Self::NotReady => ("not-ready", "The runtime is not ready", S::SERVICE_UNAVAILABLE),
            Self::RateLimited => ("rate-limited", "The token sends too many requests", S::TOO_MANY_REQUESTS),
            Self::RequestTimeout => ("request-timeout", "The request took too long to arrive", S::REQUEST_TIMEOUT),
            Self::ReservedTopic => ("reserved-topic", "The topic belongs to the runtime", S::FORBIDDEN),
            Self::TooLarge => ("too-large", "The request is too large", S::PAYLOAD_TOO_LARGE),
            Self::TooManyRequests => ("too-many-requests", "Too many requests at once", S::TOO_MANY_REQUESTS),
            Self::Unauthenticated => ("unauthenticated", "A token is needed", S::UNAUTHORIZED),
            Self::UnknownComponent => ("unknown-component", "There is no such component", S::NOT_FOUND),
            Self::UnknownDeadLetter => ("unknown-dead-letter", "There is no such dead letter", S::NOT_FOUND),
            Self::UnknownFunction => ("unknown-function", "There is no such function", S::NOT_FOUND),
            Self::UnknownPartition => ("unknown-partition", "There is no such partition", S::NOT_FOUND),
            Self::UnknownPath => ("unknown-path", "There is nothing at this path", S::NOT_FOUND),
            Self::UnknownRevision => ("unknown-revision", "There is no such revision", S::NOT_FOUND),
            Self::UnknownToken => ("unknown-token", "There is no such token", S::NOT_FOUND),
            Self::UnknownTopic => ("unknown-topic", "There is no such topic", S::NOT_FOUND),
            Self::UnsupportedMediaType => {
                ("unsupported-media-type", "The content type is not understood", S::UNSUPPORTED_MEDIA_TYPE)
            }
        }
    }
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    kind: Kind,
    detail: String,
    index: Option<usize>,
    retry_after: Option<Duration>,
    token: Option<Hidden>,
}

impl Refusal {
    /// `detail` says what is wrong this time, and what to do.
    pub(super) fn new(kind: Kind, detail: impl fmt::Display) -> Self {
        Self { kind, detail: detail.to_string(), index: None, retry_after: None, token: None }
    }

    /// A parameter, header or body that does not follow the rules.
    pub(super) fn malformed(detail: impl fmt::Display) -> Self {
        Self::new(Kind::MalformedRequest, detail)
    }

    /// Whether it is of this kind.
    pub(super) fn is(&self, kind: Kind) -> bool {
        self.kind == kind
    }

    /// Names the offending event of a batch.
    pub(super) fn at(self, index: usize) -> Self {
        Self { index: Some(index), ..self }
    }

    /// Trying again soon may help.
    pub(super) fn retry_soon(self) -> Self {
        Self { retry_after: Some(SOON), ..self }
    }

    /// Trying again after this time helps, if nothing else comes until then.
    pub(super) fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    fn retry_later(self) -> Self {
        Self { retry_after: Some(LATER), ..self }
    }

    /// The same, with the token that may have been made. Another try would make another one.
    pub(super) fn with_token(self, token: String) -> Self {
        Self { token: Some(Hidden(token)), retry_after: None, ..self }
    }

    /// The same, with whom it is about.
    pub(super) fn about(self, whom: &str) -> Self {
        Self { detail: format!("{whom}: {}", self.detail), ..self }
    }

    /// The same, with more to say.
    pub(super) fn and(self, more: impl fmt::Display) -> Self {
        Self { detail: format!("{}; {more}", self.detail), ..self }
    }
}

impl From<PublishError> for Refusal {
    /// The index is that of the batch; see [`Refusal::single`].
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::UnknownTopic { index, .. } => Self::new(Kind::UnknownTopic, error).at(index),
            PublishError::TooLarge { index, .. } => Self::new(Kind::TooLarge, error)
                .and("put what is large elsewhere, and a reference into the event")
                .at(index),
            PublishError::Full(_) => Self::new(Kind::LogFull, error).retry_later(),
            PublishError::Busy => Self::new(Kind::LogBusy, error).and("publish more slowly").retry_soon(),
            PublishError::Broker(error) => error.into(),
        }
    }
}

impl Refusal {
    /// The same about a single event, which has no place in a batch.
    pub(super) fn single(self) -> Self {
        Self { index: None, ..self }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Transient(_) => Self::new(Kind::LogUnavailable, error).retry_soon(),
            Error::Fatal(_) | Error::Stopped(_) => Self::new(Kind::LogFailed, error).retry_later(),
        }
    }
}

impl From<CatalogError> for Refusal {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::UnknownTopic(_) => Self::new(Kind::UnknownTopic, error),
            CatalogError::UnknownPartition(..) => Self::new(Kind::UnknownPartition, error),
            CatalogError::UnknownLetter(..) => Self::new(Kind::UnknownDeadLetter, error).and(
                "`millrace dead-letters list --status all` shows those there are; resolved and discarded ones are removed in time",
            ),
            CatalogError::NotOpen { .. } => Self::new(Kind::DeadLetterNotOpen, error)
                .and("`force` (on the command line `--force`) does it all the same"),
            CatalogError::PartitionCount { .. } => Self::new(Kind::Internal, error),
            CatalogError::Broker(error) => error.into(),
        }
    }
}

/// Why a request was refused or failed, for whoever looks at its answer.
#[derive(Clone, Debug)]
pub(super) struct Reason(pub(super) String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (name, title, status) = self.kind.parts();
        let reason = Reason(format!("{name}: {}", self.detail));
        let problem = Problem {
            kind: format!("{PROBLEM_PREFIX}{name}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail,
            index: self.index,
            token: self.token,
        };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (status, [(CONTENT_TYPE, PROBLEM_TYPE)], body).into_response();
        response.extensions_mut().insert(reason);
        if self.kind == Kind::Unauthenticated {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(after) = self.retry_after {
            // Whole seconds: who comes too early is refused once more.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
