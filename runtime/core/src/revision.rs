//! Revisions of functions: what each deployment in the log changes, and what follows from all of them.
//!
//! A function's deployments are numbered from 1 on, and every reader sees them in the same order, so that all instances
//! come to the same conclusion. A revision has the number of the deployment that brought it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::canary::Share;
use crate::digest::Digest;
use crate::manifest::{Function, Manifest};
use crate::name::{FunctionName, Topic, Unit};
use crate::settings::Problem;
use crate::time::Timestamp;

/// Longest description of who did something, in bytes.
pub const BY_MAX_BYTES: usize = 200;

/// A deployment: what somebody did to a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What.
    #[serde(flatten)]
    pub action: Action,
    /// When, as RFC 3339. For people; the order is that of the log.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub at: String,
    /// Who, if that is known. For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
}

/// What can be done to a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// A new revision. One of a directory is active at once; one that was uploaded is staged until it is activated, so that all
    /// instances can make it ready before the first one runs it.
    Deploy(Source),
    /// A new revision, which is staged to become the canary. An action of its own, so that a version that knows no canaries keeps
    /// what runs and does not activate it.
    DeployCanary {
        /// What it is made of.
        #[serde(flatten)]
        source: Source,
        /// Its share of the keys.
        share: Share,
    },
    /// The staged revision becomes the active one.
    Activate {
        /// Its number.
        revision: u64,
    },
    /// The revision that was staged for it becomes the canary, or the canary gets another share of the keys.
    Canary {
        /// Its number.
        revision: u64,
        /// Its share of the keys.
        share: Share,
    },
    /// The canary becomes the active revision.
    Promote {
        /// Its number.
        revision: u64,
    },
    /// This earlier revision runs again, alone: what is staged is given up, and so is a canary. To the active one it gives them up
    /// and does nothing else.
    Rollback {
        /// Its number.
        to: u64,
    },
    /// It handles no events until it is resumed.
    Pause,
    /// It goes on.
    Resume,
    /// It does not run any more. Its progress and its dead letters stay, should it come back.
    Delete,
    /// It goes on from other places of its source topics. Whoever owns a partition sets its position, once.
    Reset {
        /// Where. No partition comes twice.
        positions: Vec<Place>,
        /// Whether the idempotency keys of these partitions are forgotten, so that what was handled is handled again.
        #[serde(default)]
        forget: bool,
    },
}

/// A place in a source topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The topic.
    pub topic: Topic,
    /// The partition.
    pub partition: u32,
    /// The offset to go on from.
    pub offset: u64,
    /// Whether that was the oldest record there was, so that an older one than there is by now is not missed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oldest: bool,
}

/// Where a unit is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The number of the deployment that says so: a unit obeys each once.
    pub number: u64,
    /// The offset to go on from.
    pub offset: u64,
    /// Whether it is to go on from the oldest record that there is then.
    pub oldest: bool,
    /// The newest deployment up to this one that said that its idempotency keys are forgotten; 0 if none did. A unit that obeys
    /// several at once forgets them, too.
    pub forgets: u64,
}

/// Where each unit of a function was last told to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resets(BTreeMap<Topic, BTreeMap<u32, Target>>);

impl Resets {
    /// What a unit was told, if it was told anything.
    #[must_use]
    pub fn of(&self, unit: &Unit) -> Option<Target> {
        self.0.get(&unit.topic)?.get(&unit.partition).copied()
    }

    /// Whether nobody was told anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add(&mut self, number: u64, positions: &[Place], forget: bool) {
        for Place { topic, partition, offset, oldest } in positions {
            let told = self.0.entry(topic.clone()).or_default();
            let forgets = if forget { number } else { told.get(partition).map_or(0, |target| target.forgets) };
            told.insert(*partition, Target { number, offset: *offset, oldest: *oldest, forgets });
        }
    }
}

/// What a revision is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its component.
    pub component: Digest,
    /// Its part of the manifest, in the canonical form: an application with this function alone.
    pub manifest: String,
    /// Where it comes from.
    pub origin: Origin,
    /// The signature of its component, in base64, if it was uploaded with one. Kept as it came: whoever runs it looks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// Where a revision comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// From a directory beside a process, which alone can run it.
    Directory,
    /// It was uploaded, with its component, and every instance runs it.
    Upload,
}

impl Action {
    /// What the new revision is made of, if this brings one.
    #[must_use]
    pub const fn source(&self) -> Option<&Source> {
        match self {
            Self::Deploy(source) | Self::DeployCanary { source, .. } => Some(source),
            Self::Activate { .. }
            | Self::Canary { .. }
            | Self::Promote { .. }
            | Self::Rollback { .. }
            | Self::Pause
            | Self::Resume
            | Self::Delete
            | Self::Reset { .. } => None,
        }
    }

    /// The revision that there is already and that this makes the active one, or the canary.
    #[must_use]
    pub const fn revision(&self) -> Option<u64> {
        match self {
            Self::Activate { revision }
            | Self::Canary { revision, .. }
            | Self::Promote { revision }
            | Self::Rollback { to: revision } => Some(*revision),
            Self::Deploy(_)
            | Self::DeployCanary { .. }
            | Self::Pause
            | Self::Resume
            | Self::Delete
            | Self::Reset { .. } => None,
        }
    }
}

impl Source {
    /// What an uploaded revision is made of. What says how the component is built stays with whoever builds it.
    #[must_use]
    pub fn uploaded(manifest: &Manifest, function: &Function, component: Digest) -> Self {
        let component_text = format!("sha256:{component}");
        let function = Function { build: None, component: component_text, watch: Vec::new(), ..function.clone() };
        Self { component, manifest: alone(manifest, function).to_toml(), origin: Origin::Upload, signature: None }
    }

    /// Whether it is the same as another one. A signature that is not given again stays.
    #[must_use]
    pub fn is_made_of(&self, other: &Self) -> bool {
        let Self { component, manifest, origin, signature } = self;
        (component, manifest, origin) == (&other.component, &other.manifest, &other.origin)
            && (signature.is_none() || *signature == other.signature)
    }

    /// What a revision is made of that a process runs from a directory.
    #[must_use]
    pub fn of_directory(function: &Function, component: Digest) -> Self {
        let application = function.name.application().to_owned();
        let manifest = Manifest { application, topics: Vec::new(), functions: vec![function.clone()] };
        Self { component, manifest: manifest.to_toml(), origin: Origin::Directory, signature: None }
    }

    /// The manifest, read back: an application with the function alone.
    ///
    /// # Errors
    /// If this version cannot read it.
    pub fn read(&self, prefix: &str) -> Result<(Manifest, Function), Unreadable> {
        let (manifest, _warnings) = Manifest::parse_with_prefix(&self.manifest, prefix).map_err(Unreadable)?;
        let function = manifest.functions.first().cloned().ok_or_else(|| Unreadable(Vec::new()))?;
        Ok((manifest, function))
    }
}

/// The application as far as it concerns one function.
fn alone(manifest: &Manifest, function: Function) -> Manifest {
    let concerns =
        |topic: &crate::name::Topic| function.topics.contains(topic) || function.grants.publish.contains(topic);
    let topics = manifest.topics.iter().filter(|settings| concerns(&settings.name)).cloned().collect();
    Manifest { application: function.name.application().to_owned(), topics, functions: vec![function] }
}

/// Why a stored manifest cannot be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Unreadable(pub Vec<Problem>);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its stored manifest cannot be used by this version of Millrace")?;
        self.0.iter().try_for_each(|problem| write!(f, "; {}: {}", problem.path, problem.message))
    }
}

impl std::error::Error for Unreadable {}

impl Change {
    /// Something that somebody does now.
    #[must_use]
    pub fn new(action: Action, at: Timestamp, by: &str) -> Self {
        let end = by.floor_char_boundary(BY_MAX_BYTES);
        Self { action, at: at.to_rfc3339(), by: by[..end].to_owned() }
    }

    /// As the log keeps it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads what the log keeps.
    ///
    /// # Errors
    /// If this version does not know it, which says why.
    pub fn decode(content: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(content).or_else(|e| {
            // The first ones said only what ran from a directory. The canonical form of its table is a JSON object; the text of the manifest was not kept.
            let old = serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(content).unwrap_or_default();
            let component = old.get("component").and_then(|component| component.as_str()?.parse().ok());
            let (Some(component), true) = (component, old.contains_key("function") && old.len() == 2) else {
                return Err(e.to_string());
            };
            let source = Source { component, manifest: String::new(), origin: Origin::Directory, signature: None };
            Ok(Self { action: Action::Deploy(source), at: String::new(), by: String::new() })
        })
    }
}

/// All deployments of one function, and what follows from them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    changes: Vec<(u64, Result<Change, String>)>,
    revisions: BTreeMap<u64, Source>,
    /// Those that were deployed as canaries and never became active.
    tried: BTreeSet<u64>,
    stands: Stands,
    resets: Resets,
}

/// What follows from all deployments until now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stands {
    state: State,
    staged: Option<Staged>,
    /// The revision that runs a share of the keys beside the active one.
    canary: Option<(u64, Share)>,
}

/// A revision that waits until the instances have made it ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Staged {
    revision: u64,
    /// Its share, if it is to be a canary.
    share: Option<Share>,
}

/// How a function stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It was never deployed, or was deleted.
    #[default]
    Absent,
    /// It has an active revision.
    Active {
        /// Its number.
        revision: u64,
        /// Whether it handles no events until it is resumed.
        paused: bool,
    },
    /// Something was done that this version does not know. What runs goes on.
    Unknown {
        /// Which deployment that is.
        number: u64,
    },
}

/// Why something cannot be done to a function. Says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Impossible {
    /// There is no such function.
    Absent,
    /// There is no such revision.
    NoRevision {
        /// The number that was asked for.
        wanted: u64,
        /// Those that there are.
        there_are: Vec<u64>,
    },
    /// The revision came from a directory, so that its component is not in the log.
    OfDirectory {
        /// Its number.
        revision: u64,
    },
    /// The revision is not staged, or not any more.
    NotStaged {
        /// Its number.
        revision: u64,
    },
    /// No revision runs that was uploaded, which a canary could run beside.
    NothingBeside,
    /// There is no canary.
    NoCanary,
    /// Another revision is the canary.
    NotCanary {
        /// The number that was named.
        revision: u64,
        /// That of the canary.
        canary: u64,
    },
    /// A newer version did something that this one does not know.
    Unknown {
        /// Which deployment that is.
        number: u64,
    },
}

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("it is not deployed; `millrace deploy` deploys it"),
            Self::NoRevision { wanted, there_are } => {
                let numbers: Vec<String> = there_are.iter().map(ToString::to_string).collect();
                write!(f, "it has no revision {wanted}; there are {}", numbers.join(", "))
            }
            Self::OfDirectory { revision } => write!(
                f,
                "revision {revision} was run from a directory and never uploaded; upload it with `millrace deploy`"
            ),
            Self::NotStaged { revision } => write!(f, "revision {revision} is not staged"),
            Self::NothingBeside => f.write_str(
                "no revision runs that was uploaded, which a canary could run beside; deploy it without --canary (over the API, without `canary`)",
            ),
            Self::NoCanary => f.write_str("it has no canary; `millrace deploy --canary 5%` makes one"),
            Self::NotCanary { revision, canary } => {
                write!(f, "revision {canary} is its canary, and not revision {revision}; look at it, then try again")
            }
            Self::Unknown { number } => write!(
                f,
                "its deployment {number} was made by a newer version of Millrace; use that version, on this instance too"
            ),
        }
    }
}

impl std::error::Error for Impossible {}

impl History {
    /// Takes in the next deployment.
    pub fn apply(&mut self, number: u64, content: &[u8]) {
        let change = Change::decode(content);
        self.stands = match &change {
            Ok(change) => self.after(number, &change.action),
            Err(_) => Stands { state: State::Unknown { number }, staged: None, canary: None },
        };
        if let Ok(change) = &change
            && let Some(source) = change.action.source()
        {
            self.revisions.insert(number, source.clone());
            if matches!(change.action, Action::DeployCanary { .. }) {
                self.tried.insert(number);
            }
        }
        if let Ok(Change { action: Action::Reset { positions, forget }, .. }) = &change {
            self.resets.add(number, positions, *forget);
        }
        if let State::Active { revision, .. } = self.stands.state {
            self.tried.remove(&revision);
        }
        self.changes.push((number, change));
    }

    /// Where an action leads. One that is not possible changes nothing.
    fn after(&self, number: u64, action: &Action) -> Stands {
        let Stands { state, staged, canary } = self.stands.clone();
        let (is_active, paused) = match state {
            State::Active { paused, .. } => (true, paused),
            State::Absent | State::Unknown { .. } => (false, false),
        };
        let alone = |revision: u64| Stands { state: State::Active { revision, paused }, staged: None, canary: None };
        let runs = |now: bool| match state {
            State::Active { revision, .. } => State::Active { revision, paused: now },
            State::Absent | State::Unknown { .. } => state.clone(),
        };
        let is_staged = |revision: u64| staged.filter(|staged| staged.revision == revision);
        let is_canary = |revision: u64| canary.is_some_and(|(canary, _)| canary == revision);
        match *action {
            Action::Deploy(Source { origin: Origin::Directory, .. }) => Stands { staged, ..alone(number) },
            Action::Deploy(_) => Stands { staged: Some(Staged { revision: number, share: None }), state, canary },
            Action::DeployCanary { share, .. } if is_active => {
                Stands { staged: Some(Staged { revision: number, share: Some(share) }), state, canary }
            }
            Action::Activate { revision } if is_staged(revision).is_some_and(|staged| staged.share.is_none()) => {
                alone(revision)
            }
            Action::Canary { revision, share }
                if is_active && is_staged(revision).is_some_and(|staged| staged.share.is_some()) =>
            {
                Stands { state, staged: None, canary: Some((revision, share)) }
            }
            Action::Canary { revision, share } if is_canary(revision) => {
                Stands { state, staged, canary: Some((revision, share)) }
            }
            Action::Promote { revision } if is_canary(revision) => Stands { staged, ..alone(revision) },
            Action::Rollback { to } if self.revisions.contains_key(&to) => alone(to),
            Action::Pause => Stands { state: runs(true), staged, canary },
            Action::Resume => Stands { state: runs(false), staged, canary },
            Action::Delete => Stands::default(),
            Action::DeployCanary { .. }
            | Action::Activate { .. }
            | Action::Canary { .. }
            | Action::Promote { .. }
            | Action::Rollback { .. }
            | Action::Reset { .. } => Stands { state, staged, canary },
        }
    }

    /// Whether an action is possible now. What would change nothing is possible.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(&self, action: &Action) -> Result<(), Impossible> {
        let Stands { state, staged, canary } = &self.stands;
        if let State::Unknown { number } = *state {
            return Err(Impossible::Unknown { number });
        }
        match action {
            Action::Deploy(_) => Ok(()),
            Action::DeployCanary { .. } => match self.active() {
                Some((_, Source { origin: Origin::Upload, .. })) => Ok(()),
                Some((_, Source { origin: Origin::Directory, .. })) | None => Err(Impossible::NothingBeside),
            },
            Action::Activate { revision } if *staged == Some(Staged { revision: *revision, share: None }) => Ok(()),
            Action::Activate { revision } => Err(Impossible::NotStaged { revision: *revision }),
            Action::Canary { revision, .. }
                if staged.is_some_and(|staged| staged.revision == *revision && staged.share.is_some()) =>
            {
                Ok(())
            }
            Action::Canary { revision, .. } | Action::Promote { revision } => match canary {
                Some((canary, _)) if canary == revision => Ok(()),
                Some((canary, _)) => Err(Impossible::NotCanary { revision: *revision, canary: *canary }),
                None => Err(Impossible::NoCanary),
            },
            Action::Rollback { to } => match self.revisions.get(to) {
                Some(Source { origin: Origin::Upload, .. }) => Ok(()),
                Some(Source { origin: Origin::Directory, .. }) => Err(Impossible::OfDirectory { revision: *to }),
                None if self.revisions.is_empty() => Err(Impossible::Absent),
                None => {
                    Err(Impossible::NoRevision { wanted: *to, there_are: self.revisions.keys().copied().collect() })
                }
            },
            Action::Delete if staged.is_some() => Ok(()),
            Action::Pause | Action::Resume | Action::Delete | Action::Reset { .. } if *state == State::Absent => {
                Err(Impossible::Absent)
            }
            Action::Pause | Action::Resume | Action::Delete | Action::Reset { .. } => Ok(()),
        }
    }

    /// Whether an action would leave everything as it is.
    #[must_use]
    pub fn is_done(&self, action: &Action) -> bool {
        let Stands { staged, canary, .. } = &self.stands;
        let active = self.active().map(|(revision, _)| revision);
        let is_of = |revision: Option<u64>, source: &Source| {
            revision.is_some_and(|revision| self.revisions.get(&revision) == Some(source))
        };
        match action {
            Action::Deploy(source) => match staged {
                // What a directory has says nothing of what is staged, whose turn is still to come.
                Some(staged) if source.origin == Origin::Upload => {
                    staged.share.is_none() && is_of(Some(staged.revision), source)
                }
                Some(_) | None => is_of(active, source),
            },
            Action::DeployCanary { source, share } => {
                let staged = staged.map(|Staged { revision, share }| (revision, share));
                match staged.or(canary.map(|(revision, share)| (revision, Some(share)))) {
                    Some((revision, of)) => of == Some(*share) && is_of(Some(revision), source),
                    None => is_of(active, source),
                }
            }
            // Since the last one its events were handled.
            Action::Reset { .. } => false,
            action => self.after(self.latest() + 1, action) == self.stands,
        }
    }

    /// Where its units were last told to go on.
    #[must_use]
    pub const fn resets(&self) -> &Resets {
        &self.resets
    }

    /// The revision that is staged, with its number: it becomes active, or the canary, once the instances have made it ready.
    #[must_use]
    pub fn staged(&self) -> Option<(u64, &Source)> {
        let number = self.stands.staged?.revision;
        self.revisions.get(&number).map(|source| (number, source))
    }

    /// What comes next for the revision that is staged.
    #[must_use]
    pub fn next(&self) -> Option<Action> {
        let Staged { revision, share } = self.stands.staged?;
        Some(share.map_or(Action::Activate { revision }, |share| Action::Canary { revision, share }))
    }

    /// The share of the keys that the staged revision is to get, if it is to be a canary.
    #[must_use]
    pub fn staged_share(&self) -> Option<Share> {
        self.stands.staged?.share
    }

    /// The canary with its number, and its share of the keys.
    #[must_use]
    pub fn canary(&self) -> Option<(u64, &Source, Share)> {
        let (number, share) = self.stands.canary?;
        self.revisions.get(&number).map(|source| (number, source, share))
    }

    /// A deployment of what is the canary already changes its share and nothing else; anything else is left as it is.
    #[must_use]
    pub fn as_share(&self, action: Action) -> Action {
        match (&action, self.canary(), self.stands.staged) {
            (Action::DeployCanary { source, share }, Some((revision, canary, _)), None)
                if source.is_made_of(canary) =>
            {
                Action::Canary { revision, share: *share }
            }
            _ => action,
        }
    }

    /// The number of the latest deployment; 0 if there is none.
    #[must_use]
    pub fn latest(&self) -> u64 {
        self.changes.last().map_or(0, |(number, _)| *number)
    }

    /// How the function stands.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.stands.state
    }

    /// The active revision with its number.
    #[must_use]
    pub fn active(&self) -> Option<(u64, &Source)> {
        let State::Active { revision, .. } = self.stands.state else { return None };
        self.revisions.get(&revision).map(|source| (revision, source))
    }

    /// The revision that ran before the active one: the newest that was uploaded and is older. A canary that was given up is none.
    #[must_use]
    pub fn previous(&self) -> Option<u64> {
        let (active, _) = self.active()?;
        let older = self.revisions.range(..active).rev();
        let ran = older.filter(|(number, source)| source.origin == Origin::Upload && !self.tried.contains(number));
        ran.map(|(number, _)| *number).next()
    }

    /// Where a rollback without a number goes to: while there is a canary, or one is staged, to the active revision, which gives
    /// that one up; else to the one before.
    #[must_use]
    pub fn back(&self) -> Option<u64> {
        let is_tried = self.stands.canary.is_some() || self.staged_share().is_some();
        let active = self.active().filter(|_| is_tried).map(|(revision, _)| revision);
        active.or_else(|| self.previous())
    }

    /// The revisions that can be active again without being uploaded anew: the active one, the staged one, the canary, and the
    /// newest ones that were uploaded, up to this many in all.
    #[must_use]
    pub fn kept(&self, most: usize) -> BTreeMap<u64, &Source> {
        let canary = self.canary().map(|(number, source, _)| (number, source));
        let first = [self.active(), self.staged(), canary].into_iter().flatten();
        let newest = self.revisions.iter().rev().map(|(number, source)| (*number, source));
        let mut kept = BTreeMap::new();
        for (number, source) in first.chain(newest) {
            if kept.len() < most && source.origin == Origin::Upload {
                kept.insert(number, source);
            }
        }
        kept
    }

    /// All revisions, by number.
    pub fn revisions(&self) -> impl Iterator<Item = (u64, &Source)> {
        self.revisions.iter().map(|(number, source)| (*number, source))
    }

    /// A revision.
    #[must_use]
    pub fn revision(&self, number: u64) -> Option<&Source> {
        self.revisions.get(&number)
    }

    /// All deployments with their numbers, oldest first; what this version does not know, with the reason.
    pub fn changes(&self) -> impl DoubleEndedIterator<Item = (u64, Result<&Change, &str>)> {
        self.changes.iter().map(|(number, change)| (*number, change.as_ref().map_err(String::as_str)))
    }
}

/// Histories by function.
#[must_use]
pub fn histories<'a>(
    deployments: impl IntoIterator<Item = (&'a FunctionName, u64, &'a [u8])>,
) -> BTreeMap<FunctionName, History> {
    let mut all = BTreeMap::<FunctionName, History>::new();
    for (function, number, content) in deployments {
        all.entry(function.clone()).or_default().apply(number, content);
    }
    all
}

#[cfg(test)]
mod canaries;

#[cfg(test)]
mod tests;
