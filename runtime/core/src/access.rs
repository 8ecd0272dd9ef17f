//! Who may do what: tokens with roles, and the patterns that restrict them.
//!
//! A request shows a token, and [`Tokens::caller`] says who that is. What a [`Caller`] may do is decided by its roles, which have
//! permissions, and by patterns for functions and topics, which restrict all of its roles alike. Without a pattern of a kind, all
//! functions or all topics are meant.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::name::is_reserved;
use crate::time::Timestamp;

mod pattern;
mod rate;
mod token;

pub use pattern::{InvalidPattern, Pattern};
pub use rate::{InvalidRate, Limiter, Rate};
pub use token::{InvalidToken, Secret, Shown, Token, TokenId, without_secrets};

/// What somebody is trusted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Looks at everything but tokens.
    View,
    /// Publishes events, and sees nothing.
    Publish,
    /// Views, uploads components, deploys, rolls back and deletes functions.
    Deploy,
    /// Views, pauses, resumes, skips and rolls back functions, and decides about dead letters.
    Operate,
    /// Does everything, and makes and revokes tokens.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::View, Self::Publish, Self::Deploy, Self::Operate, Self::Admin];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Publish => "publish",
            Self::Deploy => "deploy",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            format!("`{}` is no role; choose one of {known}", text.chars().take(40).collect::<String>())
        })
    }
}

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// To look.
    View,
    /// To publish events.
    Publish,
    /// To upload components, and to deploy and delete functions.
    Deploy,
    /// To run an earlier revision again.
    RollBack,
    /// To pause, resume and skip, and to decide about dead letters.
    Operate,
    /// To see, make and revoke tokens.
    Administer,
}

impl Permission {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::View, Self::Publish, Self::Deploy, Self::RollBack, Self::Operate, Self::Administer];

    /// The roles that have it.
    #[must_use]
    pub const fn roles(self) -> &'static [Role] {
        match self {
            Self::View => &[Role::View, Role::Deploy, Role::Operate, Role::Admin],
            Self::Publish => &[Role::Publish, Role::Admin],
            Self::Deploy => &[Role::Deploy, Role::Admin],
            Self::RollBack => &[Role::Deploy, Role::Operate, Role::Admin],
            Self::Operate => &[Role::Operate, Role::Admin],
            Self::Administer => &[Role::Admin],
        }
    }
}

/// Whoever sent a request, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    name: String,
    token: Option<TokenId>,
    roles: BTreeSet<Role>,
    functions: Vec<Pattern>,
    topics: Vec<Pattern>,
    rate: Option<Rate>,
}

/// What the administrator's token of the configuration is called. No other one can be.
pub const ADMINISTRATOR: &str = "admin token of the configuration";

/// A name with the id of its token, if there is one.
pub(crate) fn label(name: &str, token: &str) -> String {
    if token.is_empty() { name.to_owned() } else { format!("{name} ({token})") }
}

impl Caller {
    /// One who may do everything.
    #[must_use]
    pub fn unrestricted(name: &str) -> Self {
        let roles = BTreeSet::from([Role::Admin]);
        Self { name: name.to_owned(), token: None, roles, functions: Vec::new(), topics: Vec::new(), rate: None }
    }

    fn of(id: &TokenId, token: &Token) -> Self {
        let Token { name, roles, functions, topics, rate, .. } = token.clone();
        Self { name, token: Some(id.clone()), roles, functions, topics, rate }
    }

    /// The name with the id of its token, if that is in the log: others can have the same name.
    #[must_use]
    pub fn label(&self) -> String {
        label(&self.name, self.token.as_ref().map(TokenId::as_str).unwrap_or_default())
    }

    /// What the caller is called; empty if that is not known.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id of its token, if that is in the log.
    #[must_use]
    pub const fn token(&self) -> Option<&TokenId> {
        self.token.as_ref()
    }

    /// How many requests its token may send, if that says so itself.
    #[must_use]
    pub const fn rate(&self) -> Option<Rate> {
        self.rate
    }

    /// Whether no pattern restricts it.
    #[must_use]
    pub const fn is_for_all(&self) -> bool {
        self.functions.is_empty() && self.topics.is_empty()
    }

    /// Whether one of its roles has this permission.
    ///
    /// # Errors
    /// If none has it.
    pub fn may(&self, permission: Permission) -> Result<(), Denied> {
        let has = permission.roles().iter().any(|role| self.roles.contains(role));
        if has { Ok(()) } else { Err(Denied::Role { permission }) }
    }

    /// Whether its patterns, if there are any, allow a function.
    ///
    /// # Errors
    /// If they do not.
    pub fn reaches_function(&self, function: &str) -> Result<(), Denied> {
        fits(&self.functions, "function", function)
    }

    /// Whether its patterns, if there are any, allow a topic. The topics of the runtime's own hold what was sent to all functions,
    /// so that they are only for one without any pattern.
    ///
    /// # Errors
    /// If they do not.
    pub fn reaches_topic(&self, prefix: &str, topic: &str) -> Result<(), Denied> {
        if is_reserved(prefix, topic) && !self.is_for_all() {
            return Err(Denied::All { what: format!("topic `{topic}`") });
        }
        fits(&self.topics, "topic", topic)
    }

    /// Whether it may see what is of all functions and topics at once.
    ///
    /// # Errors
    /// If a pattern restricts it.
    pub fn reaches_all(&self, what: &str) -> Result<(), Denied> {
        if self.is_for_all() { Ok(()) } else { Err(Denied::All { what: what.to_owned() }) }
    }
}

fn fits(patterns: &[Pattern], kind: &'static str, name: &str) -> Result<(), Denied> {
    if patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(name)) {
        return Ok(());
    }
    Err(Denied::Pattern { kind, name: name.to_owned(), patterns: patterns.to_vec() })
}

/// Why somebody may not do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No role has the permission.
    Role {
        /// The permission.
        permission: Permission,
    },
    /// No pattern matches.
    Pattern {
        /// `function` or `topic`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The patterns.
        patterns: Vec<Pattern>,
    },
    /// It is not for tokens with patterns.
    All {
        /// What.
        what: String,
    },
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Role { permission } => {
                let roles: Vec<String> = permission.roles().iter().map(|role| format!("`{role}`")).collect();
                match &roles[..] {
                    [only] => write!(f, "this needs the role {only}, which the token does not have"),
                    _ => write!(f, "this needs one of the roles {}, and the token has none of them", roles.join(", ")),
                }
            }
            Self::Pattern { kind, name, patterns } => {
                let patterns: Vec<String> = patterns.iter().map(|pattern| format!("`{pattern}`")).collect();
                write!(f, "the token is for {kind}s {} alone, and `{name}` is none of them", patterns.join(", "))
            }
            Self::All { what } => {
                write!(f, "{what} shows what is of all functions and topics, and the token is for some of them alone")
            }
        }
    }
}

/// All tokens of a log at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    tokens: BTreeMap<TokenId, Token>,
    /// Those that a newer version made, or that are damaged. They let nobody in, and still keep the API closed.
    unreadable: BTreeSet<String>,
    /// Whether there were others, of which the log has nothing any more.
    lost: bool,
}

impl Tokens {
    /// Reads what a log keeps. What is not about tokens is left out.
    pub fn read<'a>(entries: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut all = Self::default();
        for (name, content) in entries {
            match TokenId::of_entry(name) {
                None => {}
                Some(Err(id)) => drop(all.unreadable.insert(id.to_owned())),
                Some(Ok(id)) => match Token::decode(content) {
                    Some(token) => drop(all.tokens.insert(id, token)),
                    None => drop(all.unreadable.insert(id.to_string())),
                },
            }
        }
        all
    }

    /// The same, where the log lost what it had before: there may have been tokens that nobody revoked.
    #[must_use]
    pub fn after_a_loss(self) -> Self {
        Self { lost: true, ..self }
    }

    /// Whether a request needs a token. While there are none it does not, unless there were some that nobody revoked.
    #[must_use]
    pub fn are_needed(&self) -> bool {
        self.count() > 0 || self.lost
    }

    /// How many there are, be they of use or not.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tokens.len() + self.unreadable.len()
    }

    /// Whether a token is there that holds now and is an administrator's.
    #[must_use]
    pub fn administers(&self, id: &TokenId, now: Timestamp) -> bool {
        self.tokens.get(id).is_some_and(|token| token.holds(now) && token.roles.contains(&Role::Admin))
    }

    /// Those that can be read, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&TokenId, &Token)> {
        self.tokens.iter()
    }

    /// Ids of those that cannot, or what stands in place of them.
    pub fn unreadable(&self) -> impl Iterator<Item = &str> {
        self.unreadable.iter().map(String::as_str)
    }

    /// Whether there is one with this id, be it of use or not.
    #[must_use]
    pub fn has(&self, id: &TokenId) -> bool {
        self.tokens.contains_key(id) || self.unreadable.contains(&id.to_string())
    }

    /// Who shows this text; none if it is no token that holds now. Which of the reasons it is takes the same time.
    #[must_use]
    pub fn caller(&self, shown: &str, now: Timestamp) -> Option<Caller> {
        let (id, secret) = token::parts(shown)?;
        let token = self.tokens.get(&id);
        let nobody = Secret::NONE;
        let is_right = token.map_or(&nobody, |token| &token.secret).is(secret);
        token.filter(|token| is_right && token.holds(now)).map(|token| Caller::of(&id, token))
    }

    /// Whether one can be made. `elsewhere`: there is a token for administrators that is not in the log.
    ///
    /// # Errors
    /// If nobody could make another one after it, or there are too many.
    pub fn may_add(&self, token: &Token, elsewhere: bool, now: Timestamp) -> Result<(), Lockout> {
        let expired = self.tokens.values().filter(|token| !token.holds(now)).count();
        if self.count() - expired >= limits::TOKENS_MAX || self.count() >= limits::TOKENS_KEPT_MAX {
            return Err(Lockout::TooMany);
        }
        if self.count() == 0 && !elsewhere && !token.lasts() {
            return Err(Lockout::First);
        }
        Ok(())
    }

    /// Whether one can be revoked. `elsewhere`: as of [`Tokens::may_add`]; `open`: without tokens everybody may do everything.
    ///
    /// # Errors
    /// If nobody could make another one after it.
    pub fn may_remove(&self, id: &TokenId, elsewhere: bool, open: bool) -> Result<(), Lockout> {
        let is_last = self.count() == 1 && open && !self.lost;
        let lasts = |token: &Token| token.lasts();
        let others_last = self.tokens.iter().any(|(other, token)| other != id && lasts(token));
        let is_needed = self.tokens.get(id).is_some_and(lasts) && !others_last;
        if is_needed && !is_last && !elsewhere { Err(Lockout::Last) } else { Ok(()) }
    }
}

/// Why a token cannot be made or revoked: afterwards nobody could make another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockout {
    /// The first one has to be an administrator's.
    First,
    /// The last one of an administrator stays.
    Last,
    /// There are too many.
    TooMany,
}

impl fmt::Display for Lockout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str(
                "from the first token on, each request needs one, and only one with the role `admin` can make others: make one with \
                 the role `admin` first, that does not expire, or give the server `http.admin-token-file`",
            ),
            Self::Last => f.write_str(
                "this is the last token with the role `admin` that does not expire, and without it nobody could make or revoke \
                 others: make another one first, or give the server `http.admin-token-file`",
            ),
            Self::TooMany => {
                let (hold, all) = (limits::TOKENS_MAX, limits::TOKENS_KEPT_MAX);
                write!(
                    f,
                    "there are {hold} tokens already, or {all} with those that have expired; revoke those that are not used any more"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests;
