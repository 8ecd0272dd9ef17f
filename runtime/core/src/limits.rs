//! Every bound of the runtime. Nothing grows without one of these, or a setting that one of these bounds in turn.
//!
//! `*_DEFAULT_*` is what holds when a manifest or the configuration says nothing; `*_MAX_*` cannot be exceeded by either.

use std::num::NonZeroUsize;
use std::time::Duration;

/// One kibibyte.
pub const KIB: usize = 1024;
/// One mebibyte.
pub const MIB: usize = 1024 * KIB;
/// One gibibyte.
pub const GIB: usize = 1024 * MIB;

// Events and records.

/// Largest record that is published or emitted: key, value and headers together.
pub const EVENT_MAX_BYTES: usize = MIB;
/// What the `millrace-` headers of a dead letter may add to the record it was made from.
pub const DEAD_LETTER_EXTRA_BYTES: usize = 64 * KIB;
/// Largest record of a dead-letter or redrive topic.
pub const DEAD_LETTER_MAX_BYTES: usize = EVENT_MAX_BYTES + DEAD_LETTER_EXTRA_BYTES;
/// Extension attributes of one event.
pub const EXTENSIONS_MAX: usize = 100;
/// Longest name of an extension attribute; the specification asks for at most 20.
pub const EXTENSION_NAME_MAX_BYTES: usize = 64;
/// Longest value of any attribute of an event, in UTF-8.
pub const ATTRIBUTE_MAX_BYTES: usize = 16 * KIB;
/// Headers of one record.
pub const HEADERS_MAX: usize = 200;
/// Longest name of a record's header.
pub const HEADER_NAME_MAX_BYTES: usize = 256;
/// Longest value of a record's header.
pub const HEADER_VALUE_MAX_BYTES: usize = 16 * KIB;
/// Longest ordering key.
pub const KEY_MAX_BYTES: usize = 4 * KIB;

// The process.

/// Threads that run functions.
pub const THREADS_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

// Who may do what.

/// What a log keeps under one name for all instances, such as a token.
pub const ENTRY_MAX_BYTES: usize = 64 * KIB;
/// Tokens that hold at the same time.
pub const TOKENS_MAX: usize = 1000;
/// Most requests that a rate can allow in a second, minute or hour, and at once.
pub const RATE_MAX_REQUESTS: u32 = 1_000_000;
/// Tokens of which it is known how many requests they sent.
pub const RATED_TOKENS_MAX: usize = TOKENS_MAX;
/// Tokens in a log, expired ones among them.
pub const TOKENS_KEPT_MAX: usize = 10 * TOKENS_MAX;
/// Longest name of a token, in bytes.
pub const TOKEN_NAME_MAX_BYTES: usize = 100;
/// Longest time for which a token that expires holds.
pub const TOKEN_EXPIRY_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long making or revoking one may take: less than the command line waits for the answer.
pub const TOKEN_CHANGE_TIMEOUT: Duration = Duration::from_secs(20);
/// Patterns of one kind, for functions or for topics, of one token.
pub const TOKEN_PATTERNS_MAX: usize = 32;
/// Shortest administrator's token of the configuration, which people make up themselves.
pub const ADMIN_TOKEN_MIN_CHARS: usize = 32;
/// Longest token of any kind, and longest file with one.
pub const TOKEN_MAX_BYTES: usize = 4 * KIB;

/// Refusals that get a record each in the audit topic when they come at once, of one token or of all without one; those beyond are counted.
pub const AUDITED_REFUSALS_AT_ONCE: u32 = 100;
/// After this time one more does.
pub const AUDITED_REFUSAL_EVERY: Duration = Duration::from_secs(1);
/// Tokens whose refusals are counted apart, and those without one.
pub const AUDITED_REFUSED_MAX: usize = TOKENS_MAX + 1;
/// Functions, and topics, that one record of the audit topic names.
pub const AUDITED_NAMES_MAX: usize = 100;
/// Longest text of such a record, in bytes.
pub const AUDITED_TEXT_MAX_BYTES: usize = 500;
/// How long such records are kept.
pub const AUDIT_RETENTION_AGE: Duration = Duration::from_secs(365 * 24 * 3600);
/// How many bytes of them are kept, the newest ones.
pub const AUDIT_RETENTION_BYTES: u64 = GIB as u64;
/// Offsets that one request looks at to find the records that it asks for.
pub const AUDIT_SCANNED_MAX: u64 = 10_000;
/// How long writing such a record may take.
pub const AUDIT_WRITE_TIMEOUT: Duration = Duration::from_secs(10);

// Requests.

/// Largest body of a request, unless the configuration says otherwise.
pub const REQUEST_MAX_BYTES: usize = 8 * MIB;
/// Events of one published batch.
pub const BATCH_MAX_EVENTS: usize = 10_000;
/// Bytes of one published batch, as the log counts them.
pub const BATCH_MAX_BYTES: usize = 16 * MIB;
/// Requests served at the same time; more are answered 429.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 1024;
/// Connections open at the same time; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 1024;
/// How long agreeing on TLS may take once a connection is there.
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest file with certificates or a key. One with all the authorities that a system trusts has a quarter of it.
pub const CERTIFICATES_MAX_BYTES: usize = MIB;
/// What one connection reads ahead.
pub const CONNECTION_BUFFER_MAX_BYTES: usize = 128 * KIB;
/// Bytes of all bodies that are held at the same time; requests beyond are answered 429.
pub const BODIES_MAX_BYTES: usize = 128 * MIB;
/// Bytes of a body that is too large that are still read, so that its sender sees the answer.
pub const DISCARDED_MAX_BYTES: usize = 64 * MIB;
/// Requests that wait for records at the same time; more are answered 429.
pub const LONG_POLLS_MAX: usize = 256;
/// How long a request can wait for records.
pub const LONG_POLL_MAX: Duration = Duration::from_secs(60);
/// Bytes of records in one answer, as a soft bound: one record always comes.
pub const RESPONSE_MAX_BYTES: usize = 4 * MIB;
/// How long a request may take to arrive in full.
pub const REQUEST_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take nothing of its answer before the connection is closed.
pub const ANSWER_WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Items of one page of a listing.
pub const PAGE_MAX_ITEMS: usize = 1000;
/// Dead letters that one request looks at to find those that it asks for.
pub const LETTERS_SCANNED_MAX: usize = 10_000;
/// Longest note on a dead letter.
pub const NOTE_MAX_BYTES: usize = KIB;
/// Items of one page of a listing when the request does not say.
pub const PAGE_DEFAULT_ITEMS: usize = 100;

// The log.

/// Partitions of one topic.
pub const PARTITIONS_MAX: u32 = 1024;
/// Partitions of a topic when neither manifest nor configuration says.
pub const PARTITIONS_DEFAULT: u32 = 4;
/// Topics of one application.
pub const TOPICS_MAX: usize = 256;
/// Publishes that wait for the log's writer; more are answered as busy.
pub const PUBLISHES_WAITING_MAX: usize = 1024;
/// Bytes of publishes that wait for the log's writer; more are answered as busy.
pub const PUBLISHES_WAITING_MAX_BYTES: usize = 64 * MIB;
/// How long records are kept when neither manifest nor configuration says.
pub const RETENTION_DEFAULT_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes kept per topic when neither manifest nor configuration says.
pub const RETENTION_DEFAULT_BYTES: u64 = 4 * GIB as u64;
/// Dead letters that change in one commit; each can be as large as a record.
pub const LETTERS_AT_ONCE: usize = 16;
/// How long resolved and discarded dead letters are kept unless the configuration says otherwise.
pub const DEAD_LETTER_DEFAULT_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);
/// Functions of one process that start at the same time. Each waits for brokers most of the time.
pub const FUNCTIONS_STARTED_AT_ONCE: usize = 12;
/// Longest time that a manifest can ask to keep records.
pub const RETENTION_MAX_AGE: Duration = Duration::from_secs(36_500 * 24 * 3600);
/// Most bytes per topic that a manifest can ask to keep.
pub const RETENTION_MAX_BYTES: u64 = 1 << 50;
/// Bytes of the whole embedded log at which publishing is refused, unless the configuration says otherwise.
pub const LOG_DEFAULT_BYTES: u64 = 64 * GIB as u64;

// One unit of ownership.

/// Events settled in one commit.
pub const GROUP_MAX_EVENTS: usize = 2000;
/// Time spent in handlers before what is settled so far is committed.
pub const GROUP_MAX_HANDLER_TIME: Duration = Duration::from_micros(500);
/// Bytes that settled events have emitted and have written to state before they are committed.
pub const GROUP_MAX_BYTES: usize = 16 * MIB;
/// Records of one fetch.
pub const FETCH_MAX_RECORDS: usize = 1000;
/// Bytes of one fetch, as a soft bound: one record always comes.
pub const FETCH_MAX_BYTES: usize = 4 * MIB;
/// Records that were fetched and wait for their turn, parked ones not counted; fetching pauses above.
pub const QUEUED_MAX_RECORDS: usize = 2000;
/// Bytes of these records; fetching pauses above.
pub const QUEUED_MAX_BYTES: usize = 64 * MIB;
/// Bytes of records held back behind failing keys. Above, it is as with more than `parked.limit` of them.
pub const PARKED_MAX_BYTES: usize = 64 * MIB;
/// A record that stays for long gets memory of its own, unless it is as large as this: then it is a good part of the batch
/// whose memory it shares.
pub const DETACHED_MAX_BYTES: usize = 64 * KIB;
/// Records held back behind failing keys when the manifest does not say.
pub const PARKED_DEFAULT_RECORDS: usize = 1000;
/// Most records that a manifest can ask to hold back. A commit says of each that fails, and of what is settled between, in some
/// twenty bytes, and is a record of at most a mebibyte on Kafka.
pub const PARKED_MAX_RECORDS: usize = 40_000;

// Retry and breaker.

/// Most attempts that a manifest can ask for.
pub const ATTEMPTS_MAX: u32 = 1000;
/// Longest age of an event that is retried, and longest delay between two attempts.
pub const RETRY_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Longest window of a breaker, and longest time it stays open.
pub const BREAKER_MAX_TIME: Duration = Duration::from_secs(3600);
/// Largest count in a breaker's settings: events it remembers.
pub const BREAKER_MAX_EVENTS: u32 = 10_000;

// Idempotency.

/// How long a completed event is recognised when the manifest does not say.
pub const IDEMPOTENCY_DEFAULT_WINDOW: Duration = Duration::from_secs(24 * 3600);
/// Longest window that a manifest can ask for.
pub const IDEMPOTENCY_MAX_WINDOW: Duration = Duration::from_secs(30 * 24 * 3600);
/// Idempotency keys of a function when the manifest does not say; about 22 bytes each.
pub const IDEMPOTENCY_DEFAULT_KEYS: usize = 10_000_000;
/// Most idempotency keys that a manifest can ask for.
pub const IDEMPOTENCY_MAX_KEYS: usize = 1_000_000_000;
/// Longest idempotency key as text.
pub const IDEMPOTENCY_KEY_MAX_BYTES: usize = 4 * KIB;

// Expressions and manifests.

/// Longest text of a filter or key expression.
pub const EXPRESSION_MAX_BYTES: usize = 4 * KIB;
/// Largest manifest.
pub const MANIFEST_MAX_BYTES: usize = MIB;
/// Largest configuration file.
pub const CONFIG_FILE_MAX_BYTES: usize = MIB;
/// Problems reported for one manifest; what follows is left out.
pub const PROBLEMS_MAX: usize = 100;
/// Functions of one application.
pub const FUNCTIONS_MAX: usize = 256;
/// Source topics of one function.
pub const SOURCES_MAX: usize = 32;
/// Topics that one function may publish to.
pub const GRANTS_MAX: usize = 64;
/// Entries of a function's configuration.
pub const CONFIG_MAX_ENTRIES: usize = 256;
/// Bytes of a function's configuration, names and values together.
pub const CONFIG_MAX_BYTES: usize = 64 * KIB;
/// Longest deadline for a person to look at a dead letter.
pub const DEADLINE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

// Guests.

/// Largest component.
pub const COMPONENT_MAX_BYTES: usize = 64 * MIB;
/// Time of one invocation when the manifest does not say.
pub const INVOCATION_DEFAULT_TIME: Duration = Duration::from_secs(5);
/// Longest time of one invocation that a manifest can ask for.
pub const INVOCATION_MAX_TIME: Duration = Duration::from_secs(300);
/// Linear memory of one instance when the manifest does not say.
pub const MEMORY_DEFAULT_BYTES: usize = 64 * MIB;
/// Most linear memory of one instance that a manifest can ask for.
pub const MEMORY_MAX_BYTES: usize = GIB;
/// Elements of each table of an instance.
pub const TABLE_MAX_ELEMENTS: usize = 100_000;
/// Tables of one component's core modules together.
pub const TABLES_MAX: usize = 32;
/// Linear memories of one component's core modules together.
pub const MEMORIES_MAX: usize = 8;
/// Core instances that one component may be made of.
pub const CORE_INSTANCES_MAX: usize = 64;
/// Events that one invocation emits when the manifest does not say.
pub const EMITTED_DEFAULT_EVENTS: usize = 100;
/// Most events per invocation that a manifest can ask for.
pub const EMITTED_MAX_EVENTS: usize = 10_000;
/// Bytes that one invocation emits when the manifest does not say.
pub const EMITTED_DEFAULT_BYTES: usize = 4 * MIB;
/// Most bytes emitted per invocation that a manifest can ask for.
pub const EMITTED_MAX_BYTES: usize = 16 * MIB;
/// Longest key of a handler's state, in UTF-8.
pub const STATE_KEY_MAX_BYTES: usize = KIB;
/// Largest value of a handler's state: well below the largest record, for a log may keep state as records.
pub const STATE_VALUE_MAX_BYTES: usize = 256 * KIB;
/// Keys of its state that one invocation writes.
pub const STATE_WRITES_MAX_KEYS: usize = 1000;
/// Bytes of keys and values that one invocation writes.
pub const STATE_WRITES_MAX_BYTES: usize = 4 * MIB;
/// Keys of one page of a listing that a handler asks for.
pub const STATE_PAGE_MAX_KEYS: usize = 1000;
/// Pages that one invocation can list.
pub const STATE_PAGES_MAX: usize = 1000;
/// Bytes that one invocation logs when the manifest does not say; what follows is cut.
pub const LOG_BYTES_DEFAULT: usize = 64 * KIB;
/// Most logged bytes per invocation that a manifest can ask for.
pub const LOG_BYTES_MAX: usize = MIB;
/// Messages that one invocation logs; what follows is left out.
pub const LOG_MAX_LINES: usize = 1000;
/// Events handled by one instance before it is replaced, when the manifest does not say.
pub const INSTANCE_REUSE_DEFAULT_EVENTS: u32 = 1000;
/// Most events per instance that a manifest can ask for.
pub const INSTANCE_REUSE_MAX_EVENTS: u32 = 1_000_000;
