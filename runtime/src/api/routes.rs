//! Every route, and what it needs of whoever asks. What is not in the table is not reached.

use millrace_core::access::Permission;

pub(super) const PUBLISH: &str = "/v1/topics/{topic}/events";
pub(super) const TOPICS: &str = "/v1/topics";
pub(super) const FUNCTIONS: &str = "/v1/functions";
pub(super) const FUNCTION: &str = "/v1/functions/{function}";
pub(super) const COMPONENT: &str = "/v1/components/{digest}";
pub(super) const REVISIONS: &str = "/v1/functions/{function}/revisions";
pub(super) const ROLLBACK: &str = "/v1/functions/{function}/rollback";
pub(super) const PROMOTE: &str = "/v1/functions/{function}/promote";
pub(super) const CANARY: &str = "/v1/functions/{function}/canary";
pub(super) const PAUSE: &str = "/v1/functions/{function}/pause";
pub(super) const RESUME: &str = "/v1/functions/{function}/resume";
pub(super) const RESET: &str = "/v1/functions/{function}/reset";
pub(super) const SKIP: &str = "/v1/functions/{function}/skip";
pub(super) const STATE: &str = "/v1/functions/{function}/state";
pub(super) const STATUS: &str = "/v1/status";
pub(super) const LETTERS: &str = "/v1/dead-letters";
pub(super) const LETTER: &str = "/v1/dead-letters/{function}/{topic}/{partition}/{offset}";
pub(super) const REDRIVE: &str = "/v1/dead-letters/redrive";
pub(super) const RESOLVE: &str = "/v1/dead-letters/resolve";
pub(super) const DISCARD: &str = "/v1/dead-letters/discard";
pub(super) const TOKENS: &str = "/v1/tokens";
pub(super) const TOKEN: &str = "/v1/tokens/{id}";
pub(super) const AUDIT: &str = "/v1/audit";
pub(super) const OPENAPI: &str = "/v1/openapi.json";
pub(super) const LIVE: &str = "/livez";
pub(super) const READY: &str = "/readyz";
pub(super) const METRICS: &str = "/metrics";

/// What a route is about, and so what patterns restrict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// The function of the path.
    Function,
    /// The topic of the path.
    Topic,
    /// The function and the topic of the path.
    Letter,
    /// What the handler finds or reads in the body: it leaves out, or refuses, what patterns do not allow.
    Chosen,
    /// Something that belongs to no function and no topic.
    Neither,
    /// All functions and topics at once: it is for nobody with patterns.
    All,
}

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing, not even a token.
    Nothing,
    /// This permission, for what it is about.
    Permission(Permission, About),
    /// The same, unless the configuration opens it to all.
    UnlessOpened(Permission, About),
}

/// A method of a route. `HEAD` is as `GET`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) method: &'static str,
    /// The template, under which requests are counted.
    pub(super) path: &'static str,
    pub(super) needs: Needs,
    /// What it is called where it is written down who did what.
    pub(super) action: &'static str,
    /// Whether it changes something, so that it is written down.
    pub(super) changes: bool,
}

const fn row(method: &'static str, path: &'static str, permission: Permission, about: About) -> Row {
    let action = if matches!(permission, Permission::Publish) { "publish" } else { "view" };
    Row { method, path, needs: Needs::Permission(permission, about), action, changes: false }
}

const fn changing(action: &'static str, row: Row) -> Row {
    Row { action, changes: true, ..row }
}

const fn free(path: &'static str) -> Row {
    Row { method: "GET", path, needs: Needs::Nothing, action: "view", changes: false }
}

/// Who may do what.
pub(super) const ROWS: [Row; 32] = {
    use About::{All, Chosen, Function, Letter, Neither, Topic};
    use Permission::{Administer, Deploy, Operate, Publish, RollBack, View};
    [
        row("GET", PUBLISH, View, Topic),
        row("POST", PUBLISH, Publish, Topic),
        row("GET", TOPICS, View, Chosen),
        row("GET", FUNCTIONS, View, Chosen),
        row("GET", STATUS, View, Chosen),
        row("GET", FUNCTION, View, Function),
        row("GET", REVISIONS, View, Function),
        row("GET", STATE, View, Function),
        row("GET", COMPONENT, View, Neither),
        changing("upload", row("PUT", COMPONENT, Deploy, Neither)),
        changing("deploy", row("PUT", FUNCTION, Deploy, Function)),
        changing("delete", row("DELETE", FUNCTION, Deploy, Function)),
        changing("rollback", row("POST", ROLLBACK, RollBack, Function)),
        changing("promote", row("POST", PROMOTE, Deploy, Function)),
        changing("canary", row("POST", CANARY, Deploy, Function)),
        changing("pause", row("POST", PAUSE, Operate, Function)),
        changing("resume", row("POST", RESUME, Operate, Function)),
        changing("reset", row("POST", RESET, Operate, Function)),
        changing("skip", row("POST", SKIP, Operate, Function)),
        row("GET", LETTERS, View, Chosen),
        row("GET", LETTER, View, Letter),
        changing("redrive", row("POST", REDRIVE, Operate, Chosen)),
        changing("resolve", row("POST", RESOLVE, Operate, Chosen)),
        changing("discard", row("POST", DISCARD, Operate, Chosen)),
        row("GET", AUDIT, Administer, All),
        row("GET", TOKENS, Administer, All),
        changing("create-token", row("POST", TOKENS, Administer, All)),
        changing("revoke-token", row("DELETE", TOKEN, Administer, All)),
        free(OPENAPI),
        free(LIVE),
        free(READY),
        Row { needs: Needs::UnlessOpened(View, All), ..free(METRICS) },
    ]
};

/// The template of a path as it was matched; empty if it is none of ours.
pub(super) fn template(matched: &str) -> &'static str {
    ROWS.iter().find(|row| row.path == matched).map_or("", |row| row.path)
}

/// The row of a request to a route.
pub(super) fn row_of(method: &str, template: &str) -> Option<&'static Row> {
    let method = if method == "HEAD" { "GET" } else { method };
    ROWS.iter().find(|row| row.path == template && row.method == method)
}

/// The methods of a route, for the header `Allow`.
pub(super) fn methods(template: &str) -> String {
    let methods = ROWS.iter().filter(|row| row.path == template);
    let methods = methods.map(|row| if row.method == "GET" { "GET,HEAD" } else { row.method });
    methods.collect::<Vec<_>>().join(",")
}
