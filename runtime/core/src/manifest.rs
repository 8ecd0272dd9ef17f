//! `millrace.toml`: an application, its topics and its functions.
//!
//! [`Manifest::parse`] reads a text and resolves everything that it leaves out; [`Manifest::to_toml`] writes the canonical
//! form, which holds every setting and reads back the same, so that a deployment keeps what it was deployed with when a
//! later version has other defaults.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::limits::{
    FUNCTIONS_MAX, MANIFEST_MAX_BYTES, PARTITIONS_MAX, RETENTION_MAX_AGE, RETENTION_MAX_BYTES, TOPICS_MAX,
};
use crate::name::{DEFAULT_PREFIX, FunctionName, Topic, check_label, is_reserved};
use crate::policy::{
    BreakerPolicy, Deadlines, IdempotencyPolicy, InstancePolicy, InvocationLimits, Ordering, ParkedPolicy, RetryPolicy,
    StartAt,
};
use crate::settings::{self, Place, Problem, Section, nearest};

mod canonical;
mod function;
#[cfg(test)]
mod tests;

/// The manifest's name in an application's directory.
pub const FILE_NAME: &str = "millrace.toml";

/// An application as its manifest describes it, with all defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The application's name.
    pub application: String,
    /// Topics that are made if they do not exist, by name.
    pub topics: Vec<TopicSettings>,
    /// At least one, by name.
    pub functions: Vec<Function>,
}

/// A topic of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// Its name.
    pub name: Topic,
    /// How many partitions it is made with; the configuration's default without it.
    pub partitions: Option<u32>,
    /// How long its records are kept; the configuration's default where it says nothing.
    pub retention: Retention,
}

/// How long a topic's records are kept. Whatever an active function has not settled is kept anyway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Records older than this can go.
    pub age: Option<Duration>,
    /// The oldest records can go while the topic has more than this many bytes.
    pub size_bytes: Option<u64>,
}

/// A function.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// Its full name.
    pub name: FunctionName,
    /// A shell command that builds its component, run in the manifest's directory.
    pub build: Option<String>,
    /// The component's file, relative to the manifest's directory.
    pub component: String,
    /// Files and directories whose change calls for a build, relative to the manifest's directory; empty means all sources
    /// under it.
    pub watch: Vec<String>,
    /// Its sources; at least one, none twice.
    pub topics: Vec<Topic>,
    /// Where it starts in a source that it has not read yet.
    pub from: StartAt,
    /// An expression over the event; where it gives false, the event is settled as filtered.
    pub filter: Option<String>,
    /// In which order its events are handled.
    pub ordering: Ordering,
    /// When failed events are tried again.
    pub retry: RetryPolicy,
    /// When failures are taken for an outage.
    pub breaker: BreakerPolicy,
    /// How repetitions are recognised.
    pub idempotency: IdempotencyPolicy,
    /// How instances are kept.
    pub instance: InstancePolicy,
    /// What one invocation may use.
    pub limits: InvocationLimits,
    /// How much may be held back behind failing keys.
    pub parked: ParkedPolicy,
    /// What it may do beyond computing.
    pub grants: Grants,
    /// What `wasi:config` answers.
    pub config: BTreeMap<String, String>,
    /// By when a person should have looked at a dead letter.
    pub deadlines: Deadlines,
}

/// What a function may do beyond computing; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Topics that it may emit events to, by name, none twice.
    pub publish: Vec<Topic>,
    /// Whether it keeps state.
    pub state: bool,
}

impl Manifest {
    /// Reads a manifest; answers with warnings if it can be used, or with all that is wrong with it.
    ///
    /// # Errors
    /// If anything is wrong, in the order of the text.
    pub fn parse(text: &str) -> Result<(Self, Vec<Problem>), Vec<Problem>> {
        Self::parse_with_prefix(text, DEFAULT_PREFIX)
    }

    /// Reads a manifest for a broker in which the runtime's own names begin with `prefix`.
    ///
    /// # Errors
    /// If anything is wrong, in the order of the text.
    pub fn parse_with_prefix(text: &str, prefix: &str) -> Result<(Self, Vec<Problem>), Vec<Problem>> {
        if text.len() > MANIFEST_MAX_BYTES {
            return Err(vec![Problem {
                path: String::new(),
                line: 1,
                column: 1,
                message: format!("a manifest of {} bytes is too large", text.len()),
                help: format!("keep it below {MANIFEST_MAX_BYTES} bytes, for example by splitting the application"),
            }]);
        }
        settings::parse(text, |top| read(top, prefix))
    }

    /// The function with this name within the application.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|f| f.name.function() == name)
    }

    /// All topics that the manifest mentions, declared, read or written, by name, none twice.
    #[must_use]
    pub fn mentioned_topics(&self) -> Vec<&Topic> {
        let used = self.functions.iter().flat_map(|f| f.topics.iter().chain(&f.grants.publish));
        let mut all: Vec<&Topic> = self.topics.iter().map(|t| &t.name).chain(used).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The canonical form: every setting, in a fixed order. Equal manifests give equal texts.
    #[must_use]
    pub fn to_toml(&self) -> String {
        canonical::manifest(self).to_string()
    }
}

impl serde::Serialize for Manifest {
    /// The canonical form, with the keys of the manifest.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        canonical::manifest(self).serialize(serializer)
    }
}

impl serde::Serialize for Function {
    /// The canonical form, with the keys of the manifest.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        canonical::function(self).serialize(serializer)
    }
}

/// Reads the whole text. What is wrong is noted and replaced by something harmless, because the result is dropped then.
fn read(top: &mut Section<'_, '_, '_>, prefix: &str) -> Manifest {
    let application = read_application(top);
    let topics = read_topics(&mut top.section("topics"), prefix);
    let declared: Vec<&str> = topics.iter().map(|t| t.name.as_str()).collect();
    let context = function::Context { application: &application, declared: &declared, prefix };
    let functions = read_functions(top, &context);
    Manifest { application, topics, functions }
}

fn read_application(top: &mut Section<'_, '_, '_>) -> String {
    const STAND_IN: &str = "application";
    let present = top.has("application");
    let Some(text) = top.text("application") else {
        if !present {
            top.missing("application", "add application = \"NAME\" as the first line");
        }
        return STAND_IN.to_owned();
    };
    match check_label("an application", text.value) {
        Ok(()) => text.value.to_owned(),
        Err(e) => {
            top.problems().error(&text.place, e, "");
            STAND_IN.to_owned()
        }
    }
}

fn read_topics(section: &mut Section<'_, '_, '_>, prefix: &str) -> Vec<TopicSettings> {
    let names = section.names();
    if names.len() > TOPICS_MAX {
        let place = section.place().clone();
        let message = format!("{} topics are more than an application can have", names.len());
        section.problems().error(&place, message, format_args!("keep to {TOPICS_MAX}"));
    }
    names.into_iter().take(TOPICS_MAX).filter_map(|name| read_topic(section.named(name), name, prefix)).collect()
}

fn read_topic(mut section: Section<'_, '_, '_>, name: &str, prefix: &str) -> Option<TopicSettings> {
    let place = section.place().clone();
    let partitions = section.count("partitions", 1..=PARTITIONS_MAX);
    let mut kept = section.section("retention");
    let retention = Retention {
        age: kept.duration("age", Duration::from_secs(1)..=RETENTION_MAX_AGE),
        size_bytes: kept.size("size", 1..=RETENTION_MAX_BYTES),
    };
    kept.finish();
    let name = checked_topic(&mut section, &place, name, prefix);
    section.finish();
    Some(TopicSettings { name: name?, partitions, retention })
}

/// A topic that an application may name: a legal name outside of what the runtime keeps to itself.
fn checked_topic(section: &mut Section<'_, '_, '_>, place: &Place, name: &str, prefix: &str) -> Option<Topic> {
    if is_reserved(prefix, name) {
        let message = format!("topics that begin with `{prefix}.` are the runtime's own");
        let help = "choose another name; dead letters are read and sent again with `millrace dead-letters`";
        section.problems().error(place, message, help);
        return None;
    }
    match Topic::new(name.to_owned()) {
        Ok(topic) => Some(topic),
        Err(e) => {
            section.problems().error(place, e, "");
            None
        }
    }
}

fn read_functions(top: &mut Section<'_, '_, '_>, context: &function::Context<'_>) -> Vec<Function> {
    let mut section = top.section("functions");
    let names = section.names();
    if names.is_empty() {
        let place = section.place().clone();
        section.problems().error(&place, "there is no function", "add a table [functions.NAME]");
    }
    if names.len() > FUNCTIONS_MAX {
        let place = section.place().clone();
        let message = format!("{} functions are more than an application can have", names.len());
        section.problems().error(&place, message, format_args!("keep to {FUNCTIONS_MAX}"));
    }
    let functions = names.into_iter().take(FUNCTIONS_MAX);
    functions.filter_map(|name| function::read(section.named(name), name, context)).collect()
}

/// Warns of a topic that is nearly one of the declared ones.
fn warn_if_misspelt(section: &mut Section<'_, '_, '_>, place: &Place, topic: &Topic, declared: &[&str]) {
    if declared.contains(&topic.as_str()) {
        return;
    }
    if let Some(near) = nearest(topic.as_str(), declared.iter().copied()) {
        let message = format!("`{topic}` is not among the topics of this application");
        section.problems().warning(place, message, format_args!("did you mean `{near}`?"));
    }
}
