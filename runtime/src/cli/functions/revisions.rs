//! `millrace functions history|show|diff|promote|canary|rollback|pause|resume|delete`.

use std::time::Duration;

use millrace_core::canary::Share;
use millrace_core::revision::Origin;
use serde_json::json;
use tokio::time::Instant;

use crate::api::types::{
    self, CanaryRequest, CannotRun, Deployed, Deployment, PromoteRequest, Revisions, RollbackRequest,
};
use crate::cli::client::{Client, Target};
use crate::cli::deploy::running;
use crate::cli::error::{Error, Exit};
use crate::cli::format::{self, Cell, Side, Table};
use crate::cli::output::{Console, Style};
use crate::cli::{Context, changes, status};

/// How long the instances are waited for.
const WAIT: Duration = Duration::from_secs(90);

/// A function.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// The function: its full name, or its name within the application where that is unambiguous
    pub(super) function: String,
}

/// A function, and what is to be done with it.
#[derive(Debug, clap::Args)]
pub(super) struct Act {
    #[command(flatten)]
    pub(super) which: Which,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Arguments of `millrace functions diff`.
#[derive(Debug, clap::Args)]
pub(super) struct Diff {
    #[command(flatten)]
    which: Which,
    /// The revision to compare from; without it the one that a rollback goes to, which is the active one while there is a canary
    from: Option<u64>,
    /// The revision to compare to; without it the canary, or else the active one
    to: Option<u64>,
}

/// Arguments of `millrace functions rollback`.
#[derive(Debug, clap::Args)]
pub(super) struct Rollback {
    #[command(flatten)]
    act: Act,
    /// The revision that runs again; without it the active one alone if there is a canary, or else the one before
    #[arg(long, value_name = "REVISION")]
    to: Option<u64>,
}

/// Arguments of `millrace functions canary`.
#[derive(Debug, clap::Args)]
pub(super) struct Canary {
    #[command(flatten)]
    which: Which,
    /// The share of the keys that it handles from now on, such as 20% or 0.5%
    #[arg(long)]
    share: Share,
}

struct Asked {
    client: Client,
    name: String,
    revisions: Revisions,
}

async fn ask(which: &Which, context: &Context) -> Result<Asked, Error> {
    let client = context.client()?;
    let name = status::full_name(&which.function, &client).await?;
    let revisions = client.get(&Target::new(["v1", "functions", &name, "revisions"])).await?;
    Ok(Asked { client, name, revisions })
}

/// What was deployed, newest last.
pub(super) async fn history(which: &Which, context: &mut Context) -> Result<Exit, Error> {
    let Asked { revisions, .. } = ask(which, context).await?;
    let console = &mut context.console;
    if console.is_json() {
        console.document(&revisions)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&[
        ("number", Side::Right),
        ("action", Side::Left),
        ("component", Side::Left),
        ("signed", Side::Left),
        ("at", Side::Left),
        ("by", Side::Left),
        ("state", Side::Left),
    ]);
    for one in &revisions.deployments {
        let note = match Some(one.number) {
            number if number == revisions.active => Cell::styled("active", Style::Good),
            number if number == revisions.staged => Cell::styled("staged", Style::Notable),
            number if number == canary(&revisions) => Cell::styled("canary", Style::Notable),
            _ => Cell::from(""),
        };
        table.row(vec![
            one.number.to_string().into(),
            action(one).into(),
            Cell::styled(one.component.as_deref().map_or("", changes::short), Style::Faint),
            signed(one).map_or("", |signed| if signed { "yes" } else { "no" }).into(),
            format::one_line(&one.at, 40).into(),
            format::one_line(&one.by, 100).into(),
            note,
        ]);
    }
    console.table(&table)?;
    Ok(Exit::Done)
}

/// Whether what was uploaded has a signature; whether that is a good one, each instance says for itself.
fn signed(one: &Deployment) -> Option<bool> {
    (one.origin == Some(Origin::Upload)).then_some(one.signature.is_some())
}

fn action(one: &Deployment) -> String {
    match (one.action.as_str(), one.to, one.origin) {
        ("rollback", Some(to), _) => format!("rollback to {to}"),
        ("activate" | "promote", Some(to), _) => format!("{} {to}", one.action),
        ("canary", Some(to), _) => format!("canary {to}{}", share(one)),
        ("deploy", ..) if one.share.is_some() => format!("deploy canary{}", share(one)),
        ("reset", ..) => format!("reset {}", format::counted(one.partitions.unwrap_or_default(), "partition")),
        ("deploy", _, Some(Origin::Directory)) => "deploy from a directory".to_owned(),
        (action, ..) => format::one_line(action, 40),
    }
}

fn share(one: &Deployment) -> String {
    one.share.as_deref().map_or_else(String::new, |share| format!(" for {}", format::one_line(share, 10)))
}

/// The number of the canary that runs.
fn canary(revisions: &Revisions) -> Option<u64> {
    revisions.canary.as_ref().map(|canary| canary.revision)
}

fn beside(canary: &types::Canary) -> String {
    format!("{} for {} of the keys", canary.revision, format::one_line(&canary.share, 10))
}

/// How it stands, and how each instance does.
pub(super) async fn show(which: &Which, context: &mut Context) -> Result<Exit, Error> {
    let Asked { revisions, .. } = ask(which, context).await?;
    let console = &mut context.console;
    if console.is_json() {
        console.document(&revisions)?;
        return Ok(Exit::Done);
    }
    let name = console.paint(Style::Strong, &format::one_line(&revisions.function, 127));
    let stands = match revisions.active {
        Some(revision) if revisions.paused => format!("revision {revision}, paused"),
        Some(revision) => format!("revision {revision}"),
        None => format::one_line(&revisions.state, 40),
    };
    let staged = match (revisions.staged, &revisions.staged_share) {
        (Some(revision), Some(share)) => {
            format!(", {revision} is staged as a canary for {} of the keys", format::one_line(share, 10))
        }
        (Some(revision), None) => format!(", {revision} is staged"),
        (None, _) => String::new(),
    };
    let tried = revisions.canary.as_ref().map_or_else(String::new, |canary| format!(", canary {}", beside(canary)));
    console.line(format_args!("{name}: {stands}{tried}{staged}, deployment {}", revisions.latest))?;
    if let Some((one, signed)) = revisions.active_deployment().and_then(|one| Some((one, signed(one)?))) {
        let digest = one.component.as_deref().map_or("", changes::short);
        console.line(format_args!("  component {digest}, {}", if signed { "signed" } else { "not signed" }))?;
    }
    for one in &revisions.instances {
        let runs = one.here.revision.map_or_else(|| "runs none".to_owned(), |revision| format!("runs {revision}"));
        let paused = if one.here.paused { ", paused" } else { "" };
        let (instance, at) = (format::one_line(&one.instance, 100), format::one_line(&one.at, 40));
        let canary = one.here.canary.as_ref().map_or_else(String::new, |canary| format!(", {}", beside(canary)));
        console.line(format_args!("  instance {instance} {runs}{canary}{paused} (said so at {at})"))?;
        for CannotRun { revision, reason, again } in &one.here.cannot_run {
            let again = if *again { "; it is tried again" } else { "" };
            let problem = format!("revision {revision}: {reason}{again}");
            let problem = console.paint(Style::Bad, &format::one_line(&problem, 1000));
            console.line(format_args!("    {problem}"))?;
        }
    }
    if !revisions.figures.is_empty() {
        console.line("")?;
        console.table(&figures(&revisions))?;
    }
    if let Some(manifest) = revisions.active_deployment().and_then(|one| one.manifest.as_deref()) {
        console.line("")?;
        console.line(format::lines(manifest.trim_end()))?;
    }
    Ok(Exit::Done)
}

/// What attempts came to on all live instances, a line for each revision.
fn figures(revisions: &Revisions) -> Table {
    let mut table = Table::new(&[
        ("revision", Side::Right),
        ("runs as", Side::Left),
        ("completed", Side::Right),
        ("failed", Side::Right),
        ("failure rate", Side::Right),
        ("p50", Side::Right),
        ("p99", Side::Right),
    ]);
    for one in &revisions.figures {
        let runs = match Some(one.revision) {
            number if number == revisions.active => Cell::styled("active", Style::Good),
            number if number == canary(revisions) => Cell::styled("canary", Style::Notable),
            _ => Cell::from(""),
        };
        table.row(vec![
            one.revision.to_string().into(),
            runs,
            format::count(one.completed).into(),
            format::count(one.failed_attempts).into(),
            format!("{:.2}%", one.failure_rate * 100.0).into(),
            format::seconds(one.invoke_p50_seconds).into(),
            format::seconds(one.invoke_p99_seconds).into(),
        ]);
    }
    table
}

/// What differs between two revisions.
pub(super) async fn diff(args: &Diff, context: &mut Context) -> Result<Exit, Error> {
    let Asked { revisions, name, .. } = ask(&args.which, context).await?;
    let none = || {
        let cause = format!("{name} has no two revisions to compare");
        Error::failed(cause, format_args!("name them; `millrace functions history {name}` lists them"))
    };
    let from = args.from.or(revisions.previous).ok_or_else(none)?;
    let to = args.to.or(canary(&revisions)).or(revisions.active).ok_or_else(none)?;
    let find = |number: u64| {
        let found = revisions.deployments.iter().find(|one| one.number == number && one.manifest.is_some());
        found.ok_or_else(|| {
            let fix = format!("`millrace functions history {name}` lists them");
            Error::failed(format_args!("{name} has no revision {number}"), fix)
        })
    };
    let (old, new) = (find(from)?, find(to)?);
    let manifest = |one: &Deployment| one.manifest.clone().unwrap_or_default();
    let settings = changes::between(&manifest(old), &manifest(new));
    let console = &mut context.console;
    if console.is_json() {
        console.document(&json!({
            "function": name, "from": from, "to": to, "settings": settings,
            "component": { "old": old.component, "new": new.component },
        }))?;
        return Ok(Exit::Done);
    }
    let short = |one: &Deployment| {
        one.component.as_deref().map_or_else(String::new, |digest| changes::short(digest).to_owned())
    };
    if old.component != new.component {
        console.line(format_args!("component: {} -> {}", short(old), short(new)))?;
    }
    settings.iter().try_for_each(|setting| console.line(setting))?;
    if old.component == new.component && settings.is_empty() {
        console.note(format_args!("Revisions {from} and {to} are the same."))?;
    }
    Ok(Exit::Done)
}

/// Lets the canary become the active revision.
pub(super) async fn promote(args: &Act, context: &mut Context) -> Result<Exit, Error> {
    let Asked { client, name, revisions } = ask(&args.which, context).await?;
    let canary = canary(&revisions).ok_or_else(|| no_canary(&name))?;
    let question = format!("Let revision {canary} of {name} handle all keys, in place of {}?", told(revisions.active));
    if !may(args, question, &mut context.console).await? {
        return Ok(Exit::Failed);
    }
    let request = PromoteRequest { revision: Some(canary), builds_on: Some(revisions.latest), dry_run: false };
    let deployed = client.post(&Target::new(["v1", "functions", &name, "promote"]), &request).await?;
    tell(&client, &deployed, format!("revision {canary} handles all keys"), &mut context.console).await
}

/// Gives the canary another share.
pub(super) async fn canary_share(args: &Canary, context: &mut Context) -> Result<Exit, Error> {
    let Asked { client, name, revisions } = ask(&args.which, context).await?;
    let canary = canary(&revisions).ok_or_else(|| no_canary(&name))?;
    let request = CanaryRequest { share: args.share.to_string(), builds_on: Some(revisions.latest), dry_run: false };
    let deployed = client.post(&Target::new(["v1", "functions", &name, "canary"]), &request).await?;
    let how = format!("revision {canary} handles {} of the keys", args.share);
    tell(&client, &deployed, how, &mut context.console).await
}

fn no_canary(name: &str) -> Error {
    Error::failed(format_args!("{name} has no canary"), "`millrace deploy --canary 5%` makes one")
}

/// Gives the canary up, or runs an earlier revision again.
pub(super) async fn rollback(args: &Rollback, context: &mut Context) -> Result<Exit, Error> {
    let Asked { client, name, revisions } = ask(&args.act.which, context).await?;
    let to = args.to.or(revisions.previous).ok_or_else(|| {
        let fix = format!("name one with --to; `millrace functions history {name}` lists them");
        Error::failed(format_args!("{name} has no earlier revision that was uploaded"), fix)
    })?;
    let beside = [canary(&revisions), revisions.staged].into_iter().flatten().filter(|beside| *beside != to);
    let beside: Vec<String> = beside.map(|revision| revision.to_string()).collect();
    let given_up = (!beside.is_empty()).then(|| beside.join(" and "));
    let (question, how) = match given_up {
        Some(given_up) if Some(to) == revisions.active => (
            format!("Give up revision {given_up} of {name}? Revision {to} handles all keys then."),
            format!("revision {given_up} is given up, revision {to} handles all keys"),
        ),
        given_up => {
            let also = given_up.map_or_else(String::new, |given_up| format!(" Revision {given_up} is given up."));
            let question = format!("Run revision {to} of {name} again, in place of {}?{also}", told(revisions.active));
            (question, format!("revision {to} runs again"))
        }
    };
    if !may(&args.act, question, &mut context.console).await? {
        return Ok(Exit::Failed);
    }
    let request = RollbackRequest { to: Some(to), builds_on: Some(revisions.latest), dry_run: false };
    let deployed = client.post(&Target::new(["v1", "functions", &name, "rollback"]), &request).await?;
    tell(&client, &deployed, how, &mut context.console).await
}

/// Lets a function handle no events.
pub(super) async fn pause(args: &Which, context: &mut Context) -> Result<Exit, Error> {
    let Asked { client, name, .. } = ask(args, context).await?;
    let deployed = client.post(&Target::new(["v1", "functions", &name, "pause"]), &json!({})).await?;
    let how = format!("paused; `millrace functions resume {name}` lets it go on where it is");
    tell(&client, &deployed, how, &mut context.console).await
}

/// Lets it go on.
pub(super) async fn resume(args: &Which, context: &mut Context) -> Result<Exit, Error> {
    let Asked { client, name, .. } = ask(args, context).await?;
    let deployed = client.post(&Target::new(["v1", "functions", &name, "resume"]), &json!({})).await?;
    tell(&client, &deployed, "it goes on".to_owned(), &mut context.console).await
}

/// Lets go of a function.
pub(super) async fn delete(args: &Act, context: &mut Context) -> Result<Exit, Error> {
    let Asked { client, name, .. } = ask(&args.which, context).await?;
    let question =
        format!("Delete {name}? It stops on all instances. Its position and its dead letters stay, its events wait.");
    if !may(args, question, &mut context.console).await? {
        return Ok(Exit::Failed);
    }
    let deployed = client.delete(&Target::new(["v1", "functions", &name])).await?;
    let how = "deleted; a later deployment goes on at its position".to_owned();
    tell(&client, &deployed, how, &mut context.console).await
}

fn told(revision: Option<u64>) -> String {
    revision.map_or_else(|| "none".to_owned(), |revision| format!("revision {revision}"))
}

pub(super) async fn may(args: &Act, question: String, console: &mut Console) -> Result<bool, Error> {
    if args.yes {
        return Ok(true);
    }
    if !console.can_ask() {
        return Err(Error::usage("nobody can be asked whether to do this", "give --yes to do it"));
    }
    let yes = console.confirm(question).await?;
    if !yes {
        console.note("Nothing was done.")?;
    }
    Ok(yes)
}

async fn tell(client: &Client, deployed: &Deployed, how: String, console: &mut Console) -> Result<Exit, Error> {
    running::wait(client, deployed, Instant::now() + WAIT, console).await?;
    if console.is_json() {
        console.document(deployed)?;
    } else if deployed.new {
        console.line(format_args!("{}: {how}", deployed.function))?;
    } else {
        console.note(format_args!("{}: that was so already.", deployed.function))?;
    }
    Ok(Exit::Done)
}
