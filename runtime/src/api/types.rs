//! The bodies of requests and answers: what the API writes, the command line reads.
//!
//! Instants are RFC 3339, durations seconds, sizes bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use millrace_core::revision::Origin;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::broker::LetterStatus;

mod canary;
mod reset;
mod tokens;

pub use canary::{AttemptsHere, Canary, CanaryRequest, PromoteRequest, RevisionFigures};
pub use reset::{ResetAnswer, ResetPartition, ResetRequest};
pub use tokens::{Token, TokenMade, TokenRequest, TokenRevoked, Tokens};

/// The header of a published event's ordering key, as bytes. For each event of a batch it is the same.
pub const KEY_HEADER: &str = "millrace-key";
/// The header that becomes the id of a plain event, so that publishing it can be repeated.
pub const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";
/// The content type of one event in the JSON format of CloudEvents.
pub const EVENT_TYPE: &str = "application/cloudevents+json";
/// The content type of a list of events in the JSON format of CloudEvents.
pub const BATCH_TYPE: &str = "application/cloudevents-batch+json";
/// The content type of a [`Problem`].
pub const PROBLEM_TYPE: &str = "application/problem+json";
/// What the `type` of a [`Problem`] begins with; the kind follows.
pub const PROBLEM_PREFIX: &str = "https://millrace.dev/problems/";

/// `202` of `POST /v1/topics/{topic}/events`: where the events landed, in the order they were given.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Published {
    /// The topic.
    pub topic: String,
    /// A place for each event; a single one for a single event.
    pub placements: Vec<Place>,
}

/// The place of a record in a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Place {
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: u64,
}

/// `GET /v1/topics`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Topics {
    /// By name; those that the runtime made for itself only with `?internal=true`.
    pub topics: Vec<Topic>,
}

/// A topic.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Whether the runtime made it for itself.
    pub internal: bool,
    /// Its partitions, by number.
    pub partitions: Vec<Partition>,
}

/// A partition of a topic.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Partition {
    /// The oldest offset there is.
    pub earliest: u64,
    /// One past the newest offset.
    pub next: u64,
    /// Bytes kept.
    pub size_bytes: u64,
}

/// `GET /v1/topics/{topic}/events?partition=&from=&limit=&wait=`: records of one partition, or of all.
///
/// `from` is `earliest` (as without it), `latest`, an offset for all partitions that are read, or a place for each of
/// them, as `<partition>:<offset>,<partition>:<offset>`; partitions that are not in such a list are read from their
/// beginning. `wait` is how many seconds to wait for a record if there is none yet.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Records {
    /// Ascending offsets within each partition.
    pub records: Vec<Record>,
    /// For each partition that was read, where to go on reading.
    pub next: Vec<Place>,
}

impl Records {
    /// What to give as `from` to go on reading.
    #[must_use]
    pub fn go_on_from(&self) -> String {
        let places: Vec<String> =
            self.next.iter().map(|place| format!("{}:{}", place.partition, place.offset)).collect();
        places.join(",")
    }
}

/// A record of a topic.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: u64,
    /// When it was published.
    pub timestamp: String,
    /// The ordering key as text, if it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<String>,
    /// The ordering key in base64, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_base64: Option<String>,
    /// The event in the JSON format of CloudEvents; absent if the record cannot be decoded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub event: Option<Box<serde_json::value::RawValue>>,
    /// Why the record cannot be decoded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub undecodable: Option<String>,
    /// The record's bytes in base64, if it cannot be decoded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value_base64: Option<String>,
}

/// `GET /livez` and `GET /readyz`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// `live` or `ready`.
    pub state: String,
}

/// `GET /v1/functions` and `GET /v1/status`; `GET /v1/functions/{function}` answers with one [`FunctionStatus`].
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// `ready`, `starting`, `draining`, `functions refused: ` with their names, or `log failed: ` with the reason.
    pub state: String,
    /// By name.
    pub functions: Vec<FunctionStatus>,
    /// Those that should run and do not, by name.
    #[serde(default)]
    pub refused: Vec<RefusedFunction>,
}

/// A function that does not run.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RefusedFunction {
    /// `<application>.<function>`.
    pub name: String,
    /// Why, and what to do.
    pub reason: String,
}

/// A function and its accounts.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FunctionStatus {
    /// `<application>.<function>`.
    pub name: String,
    /// The active revision.
    pub revision: u64,
    /// The SHA-256 of its component, in hex.
    pub component: String,
    /// Its sources.
    pub topics: Vec<String>,
    /// `closed`, `open` or `half-open`.
    pub breaker: String,
    /// Whether an operator has paused it.
    #[serde(default)]
    pub paused: bool,
    /// The revision that handles a share of the keys beside the active one, on this instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// What attempts came to on this instance, by revision: those that made some lately, the active one and the canary among
    /// them.
    #[serde(default)]
    pub revisions: Vec<RevisionFigures>,
    /// Settlements by outcome, as committed.
    pub totals: Totals,
    /// The same for redriven events.
    pub redriven: Totals,
    /// Records published and not settled, redriven ones included.
    pub lag_records: u64,
    /// Age of the oldest record that is not settled.
    pub lag_seconds: f64,
    /// Those of `lag_records` that a handler can have now: neither held back behind failing keys nor, on Kafka, markers of
    /// transactions. An estimate where a partition has more than 200 left.
    #[serde(default)]
    pub processable_lag: u64,
    /// Records held back behind failing keys.
    pub parked: u64,
    /// Open dead letters.
    pub open_dead_letters: u64,
    /// Whether the accounts of all units balance: settled records are as many as the positions say.
    pub balanced: bool,
    /// By topic and partition.
    pub units: Vec<UnitStatus>,
}

/// Settlements by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Totals {
    /// The handler succeeded.
    pub completed: u64,
    /// The filter said no.
    pub filtered: u64,
    /// Its idempotency key was known.
    pub duplicate: u64,
    /// It became a dead letter.
    pub dead_lettered: u64,
    /// An operator skipped it.
    pub skipped: u64,
    /// An offset without a record.
    pub not_a_record: u64,
}

impl Totals {
    /// All settlements.
    #[must_use]
    pub const fn sum(&self) -> u64 {
        self.completed + self.filtered + self.duplicate + self.dead_lettered + self.skipped + self.not_a_record
    }
}

/// One partition of one source topic.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct UnitStatus {
    /// The source topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// Where the function began, or was last told to go on.
    pub start: u64,
    /// The deployment that told it to, which it has obeyed; absent if none did.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub reset: u64,
    /// One past the last contiguous settled offset.
    pub resume: u64,
    /// Settled records above it.
    pub settled_above: u64,
    /// One past the newest record.
    pub next: u64,
    /// Settlements by outcome.
    pub totals: Totals,
    /// Records published and not settled, redriven ones included.
    #[serde(default)]
    pub lag_records: u64,
    /// Age of the oldest record that is not settled.
    #[serde(default)]
    pub lag_seconds: f64,
    /// As of a function.
    #[serde(default)]
    pub processable_lag: u64,
    /// Records held back behind failing keys.
    pub parked: u64,
    /// Redriven records that are not settled.
    #[serde(default)]
    pub redriven_lag: u64,
    /// Why it waits for an operator, if it does.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stopped: Option<String>,
    /// Records that were removed before it read them; it waits until they are skipped.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub gone: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// `POST /v1/functions/{function}/skip`: lets partitions go on whose position no longer exists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SkipRequest {
    /// Only say what would be skipped.
    pub dry_run: bool,
}

/// What was skipped, or would be.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SkipAnswer {
    /// The function.
    pub function: String,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// Records of all partitions together.
    pub records: u64,
    /// The partitions that waited, by topic and number.
    pub partitions: Vec<Skipped>,
}

/// `GET /v1/functions/{function}/state`: what its handler has stored.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct State {
    /// By topic, partition and key.
    pub values: Vec<StateValue>,
    /// Give it as `after` for what may follow; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
}

/// One value of a handler's state.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StateValue {
    /// The source topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// What it is found by.
    pub key: String,
    /// The value, if it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value: Option<String>,
    /// The value in base64, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value_base64: Option<String>,
}

impl StateValue {
    /// Where it lies among all values of its function.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{}/{}/{}", self.topic, self.partition, self.key)
    }
}

/// What was skipped of one partition.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Skipped {
    /// The source topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// Whether it was of the redrive log, and not of the topic itself.
    pub redrive: bool,
    /// Records that are gone.
    pub records: u64,
    /// The offset that the function wanted.
    pub from: u64,
    /// The oldest offset there is: where it goes on.
    pub to: u64,
}

/// `GET /v1/dead-letters?function=&status=&category=&topic=&after=&limit=`. `status` is `open` (as without it),
/// `redriven`, `resolved`, `discarded` or `all`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetters {
    /// By function and id.
    pub letters: Vec<DeadLetter>,
    /// Give it as `after` for what follows; absent at the end. A page can hold fewer letters than asked for, even none,
    /// and still not be the last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
}

/// A dead letter; also `GET /v1/dead-letters/{function}/{topic}/{partition}/{offset}`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetter {
    /// Whose it is.
    pub function: String,
    /// `<topic>/<partition>/<offset>` of its source record.
    pub id: String,
    /// What happened to it.
    #[schemars(with = "String", extend("enum" = ["open", "redriven", "resolved", "discarded"]))]
    pub status: LetterStatus,
    /// When that was.
    pub status_at: String,
    /// Why a person resolved or discarded it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
    /// The last failure's category.
    pub category: String,
    /// The last failure's reason.
    pub reason: String,
    /// Failed attempts.
    pub attempts: u32,
    /// When the first one failed.
    pub first_failed_at: String,
    /// When the last one failed.
    pub last_failed_at: String,
    /// By when a person should have looked at it.
    pub deadline: String,
    /// The revision that handled it last.
    pub revision: u64,
    /// Its idempotency key.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub idempotency_key: Option<String>,
    /// How often it was redriven.
    pub redrives: u32,
    /// The record as it was first read; only when one letter is shown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub record: Option<Record>,
}

/// `POST /v1/dead-letters/{redrive|resolve|discard}`: which letters, and what about them.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LetterRequest {
    /// Whose letters.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub function: Option<String>,
    /// These letters; else those that the filters below select.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub ids: Vec<String>,
    /// All open ones with this category.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub category: Option<String>,
    /// All open ones from this source topic.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub topic: Option<String>,
    /// All open ones whose reason contains this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason_contains: Option<String>,
    /// All open ones of all functions: must be said when nothing else selects.
    #[serde(default)]
    pub all: bool,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// Also letters that are not open.
    #[serde(default)]
    pub force: bool,
    /// Why; required to discard, possible to resolve.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
    /// Go on after an earlier answer's `next`; not with `ids`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub after: Option<String>,
}

/// What was done with dead letters.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LetterAnswer {
    /// Whether it was only said and not done.
    pub dry_run: bool,
    /// Which letters.
    pub letters: Vec<LetterName>,
    /// One request treats a bounded number of letters: send it again with this as `after` for those that follow; absent
    /// at the end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
}

/// Names one dead letter.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LetterName {
    /// Whose it is.
    pub function: String,
    /// Its identity.
    pub id: String,
}

/// A problem (RFC 9457), with content type `application/problem+json`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// [`PROBLEM_PREFIX`] and the kind; stable.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The status code.
    pub status: u16,
    /// What is wrong this time, and what to do.
    pub detail: String,
    /// The place of the offending event in its batch, from 0.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index: Option<usize>,
    /// The token that was to be made, where it is not known whether it was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token: Option<Hidden>,
}

impl Problem {
    /// The kind, if it is one of Millrace's.
    #[must_use]
    pub fn known_as(&self) -> Option<&str> {
        self.kind.strip_prefix(PROBLEM_PREFIX)
    }
}

/// A text that is in no debug output.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Hidden(pub String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden")
    }
}

/// `PUT` and `GET /v1/components/{digest}`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Component {
    /// Its SHA-256, in hex.
    pub digest: String,
    /// Whether it was not there before.
    pub new: bool,
}

/// The body of `PUT /v1/functions/{function}`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// The SHA-256 of its component, in hex, which was uploaded before.
    pub component: String,
    /// A manifest that holds the function.
    pub manifest: String,
    /// The signature of the component, in base64: ed25519 over `sha256:<digest>`. A server can ask for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// A share of the keys, such as `5%` or `0.5%`: the revision handles these beside the active one, as a canary, and does not
    /// become active. Without it, it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<String>,
    /// The number of the latest deployment that the sender knows, 0 for none. If there is another one by now, the answer is
    /// `409`. Without it whatever is there is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builds_on: Option<u64>,
    /// Everything is checked, and nothing done.
    #[serde(default)]
    pub dry_run: bool,
}

/// The body of `POST /v1/functions/{function}/rollback`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// The revision that runs again; without it the active one if there is a canary, which is given up by that, or else the one
    /// before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
    /// As of a [`DeployRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builds_on: Option<u64>,
    /// Everything is checked, and nothing done.
    #[serde(default)]
    pub dry_run: bool,
}

/// What was done to a function. Instances follow: [`Revisions`] tells how far they are.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Deployed {
    /// `<application>.<function>`.
    pub function: String,
    /// The number of the deployment; in a dry run the one it would have.
    pub number: u64,
    /// The revision that is active by it, or the canary, or will be that once the instances have made it ready; none if none is.
    pub revision: Option<u64>,
    /// Whether it changes anything; if not, the deployment is an earlier one.
    pub new: bool,
}

/// `GET /v1/functions/{function}/revisions`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Revisions {
    /// `<application>.<function>`.
    pub function: String,
    /// `active`, `staged` if its first revision is not active yet, `deleted`, or `unknown` if a newer version did something that this one does not know.
    pub state: String,
    /// The number of the latest deployment.
    pub latest: u64,
    /// The active revision.
    pub active: Option<u64>,
    /// The revision that becomes active, or the canary, once all instances have made it ready, have failed to, or a minute has passed.
    #[serde(default)]
    pub staged: Option<u64>,
    /// The share of the keys that the staged revision is to handle as a canary; without it, it is to become active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged_share: Option<String>,
    /// The revision that handles a share of the keys beside the active one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// The revision that a rollback goes to: the active one while there is a canary, which is given up by it.
    pub previous: Option<u64>,
    /// Whether it handles no events until it is resumed.
    pub paused: bool,
    /// What attempts came to on all live instances, as far as they have told, by revision: of the active one, the canary, and the newest of the
    /// others. What the instance that is asked counted is of now, that of others at most some seconds old.
    #[serde(default)]
    pub figures: Vec<RevisionFigures>,
    /// All of them, oldest first.
    pub deployments: Vec<Deployment>,
    /// What each instance says, if it said anything lately.
    pub instances: Vec<Instance>,
}

impl Revisions {
    /// The deployment that brought the active revision.
    #[must_use]
    pub fn active_deployment(&self) -> Option<&Deployment> {
        self.deployments.iter().find(|one| Some(one.number) == self.active)
    }
}

/// Something that was done to a function.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Deployment {
    /// Its number; that of the revision, if it brought one.
    pub number: u64,
    /// `deploy`, `activate`, `canary`, `promote`, `rollback`, `pause`, `resume`, `delete`, `reset`, or `unknown`.
    pub action: String,
    /// When.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub at: String,
    /// Who, if that is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// The SHA-256 of the component, of a `deploy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    /// The manifest in its canonical form, of a `deploy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Where it comes from, of a `deploy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub origin: Option<Origin>,
    /// The signature of the component, of a `deploy` that came with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The share of the keys, of a `deploy` of a canary and of a `canary`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<String>,
    /// The revision that runs, of an `activate`, a `canary`, a `promote` or a `rollback`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
    /// How many partitions go on elsewhere, of a `reset`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u64>,
}

/// How a function does on one instance.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Instance {
    /// The instance.
    pub instance: String,
    /// When it said so.
    pub at: String,
    /// Whether that is so short a while ago that it is not taken for one that is down.
    pub live: bool,
    /// Whether it is the one that is asked.
    #[serde(default)]
    pub asked: bool,
    /// What it said.
    #[serde(flatten)]
    pub here: FunctionHere,
}

/// An instance that has said nothing for so long is not waited for: it is down.
pub const INSTANCE_LIVE_FOR: Duration = Duration::from_secs(15);

/// What an instance tells the others of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceReport {
    /// By name.
    pub functions: BTreeMap<String, FunctionHere>,
    /// Whether it has stopped, and says nothing more.
    #[serde(default)]
    pub ended: bool,
}

/// How a function does on an instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FunctionHere {
    /// The revision that runs.
    #[serde(default)]
    pub revision: Option<u64>,
    /// Whether it handles no events until it is resumed.
    #[serde(default)]
    pub paused: bool,
    /// The staged revision that it has made ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<u64>,
    /// The canary that runs there, beside that revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// Revisions, active, staged or the canary, that cannot run there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cannot_run: Vec<CannotRun>,
    /// The newest deployment that it has taken up: it does what that says, or tells here why it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<u64>,
    /// What attempts came to there: those of the active revision, of the canary, and of the newest of the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<AttemptsHere>,
}

/// A revision that cannot run on an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CannotRun {
    /// Which one.
    pub revision: u64,
    /// Why not.
    pub reason: String,
    /// Whether it is tried again, although nothing else is deployed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

impl FunctionHere {
    /// Why a revision cannot run there, if it is known that it cannot.
    #[must_use]
    pub fn cannot_run(&self, revision: u64) -> Option<&CannotRun> {
        self.cannot_run.iter().find(|one| one.revision == revision)
    }
}

/// `GET /v1/audit`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Audit {
    /// The newest first.
    pub records: Vec<Audited>,
    /// Older ones follow if it is there: give it as `before`. There can be more although there are fewer records than were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// What somebody did, or tried to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Audited {
    /// Its place in the topic `<prefix>.audit`.
    pub offset: u64,
    /// When, by the clock of the instance that was asked.
    pub at: String,
    /// What the token is called; empty if none was shown that holds.
    pub by: String,
    /// The id of that token, if it is in the log.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// The address and port that the request came from: a proxy's, if there is one in between.
    pub from: String,
    /// What: `deploy`, `canary`, `promote`, `rollback`, `pause`, `resume`, `skip`, `delete`, `upload`, `make-topic`, `redrive`, `resolve`, `discard`, `create-token` or
    /// `revoke-token`; of a refused request also `view`, `publish`, or `unknown` if there is nothing at its path.
    pub action: String,
    /// To which functions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<String>,
    /// To which topics.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<String>,
    /// To what else: `token <id>` or `component <digest>`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// `done`; `refused` if it is not allowed; `failed` for any other reason, or if it is not known how it ended.
    pub result: String,
    /// What came of it, or the reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// How many refusals before this one got no record, because there were too many at once.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u64,
}
