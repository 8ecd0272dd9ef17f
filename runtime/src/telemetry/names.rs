//! Every name of a metric, a span and an attribute.
//!
//! OpenTelemetry's semantic conventions (HTTP, messaging, FaaS) go before names of our own, which begin with `millrace`.
//! Prometheus writes an underscore for a point; the name of a counter gets `_total` when it is written.

/// What this is for collectors: the library that made the spans, and the messaging system they are about.
pub const SYSTEM: &str = "millrace";

/// Operations of a worker, as `messaging.operation.name` has them.
pub mod operation {
    /// One attempt at one event. Of the type of the same name.
    pub const PROCESS: &str = "process";
    /// The emitted events of one commit that go to one topic. Of the type of the same name.
    pub const SEND: &str = "send";
    /// Writing what events did since the last commit.
    pub const COMMIT: &str = "commit";
    /// The type of [`COMMIT`].
    pub const SETTLE: &str = "settle";
}

/// Attributes of spans.
pub mod attribute {
    /// [`SYSTEM`](super::SYSTEM).
    pub const SYSTEM: &str = "messaging.system";
    /// A topic.
    pub const TOPIC: &str = "messaging.destination.name";
    /// A partition's number, as text.
    pub const PARTITION: &str = "messaging.destination.partition.id";
    /// One of [`operation`](super::operation).
    pub const OPERATION: &str = "messaging.operation.name";
    /// `process`, `send` or `settle`.
    pub const OPERATION_TYPE: &str = "messaging.operation.type";
    /// An event's id.
    pub const MESSAGE_ID: &str = "messaging.message.id";
    /// An event's correlation id.
    pub const CONVERSATION_ID: &str = "messaging.message.conversation_id";
    /// How many events a commit settles or a batch contains.
    pub const BATCH_COUNT: &str = "messaging.batch.message_count";
    /// The function, which reads as a group of consumers does.
    pub const GROUP: &str = "messaging.consumer.group.name";
    /// Why it failed: a category of failure, or what happened to the commit.
    pub const ERROR_TYPE: &str = "error.type";
    /// The function.
    pub const FUNCTION: &str = "millrace.function";
    /// The offset in the source partition.
    pub const OFFSET: &str = "millrace.offset";
    /// The number of the revision that handled it, as text.
    pub const REVISION: &str = "faas.version";
    /// 1 for the first attempt.
    pub const ATTEMPT: &str = "millrace.attempt";
    /// How it ended: `completed`, `failed` or `not-run`; of a commit `committed` or what happened instead.
    pub const OUTCOME: &str = "millrace.outcome";
}

/// Metrics. `README.md` has a table of them, and a test compares it with what is written.
pub mod metric {
    /// Requests by method, route and status.
    pub const REQUEST_DURATION: &str = "http_server_request_duration_seconds";
    /// Requests being served.
    pub const ACTIVE_REQUESTS: &str = "http_server_active_requests";
    /// Events published.
    pub const SENT: &str = "messaging_client_sent_messages";
    /// Records that workers fetched.
    pub const RECEIVED: &str = "messaging_client_consumed_messages";
    /// From call to return of a handler.
    pub const INVOKE_DURATION: &str = "messaging_process_duration_seconds";
    /// From the beginning of a commit until it is durable.
    pub const COMMIT_DURATION: &str = "messaging_client_operation_duration_seconds";
    /// From publication to the first attempt.
    pub const QUEUE_DURATION: &str = "millrace_queue_duration_seconds";
    /// From publication until the settlement is durable.
    pub const END_TO_END_DURATION: &str = "millrace_end_to_end_duration_seconds";
    /// Settlements by outcome.
    pub const SETTLED: &str = "millrace_settled_records";
    /// Commits.
    pub const COMMITS: &str = "millrace_commits";
    /// Attempts.
    pub const ATTEMPTS: &str = "millrace_attempts";
    /// Attempts that failed.
    pub const FAILED_ATTEMPTS: &str = "millrace_failed_attempts";
    /// Attempts by revision.
    pub const REVISION_ATTEMPTS: &str = "millrace_revision_attempts";
    /// Those that failed.
    pub const REVISION_FAILED_ATTEMPTS: &str = "millrace_revision_failed_attempts";
    /// From call to return of a handler, by revision.
    pub const REVISION_DURATION: &str = "millrace_revision_duration_seconds";
    /// Records published and not settled.
    pub const LAG_RECORDS: &str = "millrace_lag_records";
    /// The age of the oldest of them.
    pub const LAG_SECONDS: &str = "millrace_lag_seconds";
    /// Those that a handler can have now.
    pub const PROCESSABLE_LAG: &str = "millrace_processable_lag_records";
    /// Records held back behind failing keys.
    pub const PARKED: &str = "millrace_parked_records";
    /// Partitions that wait for an operator.
    pub const STOPPED: &str = "millrace_stopped_partitions";
    /// Idempotency keys that are remembered.
    pub const KEYS: &str = "millrace_idempotency_keys";
    /// For how long they are.
    pub const WINDOW: &str = "millrace_idempotency_window_seconds";
    /// A breaker's state.
    pub const BREAKER: &str = "millrace_breaker_state";
    /// Dead letters that wait for a person.
    pub const LETTERS: &str = "millrace_open_dead_letters";
    /// The most memory that a guest had.
    pub const GUEST_MEMORY: &str = "millrace_guest_memory_bytes";
    /// Whether accounts balance.
    pub const BALANCED: &str = "millrace_accounts_balanced";
    /// Partitions that a group assigned.
    pub const ASSIGNED: &str = "millrace_group_assigned_partitions";
    /// Partitions that were lost again.
    pub const REVOKED: &str = "millrace_group_revoked_partitions";
    /// Commits that were not made, for that reason.
    pub const FENCED: &str = "millrace_group_fenced_commits";
    /// Partitions that are being restored.
    pub const RESTORING: &str = "millrace_restoring_partitions";
    /// Records read for it.
    pub const RESTORED: &str = "millrace_restored_records";
    /// How long it took the last time.
    pub const LAST_RESTORE: &str = "millrace_last_restore_seconds";
    /// Whether the log could be asked.
    pub const LOG_ANSWERS: &str = "millrace_log_answers";
    /// Bytes kept of a topic.
    pub const LOG_BYTES: &str = "millrace_log_bytes";
    /// Records kept of a topic.
    pub const LOG_RECORDS: &str = "millrace_log_records";
    /// Requests refused because their token sends too many.
    pub const RATE_LIMITED: &str = "millrace_rate_limited_requests";
    /// When the certificate of the API expires.
    pub const CERTIFICATE_EXPIRY: &str = "millrace_certificate_expiry_timestamp_seconds";
    /// Spans that did not reach the collector.
    pub const LOST_SPANS: &str = "millrace_lost_spans";
    /// Records of who did what that could not be written.
    pub const LOST_AUDIT: &str = "millrace_lost_audit_records";
    /// Whether the process is of use.
    pub const READY: &str = "millrace_ready";
}
