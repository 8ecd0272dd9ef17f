//! `millrace tokens`.

use clap::Subcommand;

use super::Context;
use super::client::{Refusal, Target};
use super::error::{Error, Exit};
use super::format::{self, Cell, Side, Table};
use super::output::{Console, Style};
use crate::api::types::{Token, TokenMade, TokenRequest, TokenRevoked, Tokens};

const EXAMPLES: &str = "\
Examples:
  millrace tokens list
  millrace tokens create ada --role admin
  millrace tokens create ci --role deploy --function 'shop.*' --topic 'orders*' --expires 90d
  millrace tokens revoke 9f3a6c01d2e4

From the first token on, each request to the server needs one: make the first one with the role admin. The command line takes its
token from MILLRACE_TOKEN or --token-file.";

const CREATE_EXAMPLES: &str = "\
Examples:
  millrace tokens create ada --role admin
  millrace tokens create ci --role deploy --function 'shop.*' --topic 'orders*' --expires 90d
  millrace tokens create prometheus --role view
  millrace tokens create shop --role publish --rate 50/s --burst 200
  (umask 077; millrace tokens create ada --role admin > ~/.millrace-token)      the token alone goes into the file, which nobody else reads

Roles:
  view      looks at functions, topics, events, state, dead letters and figures, not at tokens
  publish   publishes events, and sees nothing
  deploy    views; uploads, deploys, rolls back and deletes functions
  operate   views; pauses, resumes, skips and rolls back functions, decides about dead letters
  admin     everything, tokens among it; without patterns";

const LIST_EXAMPLES: &str = "\
Examples:
  millrace tokens list
  millrace tokens list --json";

const REVOKE_EXAMPLES: &str = "\
Examples:
  millrace tokens revoke 9f3a6c01d2e4
  millrace tokens revoke 9f3a6c01d2e4 --yes";

/// Arguments of `millrace tokens`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a token, and show it this once
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Create),
    /// List tokens, without their secrets
    #[command(after_help = LIST_EXAMPLES)]
    List,
    /// Let a token hold no more, on every instance within about a second
    #[command(after_help = REVOKE_EXAMPLES)]
    Revoke(Revoke),
}

/// Arguments of `millrace tokens create`.
#[derive(Debug, clap::Args)]
struct Create {
    /// What people call it, such as who uses it for what
    name: String,
    /// What it is trusted with; can be repeated
    #[arg(long = "role", value_name = "ROLE", required = true, value_parser = ["view", "publish", "deploy", "operate", "admin"])]
    roles: Vec<String>,
    /// Functions that it is for, with * for any number of characters; can be repeated [default: all]
    #[arg(long = "function", value_name = "PATTERN")]
    functions: Vec<String>,
    /// Topics that it is for; can be repeated [default: all]
    #[arg(long = "topic", value_name = "PATTERN")]
    topics: Vec<String>,
    /// For how long it holds, such as 90d, from 1s to 3650d [default: until it is revoked]
    #[arg(long, value_name = "PERIOD")]
    expires: Option<String>,
    /// Requests that it may send to each instance, such as 50/s, 600/m or 1000/h [default: as http.token-rate says there]
    #[arg(long, value_name = "RATE")]
    rate: Option<String>,
    /// How many of them may come at once [default: as many as in one unit of the rate]
    #[arg(long, value_name = "REQUESTS", requires = "rate")]
    burst: Option<u32>,
}

/// Arguments of `millrace tokens revoke`.
#[derive(Debug, clap::Args)]
struct Revoke {
    /// The token's id, as `millrace tokens list` shows it
    id: String,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn run(args: &Args, context: &mut Context) -> Result<Exit, Error> {
    match &args.command {
        Command::Create(args) => create(args, context).await,
        Command::List => list(context).await,
        Command::Revoke(args) => revoke(args, context).await,
    }
}

async fn create(args: &Create, context: &mut Context) -> Result<Exit, Error> {
    let request = TokenRequest {
        name: args.name.clone(),
        roles: args.roles.clone(),
        functions: args.functions.clone(),
        topics: args.topics.clone(),
        expires_in: args.expires.clone(),
        rate: args.rate.clone(),
        burst: args.burst,
    };
    let client = context.client()?;
    let console = &mut context.console;
    let made: TokenMade = match client.post(&Target::new(["v1", "tokens"]), &request).await {
        Ok(made) => made,
        Err(refusal) => return Err(not_made(refusal, console)?),
    };
    if console.is_json() {
        console.document(&made)?;
        return Ok(Exit::Done);
    }
    console.line(format::one_line(&made.token, 200))?;
    console.flush()?;
    let id = format::one_line(&made.made.id, 40);
    console.note(format_args!(
        "It is shown only this once: keep it where nobody else reads it. `millrace tokens revoke {id}` ends it."
    ))?;
    Ok(Exit::Done)
}

/// What there is to say of a token that was not made, or of which nobody knows. What the server tells of it must not be lost.
fn not_made(refusal: Refusal, console: &mut Console) -> Result<Error, Error> {
    match &refusal {
        Refusal::Problem { problem, .. } => {
            if console.is_json() && problem.token.is_some() {
                console.document(problem)?;
            } else if let Some(token) = &problem.token {
                console.line(format::one_line(&token.0, 200))?;
            }
        }
        Refusal::Lost { server, reason } => {
            return Ok(Error::new(
                Exit::Unreachable,
                format_args!("the connection to {server} was lost, and the token may have been made: {reason}"),
                "`millrace tokens list` shows whether it is there: revoke it then, and make another one. If it was the first one and nobody \
                 gets in any more, give the server http.admin-token-file, and start it again",
            ));
        }
        Refusal::Unreachable { .. } | Refusal::Untrusted { .. } | Refusal::Foreign { .. } => {}
    }
    console.flush()?;
    Ok(refusal.into())
}

async fn list(context: &mut Context) -> Result<Exit, Error> {
    let Tokens { tokens } = context.client()?.get(&Target::new(["v1", "tokens"])).await?;
    let console = &mut context.console;
    if console.is_json() {
        console.document(&Tokens { tokens })?;
    } else if tokens.is_empty() {
        console.note("There are no tokens. `millrace tokens create NAME --role admin` makes the first one.")?;
    } else {
        console.table(&table(&tokens))?;
    }
    Ok(Exit::Done)
}

fn table(tokens: &[Token]) -> Table {
    let columns = ["id", "name", "roles", "functions", "topics", "rate", "made by", "expires", "state"];
    let mut table = Table::new(&columns.map(|column| (column, Side::Left)));
    let or_all = |patterns: &[String]| match patterns {
        [] => "all".to_owned(),
        patterns => format::one_line(&patterns.join(", "), 100),
    };
    for token in tokens {
        let style = if token.state == "valid" { Style::Good } else { Style::Bad };
        table.row(vec![
            Cell::styled(format::one_line(&token.id, 40), Style::Strong),
            format::one_line(&token.name, 100).into(),
            format::one_line(&token.roles.join(", "), 100).into(),
            or_all(&token.functions).into(),
            or_all(&token.topics).into(),
            rate(token).into(),
            format::one_line(&token.created_by, 100).into(),
            format::one_line(token.expires_at.as_deref().unwrap_or("never"), 40).into(),
            Cell::styled(format::one_line(&token.state, 40), style),
        ]);
    }
    table
}

/// A rate of its own, and how many may come at once; `default` where the configuration of each instance says.
fn rate(token: &Token) -> String {
    match (&token.rate, token.burst) {
        (Some(rate), Some(burst)) => format!("{}, {} at once", format::one_line(rate, 40), format::count(burst.into())),
        (Some(rate), None) => format::one_line(rate, 40),
        (None, _) => "default".to_owned(),
    }
}

async fn revoke(args: &Revoke, context: &mut Context) -> Result<Exit, Error> {
    let client = context.client()?;
    let console = &mut context.console;
    if !args.yes {
        if !console.can_ask() {
            return Err(Error::usage("nobody can be asked whether to do this", "give --yes to do it"));
        }
        let id = format::one_line(&args.id, 40);
        let Tokens { tokens } = client.get(&Target::new(["v1", "tokens"])).await?;
        let of_last = match &tokens[..] {
            [only] if only.id == args.id => {
                " It is the last one: unless the server's configuration says otherwise, nobody needs a token from then on, and whoever \
                 reaches the server may do everything."
            }
            _ => "",
        };
        if !console
            .confirm(format_args!("Revoke token {id}? Whoever uses it is refused from then on.{of_last}"))
            .await?
        {
            console.note("Nothing was done.")?;
            return Ok(Exit::Failed);
        }
    }
    let revoked: TokenRevoked = client.delete(&Target::new(["v1", "tokens", &args.id])).await?;
    if console.is_json() {
        console.document(&revoked)?;
    } else {
        let (id, name) = (format::one_line(&revoked.id, 40), format::one_line(&revoked.name, 100));
        console.line(format_args!("{id} ({name}) is revoked."))?;
    }
    if revoked.open {
        console.note(
            "warning: it was the last one. Nobody needs a token now, and whoever reaches the server may do everything.",
        )?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use crate::cli::error::Exit;
    use crate::cli::testing::{Answer, Server, run};

    const SECRET: &str = "mr_070707070707_0707";

    fn made() -> serde_json::Value {
        serde_json::json!({
            "token": SECRET, "id": "070707070707", "name": "ci", "roles": ["deploy"], "functions": ["shop.*"], "topics": [],
            "created_at": "2027-01-15T08:00:00Z", "created_by": "root", "expires_at": null, "state": "valid",
            "rate": "600/m", "burst": 1000
        })
    }

    #[tokio::test]
    async fn a_token_is_made_and_shown_alone_on_standard_output() {
        let server = Server::answering([Answer::json(&made())]).await;
        let words = ["tokens", "create", "ci", "--role", "deploy", "--function", "shop.*", "--expires", "90d"];
        let ran = server.run(&[&words[..], &["--rate", "50/s", "--burst", "200"]].concat()).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Done, "mr_070707070707_0707\n"));
        assert!(ran.err.contains("It is shown only this once") && !ran.err.contains(SECRET), "{}", ran.err);
        let asked = server.asked();
        assert_eq!(asked[0].line, "POST /v1/tokens");
        assert_eq!(
            asked[0].body,
            r#"{"name":"ci","roles":["deploy"],"functions":["shop.*"],"expires_in":"90d","rate":"50/s","burst":200}"#
        );
    }

    #[tokio::test]
    async fn a_token_of_which_nobody_knows_whether_it_was_made_is_shown_all_the_same() {
        let problem = serde_json::json!({
            "type": "https://millrace.dev/problems/log-unavailable", "title": "t", "status": 503, "detail": "nobody knows", "token": SECRET
        });
        let server = Server::answering([Answer::text(503, &problem.to_string())]).await;
        let ran = server.run(&["tokens", "create", "ada", "--role", "admin"]).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Failed, "mr_070707070707_0707\n"));
        assert!(
            ran.err.contains("nobody knows") && !ran.err.contains("try again") && !ran.err.contains(SECRET),
            "{}",
            ran.err
        );
        let server = Server::answering([Answer::broken_off()]).await;
        let err = server.run(&["tokens", "create", "ada", "--role", "admin"]).await.refused(Exit::Unreachable);
        assert!(err.contains("the token may have been made") && err.contains("http.admin-token-file"), "{err}");
    }

    #[tokio::test]
    async fn tokens_are_listed_without_secrets() {
        let server = Server::answering([Answer::json(&serde_json::json!({"tokens": [made()]}))]).await;
        let out = server.run(&["tokens", "list"]).await.done();
        for expected in ["070707070707", "shop.*", "never", "600/m, 1,000 at once"] {
            assert!(out.contains(expected), "{expected}: {out}");
        }
    }

    #[tokio::test]
    async fn a_token_is_revoked_when_somebody_agrees() {
        let answer = Answer::json(&serde_json::json!({"id": "070707070707", "name": "ci"}));
        let server = Server::answering([answer]).await;
        let err = server.run(&["tokens", "revoke", "070707070707"]).await.refused(Exit::Usage);
        assert!(err.contains("give --yes"), "{err}");
        let out = server.run(&["tokens", "revoke", "070707070707", "--yes"]).await.done();
        assert_eq!(out, "070707070707 (ci) is revoked.\n");
        assert_eq!(server.asked()[0].line, "DELETE /v1/tokens/070707070707");
        let answer = |open: bool| Answer::json(&serde_json::json!({"id": "070707070707", "name": "ci", "open": open}));
        let server = Server::answering([answer(true), answer(false)]).await;
        for open in [true, false] {
            let ran = server.run(&["tokens", "revoke", "070707070707", "--yes"]).await;
            assert_eq!((ran.exit, ran.err.contains("Nobody needs a token now")), (Exit::Done, open), "{}", ran.err);
        }
    }

    #[tokio::test]
    async fn a_token_comes_from_a_file_and_is_sent() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let path = file.to_str().unwrap();
        std::fs::write(&file, format!("{SECRET}\n")).unwrap();
        let server = Server::answering(vec![Answer::json(&serde_json::json!({"tokens": []})); 3]).await;
        for (mode, is_told) in [(0o600, false), (0o640, true), (0o604, true)] {
            std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            let ran = server.run(&["tokens", "list", "--token-file", path]).await;
            assert_eq!(ran.exit, Exit::Done);
            assert_eq!(ran.err.contains(&format!("`chmod 600 {path}`")), is_told, "{}", ran.err);
        }
        assert_eq!(server.asked()[0].authorization, format!("Bearer {SECRET}"));
        for wrong in ["planted planted", "", "plänted"] {
            std::fs::write(&file, wrong).unwrap();
            let err = server.run(&["tokens", "list", "--token-file", path]).await.refused(Exit::Usage);
            assert!(
                err.contains("there is no token in") && !err.contains("planted") && !err.contains("plänted"),
                "{err}"
            );
        }
        let err = server.run(&["tokens", "list", "--token-file", "/nowhere"]).await.refused(Exit::Failed);
        assert!(err.contains("/nowhere"), "{err}");
    }

    #[test]
    fn what_is_in_the_environment_is_a_token_or_refused() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt as _;

        for (bytes, expected) in [(&b""[..], true), (SECRET.as_bytes(), true), (b"mr_\xff", false), (b"a b", false)] {
            let place = crate::cli::TokenPlace::of(None, Some(OsStr::from_bytes(bytes).to_owned()));
            assert_eq!(place.is_ok(), expected, "{bytes:?}");
            assert!(place.err().is_none_or(|error| error.to_string().contains("there is no token in MILLRACE_TOKEN")));
        }
    }

    #[tokio::test]
    async fn refusals_name_where_a_token_comes_from() {
        for (status, kind, expected) in [
            (401, "unauthenticated", "MILLRACE_TOKEN or with --token-file"),
            (403, "forbidden", "MILLRACE_TOKEN or with --token-file"),
        ] {
            let server = Server::answering([Answer::problem_of(status, kind, "no")]).await;
            let err = server.run(&["tokens", "list"]).await.refused(Exit::Failed);
            assert!(err.starts_with("error: no\n  fix: ") && err.contains(expected), "{err}");
        }
        let server = Server::answering([Answer::problem_of(403, "foreign-host", "no")]).await;
        assert!(!server.run(&["tokens", "list"]).await.refused(Exit::Failed).contains("token-file"));
        let parsed = crate::cli::testing::parsed(&["tokens", "list", "--token", SECRET]);
        assert!(parsed.is_err());
        assert!(run(&["tokens", "list", "--server", "http://127.0.0.1:1"]).await.exit == Exit::Unreachable);
    }
}
