//! Bodies about tokens.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The body of `POST /v1/tokens`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What people call it: 1 to 100 bytes.
    pub name: String,
    /// What it is trusted with: `view`, `publish`, `deploy`, `operate`, `admin`; at least one.
    pub roles: Vec<String>,
    /// The functions that it is for, with `*` for any number of characters; none means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<String>,
    /// The topics that it is for; none means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<String>,
    /// For how long it holds, such as `90d`: 1 second to 10 years. Without it, until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<String>,
    /// How many requests it may send to each instance: `50/s`, `600/m` or `1000/h`. Without it, as many as the configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// How many of them may come at once. Without it, as many as in one unit of the rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// `201` of `POST /v1/tokens`.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct TokenMade {
    /// The token, `mr_<id>_<secret>`. It is told here and never again.
    pub token: String,
    /// What is kept of it.
    #[serde(flatten)]
    pub made: Token,
}

/// A token, without its secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Token {
    /// By what it is known.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it is trusted with.
    pub roles: Vec<String>,
    /// The functions that it is for; none means all.
    #[serde(default)]
    pub functions: Vec<String>,
    /// The topics that it is for; none means all.
    #[serde(default)]
    pub topics: Vec<String>,
    /// When it was made.
    pub created_at: String,
    /// The name of the token that made it; empty if none was needed.
    #[serde(default)]
    pub created_by: String,
    /// From when on it does not hold, if it expires.
    #[serde(default)]
    pub expires_at: Option<String>,
    /// How many requests it may send to each instance, if it was made with a rate of its own: `50/s`, `600/m` or `1000/h`.
    #[serde(default)]
    pub rate: Option<String>,
    /// How many of them may come at once.
    #[serde(default)]
    pub burst: Option<u32>,
    /// `valid`, `expired`, or `unreadable` if a newer version made it.
    pub state: String,
}

/// `GET /v1/tokens`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Tokens {
    /// By id.
    pub tokens: Vec<Token>,
}

/// `DELETE /v1/tokens/{id}`: it does not hold any more.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct TokenRevoked {
    /// By what it was known.
    pub id: String,
    /// What people called it.
    pub name: String,
    /// Whether it was the last one, and nobody needs a token any more: whoever reaches the server may do everything.
    #[serde(default)]
    pub open: bool,
}
